"""Measures how likely given tokens are under one model or several, without ever holding all logits.

The one routine for it: each stage says which tokens count, and what it makes of the logits of a chunk of them.

Shapes: B rows, T tokens, N answer tokens of all rows, C of them in a chunk, D hidden size, V vocabulary,
X one of the last two.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from axolotl_sdft.core.errors import is_out_of_memory
from axolotl_sdft.inference.forwarding import free_memory, innermost, input_device, patched_forward

_BATCH_TOKENS = 2048  # padded tokens that go through the model at once
_CHUNK_LOGITS = 2**25  # numbers of a chunk in float32: 128 MiB

_Value = TypeVar("_Value")

Run: TypeAlias = Callable[[Any, Tensor], Any]
"""Runs a model, or its body alone, on ids [B, T], and returns what it returns."""


@dataclass(frozen=True)
class ScoredIds:
    """A text whose last tokens are an answer."""

    ids: list[int]
    num_answer: int


@dataclass(frozen=True)
class AnswerBatch:
    """Texts that go through a model together, filled up to one length, and where the tokens are that count."""

    ids: Tensor
    """[B, T]."""

    rows: Tensor
    """Row of each answer token, text by text, [N]."""

    places: Tensor
    """Column of each answer token, [N]."""

    @classmethod
    def of(cls, texts: Sequence[ScoredIds]) -> "AnswerBatch":
        """Return the batch of these texts."""
        width = max(len(text.ids) for text in texts)
        # Filled up on the right, where no token before sees it; so no mask is needed.
        ids_BT = torch.tensor([text.ids + text.ids[-1:] * (width - len(text.ids)) for text in texts])
        rows_N = torch.cat([torch.full((text.num_answer,), row) for row, text in enumerate(texts)])
        ends = [(len(text.ids) - text.num_answer, len(text.ids)) for text in texts]
        return cls(ids_BT, rows_N, torch.cat([torch.arange(*end) for end in ends]))

    @property
    def answers(self) -> Tensor:
        """The answer tokens, [N]."""
        return self.ids[self.rows, self.places]


@torch.inference_mode()
def mean_nll(model: Any, texts: Sequence[ScoredIds]) -> list[float]:
    """Return the mean negative log-likelihood of each text's answer tokens, in nats per token."""

    def measured(batch: Sequence[ScoredIds]) -> list[float]:
        parts = tokens_nll(model, AnswerBatch.of(batch)).split([text.num_answer for text in batch])
        return [float(part.double().mean()) for part in parts]

    return measured_in_batches(texts, measured)


def measured_in_batches(
    texts: Sequence[ScoredIds], measured: Callable[[Sequence[ScoredIds]], list[_Value]]
) -> list[_Value]:
    """Return a value for each text, in their order, measured in batches of about equal length within a token budget.

    A batch for which memory runs out is halved. A text that does not fit alone raises what ran out.
    """
    order = sorted(range(len(texts)), key=lambda index: len(texts[index].ids))
    values: dict[int, _Value] = {}
    for batch in _within_token_budget(order, [len(text.ids) for text in texts]):
        values.update(zip(batch, _in_halves([texts[index] for index in batch], measured), strict=True))
    return [values[index] for index in range(len(texts))]


def _in_halves(texts: Sequence[ScoredIds], measured: Callable[[Sequence[ScoredIds]], list[_Value]]) -> list[_Value]:
    """Return the values of texts that go through the model together, or in halves where memory runs out."""
    try:
        return measured(texts)
    except (RuntimeError, MemoryError) as err:
        if len(texts) == 1 or not is_out_of_memory(err):
            raise
    free_memory()
    half = len(texts) // 2
    return _in_halves(texts[:half], measured) + _in_halves(texts[half:], measured)


def _run(module: Any, ids_BT: Tensor) -> Any:
    return module(input_ids=ids_BT, use_cache=False)


def tokens_nll(model: Any, batch: AnswerBatch, run: Run = _run) -> Tensor:
    """Return the negative log-likelihood of each answer token in nats, [N], on the CPU, in float32 or wider.

    Args:
        model: What predicts them.
        batch: The tokens, at least one.
        run: Runs the model where it needs more than the ids, such as a mask.
    """
    return torch.cat([_nll(logits_CV, answers_C) for (logits_CV,), answers_C in answer_chunks([model], batch, run)])


def _nll(logits_CV: Tensor, answers_C: Tensor) -> Tensor:
    wide_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    return F.cross_entropy(wide_CV, answers_C.to(wide_CV.device), reduction="none").cpu()


def answer_chunks(
    models: Sequence[Any], batch: AnswerBatch, run: Run = _run
) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Yield the logits of each model, [C, V], from which answer tokens are predicted, and these tokens, [C].

    The body of each model runs once. So many tokens are a chunk that the logits of one model take 128 MiB in float32.

    Args:
        models: Each may be on a device of its own.
        batch: The tokens.
        run: Runs a model where it needs more than the ids.
    """
    inner: list[Any] = [innermost(model) for model in models]
    widest = max(model.config.get_text_config(decoder=True).vocab_size for model in inner)
    chunk_tokens = max(1, _CHUNK_LOGITS // widest)
    logits = [_answer_logits(model, batch, chunk_tokens, run) for model in inner]
    yield from zip(zip(*logits, strict=True), batch.answers.split(chunk_tokens), strict=True)


def _answer_logits(model: Any, batch: AnswerBatch, chunk_tokens: int, run: Run) -> Iterator[Tensor]:
    """Yield the logits of so many answer tokens at a time, [C, V].

    The model's own forward turns hidden states into logits, with whatever it does beside the head.
    """
    placed_BT = batch.ids.to(input_device(model))
    if model.base_model is model:
        yield from _before_answers(run(model, placed_BT).logits, batch).split(chunk_tokens)
        return
    output = run(model.base_model, placed_BT)
    for hidden_CD in _before_answers(output[0], batch).split(chunk_tokens):
        shown = _with_hidden(output, hidden_CD[None])
        with patched_forward(model.base_model, lambda *_args, _shown=shown, **_kwargs: _shown):
            logits_CV = run(model, placed_BT).logits[0]
        yield logits_CV


def _with_hidden(output: Any, hidden_BTD: Tensor) -> Any:
    """Return what a body has returned, in the same form, with other hidden states."""
    if isinstance(output, tuple):
        return (hidden_BTD, *output[1:])
    return type(output)(last_hidden_state=hidden_BTD)


def _before_answers(values_BTX: Tensor, batch: AnswerBatch) -> Tensor:
    """Return what stands at the token before each answer token, [N, X]."""
    return values_BTX[batch.rows.to(values_BTX.device), batch.places.to(values_BTX.device) - 1]


def _within_token_budget(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield runs of indices, ascending in length, whose padded size stays within the budget."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[index] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
