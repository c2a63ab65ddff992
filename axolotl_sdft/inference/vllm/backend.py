"""Generates with vLLM on this rank's own GPUs, from the same prompts, token for token, as with transformers."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from axolotl_sdft.config import VLLMGeneration
from axolotl_sdft.core.errors import ConfigError, DatasetError
from axolotl_sdft.inference.interfaces import Answer, Message, Prompt, Target, attempt_temperature, sampling_seed
from axolotl_sdft.inference.openai.chat_protocol import finish_of
from axolotl_sdft.inference.prompts import (
    answer_ids,
    end_ids,
    load_tokenizer,
    prompt_ids,
    read_answer,
    require_chat_template,
    require_template_arguments,
    saved_generation_settings,
)
from axolotl_sdft.inference.vllm.engine import Engine, check_vllm

_BATCH_PROMPTS = 64  # only what is dealt to the ranks and written at a time: vLLM itself sees one stream of prompts


@dataclass(frozen=True)
class _Open:
    """A batch, some answers of which may still be missing."""

    prompts: list[Prompt]
    answers: list[Answer | None]

    @property
    def done(self) -> list[Answer] | None:
        answers = [answer for answer in self.answers if answer is not None]
        return answers if len(answers) == len(self.prompts) else None


class VLLMBackend:
    """One engine per rank. It starts on first use and is kept full: batches follow each other without a gap."""

    def __init__(self, model_dir: Path, config: VLLMGeneration) -> None:
        self._model_dir = model_dir
        self._config = config
        self._running: Engine | None = None

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._model_dir, chat_template=self._config.chat_template)

    @cached_property
    def _saved_settings(self) -> dict[str, Any]:
        return saved_generation_settings(self._model_dir)

    @cached_property
    def _end_ids(self) -> list[int]:
        return end_ids(self._saved_settings.get("eos_token_id"), self._tokenizer, self._config.template_arguments)

    @property
    def _engine(self) -> Engine:
        if self._running is None:
            self._running = Engine(self._model_dir, self._config.dtype, self._config.vllm_args)
        return self._running

    def check(self) -> None:
        """Find what would keep this backend from answering, without loading weights.

        Raises:
            ConfigError: The seed model has no chat template, or one that fails with ``chat_template_kwargs``, or is an
                adapter, ``vllm_args`` holds what vLLM does not know, or there are fewer GPUs than the ranks need.
            MissingExtraError: vLLM is not installed.
        """
        require_chat_template(self._tokenizer, self._model_dir)
        require_template_arguments(self._tokenizer, self._model_dir, self._config.template_arguments)
        if (self._model_dir / "adapter_config.json").exists():
            raise ConfigError(
                f"self_distillation.generation.backend is vllm, but the seed model {self._model_dir} is an adapter; "
                "merge it into its base model first (axolotl merge-lora), or set backend: transformers"
            )
        check_vllm(self._config.vllm_args)

    def batches(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        """Split prompts, in the order of their keys, into batches of 64."""
        ordered = sorted(prompts, key=lambda prompt: (prompt.attempt, prompt.key))
        return [ordered[start : start + _BATCH_PROMPTS] for start in range(0, len(ordered), _BATCH_PROMPTS)]

    def generate(self, batches: Iterable[list[Prompt]]) -> Iterator[tuple[list[Prompt], list[Answer]]]:
        """Yield each batch with its answers as soon as its last one is there.

        A prompt that leaves no room for an answer, or that the chat template refuses, gets one with an ``error``.
        """
        refused: list[_Open] = []  # batches of which the template has refused every prompt
        for (batch, place, num_tokens), output in self._engine.run(self._requests(batches, refused)):
            batch.answers[place] = self._no_room(num_tokens) if output is None else self._answer(output)
            if (answers := batch.done) is not None:
                yield batch.prompts, answers
        yield from ((batch.prompts, batch.done or []) for batch in refused)

    def _requests(
        self, batches: Iterable[list[Prompt]], refused: list[_Open]
    ) -> Iterator[tuple[tuple[_Open, int, int], list[int], Any]]:
        for prompts in batches:
            batch = _Open(prompts, [None] * len(prompts))
            asked = []
            for place, prompt in enumerate(prompts):
                try:
                    asked.append((place, prompt, self._prompt_ids(prompt.messages)))
                except DatasetError as err:
                    batch.answers[place] = Answer("", "error", 0, error=str(err), is_final=True)
            if not asked:
                refused.append(batch)
            for place, prompt, ids in asked:
                yield (batch, place, len(ids)), ids, self._sampling(prompt)

    def _prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return prompt_ids(self._tokenizer, messages, self._config.template_arguments)

    def _sampling(self, prompt: Prompt) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        temperature = attempt_temperature(self._config.temperature, prompt.attempt)
        is_sampled = temperature > 0
        return SamplingParams(
            max_tokens=self._config.max_new_tokens,
            temperature=temperature,
            top_p=self._config.top_p,
            seed=sampling_seed(self._config.seed, prompt.messages, prompt.attempt) if is_sampled else None,
            repetition_penalty=self._saved_settings.get("repetition_penalty") or 1.0,  # transformers heeds it too
            logprobs=0 if is_sampled else None,  # 0: of the chosen token alone
            stop_token_ids=self._end_ids,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _no_room(self, num_tokens: int) -> Answer:
        limit = self._engine.max_tokens
        reason = f"the prompt has {num_tokens} tokens, of {limit} that the model takes"
        return Answer("", "error", 0, error=reason, is_final=True)

    def _answer(self, output: Any) -> Answer:
        written = output.outputs[0]
        if finish_of(written.finish_reason) is None:  # such as abort
            return Answer("", "error", 0, error=f"no finished answer (finish_reason {written.finish_reason!r})")
        ids = list(written.token_ids)
        total = written.cumulative_logprob  # None unless it was asked for
        mean_logprob = total / len(ids) if ids and total is not None else None
        return Answer(*read_answer(self._tokenizer, ids, self._end_ids), mean_logprob=mean_logprob)

    def answer_nll(self, targets: Sequence[tuple[Target, str]]) -> list[float]:
        """Return the mean negative log-likelihood per token of each text as the answer to its target's context.

        The end-of-turn token counts. Of a conversation longer than the model takes, the beginning is left out. It is
        NaN where the chat template refuses the context.
        """
        nll = [math.nan] * len(targets)
        for (index, num_answer), output in self._engine.run(self._scorings(targets)):
            answer = list(zip(output.prompt_token_ids, output.prompt_logprobs, strict=True))[-num_answer:]
            nll[index] = -math.fsum(choices[token].logprob for token, choices in answer) / num_answer
        return nll

    def _scorings(self, targets: Iterable[tuple[Target, str]]) -> Iterator[tuple[tuple[int, int], list[int], Any]]:
        from vllm import SamplingParams

        # vLLM has no likelihoods without generating: one token, which is thrown away, and which needs room.
        scoring = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        room = self._engine.max_tokens - 1
        for index, (target, text) in enumerate(targets):
            answer = answer_ids(self._tokenizer, text, self._config.template_arguments)[: room - 1]
            try:
                ids = [*self._prompt_ids(target.context), *answer][-room:]
            except DatasetError:
                continue
            yield (index, len(answer)), ids, scoring

    def close(self) -> None:
        """End the engine and free its memory."""
        if self._running is not None:
            self._running.close()
            self._running = None
