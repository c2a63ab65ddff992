"""Generates with a ``vllm serve`` of its own, from the same prompts, token for token, as with transformers."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from axolotl_sdft.config import OpenAIGeneration, VLLMGeneration
from axolotl_sdft.core.errors import ConfigError, DatasetError, ServerError
from axolotl_sdft.inference.interfaces import Answer, Prompt, Target, attempt_temperature, sampling_seed
from axolotl_sdft.inference.openai.backend import OpenAIBackend, Request
from axolotl_sdft.inference.openai.chat_protocol import read_completion
from axolotl_sdft.inference.openai.servers import Server
from axolotl_sdft.inference.prompts import (
    end_ids,
    prompt_ids,
    read_answer,
    require_chat_template,
    require_template_arguments,
    saved_generation_settings,
)
from axolotl_sdft.inference.vllm.server import NAME, VLLMServer, check_arguments, find_vllm, server_arguments

_MOST_AT_ONCE = 1024  # what vLLM decodes at once on its largest GPUs, unless max_num_seqs says otherwise
_QUEUED = 64  # so that a slot that gets free is filled at once
_MOST_CONNECTIONS = 4096
_TIMEOUT_S = 86400.0  # the server is there for this process alone: whatever waits in its queue is wanted
_END_S = 5.0  # a server that refuses connections may need a moment to be gone
_NO_KEY = "AXOLOTL_SDFT_VLLM_KEY"  # the child wants none


class VLLMBackend(OpenAIBackend):
    """One server for all ranks, which the main one starts on first use and asks.

    A client of servers in all but this: the server is a child, which is the seed model by its making, and what is sent
    are token ids of this process's own tokenizer.
    """

    serves_all_ranks = True

    def __init__(self, model_dir: Path, config: VLLMGeneration) -> None:
        self._vllm_config = config
        settings = config.model_dump(include=set(OpenAIGeneration.model_fields) & set(VLLMGeneration.model_fields))
        settings["trust_remote_code"] = config.trust_remote_code or config.vllm_args.get("trust_remote_code")
        most = config.vllm_args.get("max_num_seqs", _MOST_AT_ONCE) + _QUEUED
        asked = OpenAIGeneration(
            **settings | {"backend": "openai", "base_urls": ("http://127.0.0.1/v1",), "model": NAME},
            api_key_env=_NO_KEY,
            concurrency=min(_MOST_CONNECTIONS, most * server_arguments(config).get("data_parallel_size", 1)),
            timeout_s=_TIMEOUT_S,
            max_retries=2,
        )
        super().__init__(model_dir, asked, is_own=True)
        self._child: VLLMServer | None = None

    @cached_property
    def _saved_settings(self) -> dict[str, Any]:
        return saved_generation_settings(self._model_dir)

    @cached_property
    def _end_ids(self) -> list[int]:
        return end_ids(self._saved_settings.get("eos_token_id"), self._tokenizer, self._config.template_arguments)

    def check(self) -> None:
        """Find what would keep this backend from answering, without starting a server.

        Raises:
            ConfigError: The seed model has no chat template, or one that fails with ``chat_template_kwargs``, or is an
                adapter; or vLLM does not know one of ``vllm_args``.
            MissingExtraError: vLLM is not installed.
        """
        require_chat_template(self._tokenizer, self._model_dir, self._config.chat_template)
        require_template_arguments(self._tokenizer, self._model_dir, self._config.template_arguments)
        if (self._model_dir / "adapter_config.json").exists():
            raise ConfigError(
                f"self_distillation.generation.backend is vllm, but the seed model {self._model_dir} is an adapter; "
                "merge it into its base model first (axolotl merge-lora), or set backend: transformers"
            )
        find_vllm(self._vllm_config.python)
        check_arguments(self._vllm_config)

    def _base_urls(self) -> tuple[str, ...]:
        if self._child is None:
            self._child = VLLMServer(self._model_dir, self._vllm_config)
        return (self._child.url,)

    async def _shake_hands(self, server: Server, max_retries: int) -> None:
        """Learn how much the model takes; that it is the seed model, and how it splits texts, is certain."""
        listed = await server.probe("/models", None, max_retries)
        server.model = NAME
        server.max_tokens = listed["data"][0]["max_model_len"]

    def generate(self, batches: Iterable[list[Prompt]]) -> Iterator[tuple[list[Prompt], list[Answer]]]:
        """Yield each batch with its answers as soon as it is done, in any order.

        A prompt that leaves no room for an answer, or that the chat template refuses, gets one with an ``error``.

        Raises:
            BackendError: vLLM did not start, or ended.
        """
        with self._child_explained():
            yield from super().generate(batches)

    def answer_nll(self, targets: Sequence[tuple[Target, str]]) -> list[float] | None:
        """Return the mean negative log-likelihood per token of each text as the answer to its target's context.

        The end-of-turn token counts. Of a conversation longer than the model takes, the beginning is left out. It is
        NaN where the chat template refuses the context.

        Raises:
            BackendError: vLLM did not start, or ended.
        """
        with self._child_explained():
            return super().answer_nll(targets)

    @contextmanager
    def _child_explained(self) -> Iterator[None]:
        try:
            yield
        except ServerError as err:
            if self._child is None or not self._child.has_ended(_END_S):
                raise
            raise self._child.failure("ended") from err

    async def _ask(self, server: Server, request: Request) -> Answer:
        prompt = request[2]
        try:
            ids = prompt_ids(self._tokenizer, prompt.messages, self._config.template_arguments)
        except DatasetError as err:
            return Answer("", "error", 0, error=str(err), is_final=True)
        room = server.max_tokens - len(ids)
        if room <= 0:
            reason = f"the prompt has {len(ids)} tokens, of {server.max_tokens} that the model takes"
            return Answer("", "error", 0, error=reason, is_final=True)
        said = await server.ask("/completions", self._completion_request(prompt, ids, room))
        new_ids, mean_logprob = read_completion(said)
        read = read_answer(self._tokenizer, new_ids, self._end_ids, prompt.answer_prefix)
        return Answer(*read, mean_logprob=mean_logprob)

    def _completion_request(self, prompt: Prompt, ids: list[int], room: int) -> dict[str, Any]:
        temperature = attempt_temperature(self._config.temperature, prompt.attempt)
        sampled = {
            "seed": sampling_seed(self._config.seed, prompt.messages, prompt.attempt),
            "top_p": self._config.top_p,
            "top_k": self._config.top_k or -1,
            "logprobs": 0,  # of the chosen token alone
        }
        return {
            "model": NAME,
            "prompt": ids,
            "max_tokens": min(self._config.max_new_tokens, room),
            "temperature": temperature,
            "repetition_penalty": self._saved_settings.get("repetition_penalty") or 1.0,  # transformers heeds it too
            "stop_token_ids": self._end_ids,
            "return_token_ids": True,  # the text would lack special tokens that mark a function call or a thought
            **(sampled if temperature > 0 else {}),
        }

    def close(self) -> None:
        """End the server and free its memory."""
        super().close()
        if self._child is not None:
            self._child.close()
            self._child = None
