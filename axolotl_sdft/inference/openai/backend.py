"""Generates on servers that speak the OpenAI protocol: vLLM, SGLang, llama.cpp, Ray Serve, hosted ones.

One prompt is one request. A server that fails is asked again, then left out, and its rows go to the others; it is taken
back when it answers again.
"""

import asyncio
import logging
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from axolotl_sdft.config import OpenAIGeneration
from axolotl_sdft.core.errors import ConfigError, DatasetError, ServerError
from axolotl_sdft.core.runtime import world_size
from axolotl_sdft.inference.chat_templates import render_chat, well_formed_chat
from axolotl_sdft.inference.interfaces import Answer, Prompt, Target
from axolotl_sdft.inference.openai.api_key import ApiKey, LogRedaction
from axolotl_sdft.inference.openai.chat_protocol import (
    MOST_BEGIN_TOKENS,
    ScoredText,
    ask_likelihood,
    chat_request,
    encode,
    read_answer,
    require_going_on,
)
from axolotl_sdft.inference.openai.dispatch import BackgroundLoop, Dispatcher
from axolotl_sdft.inference.openai.faults import (
    EndpointError,
    QuestionRefusedError,
    RefusedError,
    RequestError,
    ThrottledError,
)
from axolotl_sdft.inference.openai.handshake import Handshake
from axolotl_sdft.inference.openai.servers import QUICK_RETRIES, Server, ServerPool

LOG = logging.getLogger(__name__)

_OTHER_FILES = 512  # the dataset's, the journal's and the libraries'
_REFUSALS_BEFORE_ANY_ANSWER = 16
_START_TRIES = 3  # of a server that is just busy


Request: TypeAlias = tuple[int, int, Prompt]
"""Number of the batch, place in it, and the prompt there."""


class OpenAIBackend:
    """Asks any number of servers; needs no accelerator itself."""

    def __init__(self, model_dir: Path, config: OpenAIGeneration, *, is_own: bool = False) -> None:
        """Make a backend.

        Args:
            model_dir: Folder of the seed model.
            config: How it is asked.
            is_own: The server was started by this process, for itself alone: no other rank asks it, and no proxy stands
                before it.
        """
        self._model_dir, self._config, self._is_own = model_dir, config, is_own
        self._key = ApiKey(config.api_key_env)
        self._log_redaction = LogRedaction(self._key)
        self._is_introduced = self._has_answers = False
        self._started: tuple[BackgroundLoop, ServerPool] | None = None

    @cached_property
    def _tokenizer(self) -> Any:
        from axolotl_sdft.inference.prompts import load_tokenizer

        config = self._config
        return load_tokenizer(
            self._model_dir, trust_remote_code=bool(config.trust_remote_code), chat_template=config.chat_template
        )

    def _start(self) -> tuple[BackgroundLoop, ServerPool]:
        if self._started is None:
            config, urls = self._config, self._base_urls()
            share = config.concurrency if self._is_own else max(1, config.concurrency // world_size())
            _allow_connections(share * len(urls))
            servers = [
                Server(url, self._key, share, config.timeout_s, config.max_retries, trust_env=not self._is_own)
                for url in urls
            ]
            self._log_redaction.turn_on()
            self._started = BackgroundLoop(), ServerPool(servers, config.max_retries, self._shake_hands)
        return self._started

    def _base_urls(self) -> tuple[str, ...]:
        return self._config.base_urls

    async def _shake_hands(self, server: Server, max_retries: int) -> None:
        await Handshake(self._model_dir, self._config, lambda: self._tokenizer)(server, max_retries)

    def check(self) -> None:
        """Return when at least one server answers chats with the seed model; the others may come later.

        Raises:
            ConfigError: A server refuses the key, or serves another model.
            ServerError: No server answers.
        """
        self._key.check()
        self._introduce_servers()

    def _introduce_servers(self) -> None:
        background, pool = self._start()
        background.run(self._introduce_all(pool))
        self._is_introduced = True

    async def _introduce_all(self, pool: ServerPool) -> None:
        faults = await asyncio.gather(*(self._introduce(pool, server) for server in pool.servers))
        silent = [(server, fault) for server, fault in zip(pool.servers, faults, strict=True) if fault is not None]
        listed = "; ".join(f"{server.base_url}: {fault}" for server, fault in silent)
        if len(silent) == len(pool.servers):
            raise ServerError(
                f"self_distillation.generation.base_urls: no server can be used ({listed}); start one, or correct the "
                "address"
            )
        for server, fault in silent:
            LOG.warning("%s can't be used yet (%s); the rows go to the other servers", server.base_url, fault)
            pool.mark_unhealthy(server, fault)

    async def _introduce(self, pool: ServerPool, server: Server) -> RequestError | None:
        """Return why a server can't be asked now, or None when it can."""
        for _ in range(_START_TRIES):
            try:
                await pool.shake_hands(server, QUICK_RETRIES)
                return None
            except ThrottledError as err:
                fault = err
                await asyncio.sleep(1.0 if err.wait_s is None else err.wait_s)
            except RequestError as err:
                return err
        return fault

    def batches(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        """Return each prompt as a batch of its own: the servers put requests together themselves."""
        return [[prompt] for prompt in sorted(prompts, key=lambda prompt: (prompt.key, prompt.attempt))]

    def generate(self, batches: Iterable[list[Prompt]]) -> Iterator[tuple[list[Prompt], list[Answer]]]:
        """Yield each batch with its answers as soon as it is done, in any order.

        A prompt that the servers refuse for its own sake, such as one that is too long, gets an answer that says so,
        and is not asked again in later runs.

        Raises:
            ServerError: All servers are dead.
            ConfigError: A server refuses the key, or none serves the seed model any more.
        """
        unfinished: dict[int, tuple[list[Prompt], dict[int, Answer]]] = {}

        def requests() -> Iterator[Request]:
            for number, batch in enumerate(batches):
                unfinished[number] = (batch, {})
                yield from ((number, place, prompt) for place, prompt in enumerate(batch))

        with closing(self._answered(requests())) as told:
            for (number, place, _), answer in told:
                batch, answers = unfinished[number]
                answers[place] = answer
                if len(answers) == len(batch):
                    del unfinished[number]
                    yield batch, [answers[place] for place in range(len(batch))]

    def _answered(self, requests: Iterable[Request]) -> Generator[tuple[Request, Answer], None, None]:
        """Yield each request with its answer; a refused one only when the servers don't refuse all of them.

        If they do, the rows are not to blame, and must not be recorded as failed.
        """
        refused: list[tuple[Request, Answer]] = []
        with closing(self._dispatcher(self._ask).run(requests)) as told:
            for request, answer in told:
                if isinstance(answer, Answer):
                    self._has_answers = True
                    yield request, answer
                else:
                    is_final = isinstance(answer, QuestionRefusedError)
                    refused.append((request, Answer("", "error", 0, error=str(answer), is_final=is_final)))
                    if len(refused) >= _REFUSALS_BEFORE_ANY_ANSWER and not self._has_answers:
                        raise ConfigError(
                            f"self_distillation: the first {len(refused)} rows were refused by the servers, the last "
                            f"one with: {answer}; correct what it names, such as template or generation.extra_body"
                        )
                if self._has_answers:
                    yield from refused
                    refused = []
        yield from refused

    async def _ask(self, server: Server, request: Request) -> Answer:
        try:
            prompt = self._fitting(request[2])
        except DatasetError as err:
            return Answer("", "error", 0, error=str(err), is_final=True)
        body = chat_request(self._config, server.model, prompt, server.refused_fields)
        body["max_tokens"] = self._room(server, prompt)
        response = await server.ask("/chat/completions", body)
        if prompt.answer_prefix and self._chats_with is not None:
            require_going_on(response, self._num_prompt_tokens(prompt))
        return read_answer(
            response, server.accepts_model, self._count_tokens, prompt.answer_prefix, self._control_tokens
        )

    def _room(self, server: Server, prompt: Prompt) -> int:
        """Return how long an answer may be: no longer than there is room for, since a server refuses what is not."""
        if not server.max_tokens or self._chats_with is None:
            return self._config.max_new_tokens
        try:
            left = server.max_tokens - self._num_prompt_tokens(prompt) - MOST_BEGIN_TOKENS
        except Exception:  # an odd text, on which the tokenizer fails; the server may read it
            return self._config.max_new_tokens
        return max(1, min(self._config.max_new_tokens, left))

    def _num_prompt_tokens(self, prompt: Prompt) -> int:
        from axolotl_sdft.inference.prompts import prompt_ids

        return len(prompt_ids(self._chats_with, prompt.messages, self._config.template_arguments))

    def _fitting(self, prompt: Prompt) -> Prompt:
        """Return a prompt in a shape that the seed model's own chat template takes, which the server is to use."""
        if self._chats_with is None:
            return replace(prompt, messages=tuple(well_formed_chat(prompt.messages)))
        begun = prompt.messages[-1:] if prompt.answer_prefix else ()
        asked = prompt.messages[: len(prompt.messages) - len(begun)]
        messages, _ = render_chat(self._chats_with, asked, self._config.template_arguments)
        return replace(prompt, messages=(*messages, *begun))

    @cached_property
    def _chats_with(self) -> Any:
        """The seed model's tokenizer, or None where it can't be read or has no chat template."""
        try:
            return self._tokenizer if self._tokenizer.chat_template else None
        except (OSError, ValueError):
            return None

    @cached_property
    def _control_tokens(self) -> frozenset[str]:
        """What ends an answer, as text; none where the seed model has no chat template to tell it."""
        if self._chats_with is None:
            return frozenset()
        from axolotl_sdft.inference.prompts import control_tokens, end_ids, saved_generation_settings

        saved = saved_generation_settings(self._model_dir).get("eos_token_id")
        return control_tokens(self._chats_with, end_ids(saved, self._chats_with, self._config.template_arguments))

    def _count_tokens(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def answer_nll(self, targets: Sequence[tuple[Target, str]]) -> list[float] | None:
        """Return the mean negative log-likelihood per token of each text, or None when the servers don't tell.

        They do where text completions echo the prompt with its log-probabilities, as in vLLM. It is NaN where they
        refuse one text, or the chat template does the context.
        """
        if self._chats_with is None:
            LOG.info("the distribution gap is not measured: the seed model has no chat template to read answers in")
            return None
        texts = encode(self._tokenizer, targets, self._config.template_arguments)
        texts.sort(key=lambda text: len(text.ids))
        # The shortest alone shows whether the servers can do it at all: what they refuse of others is for their length.
        values, refusals = self._likelihoods(texts[:1])
        if refusals:
            LOG.info("the distribution gap is not measured: %s", refusals[0])
            return None
        others, refusals = self._likelihoods(texts[1:])
        if refusals:
            LOG.warning("%d answers are left out of the distribution gap: %s", len(refusals), refusals[0])
        return [(values | others).get(index, math.nan) for index in range(len(targets))]

    def _likelihoods(self, texts: Sequence[ScoredText]) -> tuple[dict[int, float], list[str]]:
        """Return what is told of texts, by their index, and why nothing is told of others."""
        values: dict[int, float] = {}
        refusals: list[str] = []
        with closing(self._dispatcher(self._ask_likelihood).run(texts)) as told:
            for text, value in told:
                if isinstance(value, float):
                    values[text.index] = value
                else:
                    refusals.append(str(value or "the servers tell no likelihoods"))
        return values, refusals

    async def _ask_likelihood(self, server: Server, text: ScoredText) -> float | None:
        try:
            return await ask_likelihood(server, self._scored_part(server, text))
        except EndpointError as err:  # a server without text completions refuses the text, not the run
            raise RefusedError(str(err)) from err

    def _scored_part(self, server: Server, text: ScoredText) -> ScoredText:
        """Return what of a text is scored: where the server takes less, without its beginning."""
        if not server.max_tokens:
            return text
        room = server.max_tokens - 1  # vLLM has no likelihoods without generating: one token, which needs room
        num_answer = min(len(text.ids) - text.num_prompt_tokens, room - 1)
        ids = text.ids[: text.num_prompt_tokens + num_answer][-room:]
        return replace(text, ids=ids, num_prompt_tokens=len(ids) - num_answer)

    def _dispatcher(self, ask: Any) -> Dispatcher[Any, Any]:
        if not self._is_introduced:
            self._introduce_servers()
        background, pool = self._start()
        return Dispatcher(background, pool, ask, self._config.max_retries)

    def close(self) -> None:
        """Close all connections."""
        if self._started is None:
            return
        background, pool = self._started
        self._started, self._is_introduced = None, False
        background.close(pool.aclose())
        self._log_redaction.turn_off()


def _allow_connections(number: int) -> None:
    """Let this process open that many connections beside its other files: the usual limit is 1024.

    Raises:
        ConfigError: The machine allows fewer.
    """
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = number + _OTHER_FILES
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if hard < needed and hard != resource.RLIM_INFINITY:
        raise ConfigError(
            f"self_distillation.generation.concurrency: {number} requests in flight to all servers need as many open "
            f"files, but this machine allows {hard}; lower concurrency, or raise the limit (ulimit -n)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
