"""Generates in this process with transformers: the embedded default."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from axolotl_sdft.config import TransformersGeneration
from axolotl_sdft.core.errors import CheckpointError, DatasetError
from axolotl_sdft.inference.forwarding import free_memory
from axolotl_sdft.inference.interfaces import Answer, Message, Prompt, Target
from axolotl_sdft.inference.likelihood import ScoredIds, mean_nll
from axolotl_sdft.inference.loading import context_length, load_seed_model
from axolotl_sdft.inference.local.decoding import ContinuousDecoder
from axolotl_sdft.inference.local.plain_decoding import PlainDecoder
from axolotl_sdft.inference.local.sequence_cache import use_grouped_attention, use_plain_attention
from axolotl_sdft.inference.local.sequences import NOT_FINITE, ActiveSequence, TokenChooser, new_sequence
from axolotl_sdft.inference.local.support import predicts_numbers, unsupported_reason
from axolotl_sdft.inference.prompts import (
    answer_ids,
    end_ids,
    load_tokenizer,
    prompt_ids,
    read_answer,
    require_chat_template,
    require_template_arguments,
    token_without_embedding,
)

LOG = logging.getLogger(__name__)

_Batch: TypeAlias = tuple[list[Prompt], list[ActiveSequence]]

_BATCH_ROWS = 16  # rows that are handed out, written down and dealt to the ranks together
_TRIAL = ({"role": "user", "content": "Name three rivers, and say in a sentence each where they begin and end."},)


class TransformersBackend:
    """Needs nothing but the seed model itself. Batches flow into each other: no row waits for a slower one."""

    def __init__(self, model_dir: Path, config: TransformersGeneration, model: Any = None) -> None:
        """Start with nothing loaded.

        Args:
            model_dir: Folder of the model.
            config: How answers are written.
            model: The model, loaded before. It comes back as it was when the backend is closed.
        """
        self._model_dir = model_dir
        self._config = config
        self._loaded_model = model
        self._attention = None if model is None else model.config._attn_implementation
        self._made_decoder: ContinuousDecoder | PlainDecoder | None = None

    @cached_property
    def _tokenizer(self) -> Any:
        config = self._config
        return load_tokenizer(
            self._model_dir, trust_remote_code=bool(config.trust_remote_code), chat_template=config.chat_template
        )

    @property
    def _model(self) -> Any:
        if self._loaded_model is None:
            self._loaded_model = load_seed_model(self._model_dir, self._config)
        return self._loaded_model

    def check(self) -> None:
        """Raise ConfigError when the seed model has no chat template, or one that fails with the arguments given."""
        require_chat_template(self._tokenizer, self._model_dir, self._config.chat_template)
        require_template_arguments(self._tokenizer, self._model_dir, self._config.template_arguments)

    def load(self) -> None:
        """Load the model now rather than with the first answer.

        Raises:
            CheckpointError: It can't be loaded, or predicts no numbers.
        """
        _ = self._decoder

    def batches(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        """Split prompts, longest first, so that rows times (prompt + new tokens) stays within ``max_batch_tokens``."""
        lengths = {prompt.key: self._length(prompt.messages) for prompt in prompts}
        ordered = sorted(prompts, key=lambda prompt: (-lengths[prompt.key], prompt.key))
        batches: list[list[Prompt]] = []
        capacity = 0
        for prompt in ordered:
            if not batches or len(batches[-1]) >= capacity:
                row_tokens = lengths[prompt.key] + self._config.max_new_tokens
                fitting = max(1, self._config.max_batch_tokens // row_tokens)
                capacity = min(self._config.max_batch_size, _BATCH_ROWS, fitting)
                batches.append([])
            batches[-1].append(prompt)
        return batches

    def generate(self, batches: Iterable[list[Prompt]]) -> Iterator[tuple[list[Prompt], list[Answer]]]:
        """Yield each batch with its answers as soon as its last row is done.

        Each row is sampled with a random seed of its own. A prompt that leaves no room for an answer, that does not fit
        into memory alone, that has a token without an embedding, or that the chat template refuses in any shape, gets
        an answer with an ``error``.
        """
        opened: list[_Batch] = []
        for _ in self._decoder.run(self._rows(batches, opened)):
            yield from self._closed(opened)
        yield from self._closed(opened)

    def _rows(self, batches: Iterable[list[Prompt]], opened: list[_Batch]) -> Iterator[ActiveSequence]:
        """Open batch after batch, and yield the rows that have to be written."""
        limit = context_length(self._model)
        for prompts in batches:
            rows = [self._row(prompt, limit) for prompt in prompts]
            opened.append((prompts, rows))
            yield from (row for row in rows if not row.is_done)

    def _row(self, prompt: Prompt, limit: int | None) -> ActiveSequence:
        try:
            return new_sequence(prompt, self._embedded(self._prompt_ids(prompt.messages)), self._config, limit)
        except DatasetError as err:
            row = new_sequence(prompt, [], self._config, limit)
            row.fail(str(err), is_final=True)
            return row

    def _length(self, messages: Sequence[Message]) -> int:
        """Return how many tokens a prompt has; 0 where the chat template refuses it."""
        try:
            return len(self._prompt_ids(messages))
        except DatasetError:
            return 0

    def _closed(self, opened: list[_Batch]) -> Iterator[tuple[list[Prompt], list[Answer]]]:
        """Take the batches that are done out of those opened, and yield them with their answers."""
        done = [batch for batch in opened if all(row.is_done for row in batch[1])]
        opened[:] = [batch for batch in opened if batch not in done]
        for prompts, rows in done:
            yield prompts, [self._answer(row) for row in rows]

    def _answer(self, row: ActiveSequence) -> Answer:
        if row.error is not None:
            return Answer("", "error", 0, error=row.error, is_final=row.is_final)
        read = read_answer(self._tokenizer, row.new_ids, self._end_ids, row.prompt.answer_prefix)
        return Answer(*read, mean_logprob=row.mean_logprob)

    @property
    def _decoder(self) -> ContinuousDecoder | PlainDecoder:
        if self._made_decoder is None:
            self._made_decoder = self._make_decoder()
        return self._made_decoder

    def _make_decoder(self) -> ContinuousDecoder | PlainDecoder:
        """Return the fast decoder where the model fits it, else the one that leaves all to transformers."""
        penalty = getattr(self._model.generation_config, "repetition_penalty", None) or 1.0
        choose = TokenChooser(self._config.top_p, penalty, top_k=self._config.top_k)
        limits = (self._config.max_batch_size, self._config.max_batch_tokens)
        reason = self._unfit_because()
        if reason is None:
            return ContinuousDecoder(self._model, choose, self._end_ids, *limits)
        LOG.info("%s is decoded with transformers' generate, since %s", self._model_dir, reason)
        return PlainDecoder(self._model, choose, self._end_ids, *limits, tokenizer=self._tokenizer)

    def _unfit_because(self) -> str | None:
        try:
            trial_ids = self._embedded(self._prompt_ids(_TRIAL))
        except DatasetError as err:
            raise CheckpointError(f"{self._model_dir} can't be asked: {err}") from err
        is_grouped = use_grouped_attention(self._model)
        reason = unsupported_reason(self._model, trial_ids)
        if reason is not None and is_grouped:
            use_plain_attention(self._model)
            reason = unsupported_reason(self._model, trial_ids)
        if reason is not None and not predicts_numbers(self._model, trial_ids):
            raise CheckpointError(NOT_FINITE)
        return reason

    @cached_property
    def _end_ids(self) -> list[int]:
        return end_ids(self._model.generation_config.eos_token_id, self._tokenizer, self._config.template_arguments)

    def _prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return prompt_ids(self._tokenizer, messages, self._config.template_arguments)

    def _embedded(self, ids: list[int]) -> list[int]:
        """Return these tokens, of which the model knows each; an unknown one would end the run, on a GPU for good."""
        fault = token_without_embedding(self._tokenizer, ids, self._model.config)
        if fault:
            raise DatasetError(fault)
        return ids

    def answer_nll(self, targets: Sequence[tuple[Target, str]]) -> list[float]:
        """Return the mean negative log-likelihood per token of each text as the answer to its target's context.

        The end-of-turn token counts. Of a conversation longer than the model takes, the beginning is left out. It is
        NaN where the chat template refuses the context, or a token has no embedding.
        """
        limit = context_length(self._model)
        texts: dict[int, ScoredIds] = {}
        for index, (target, text) in enumerate(targets):
            answer = answer_ids(self._tokenizer, text, self._config.template_arguments)
            answer = answer[: None if limit is None else limit - 1]
            with suppress(DatasetError):
                ids = self._embedded([*self._prompt_ids(target.context), *answer])
                texts[index] = ScoredIds(ids if limit is None else ids[-limit:], len(answer))
        measured = dict(zip(texts, mean_nll(self._model, list(texts.values())), strict=True))
        return [measured.get(index, math.nan) for index in range(len(targets))]

    def close(self) -> None:
        """Free the model's memory, or let a model that was given attend as it did."""
        if self._attention is not None and self._loaded_model.config._attn_implementation != self._attention:
            self._loaded_model.set_attn_implementation(self._attention)
        self._loaded_model = self._made_decoder = None
        free_memory()
