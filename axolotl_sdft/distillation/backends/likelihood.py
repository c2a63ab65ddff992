"""Measures how likely answers are under the seed model, without ever holding all logits.

Shapes: B rows, T tokens, N answer tokens of all rows, C of them in a chunk, D hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from axolotl_sdft.distillation.backends.forwarding import innermost, input_device
from axolotl_sdft.distillation.backends.memory import free_memory, is_out_of_memory
from axolotl_sdft.patching import patched_forward

_BATCH_TOKENS = 2048  # padded tokens that go through the model at once
_CHUNK_LOGITS = 2**25  # numbers of a chunk in float32: 128 MiB


@dataclass(frozen=True)
class ScoredIds:
    """A text whose last tokens are an answer."""

    ids: list[int]
    num_answer: int


def mean_nll(model: Any, texts: Sequence[ScoredIds]) -> list[float]:
    """Return the mean negative log-likelihood of each text's answer tokens, in nats per token."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index].ids))
    values = [0.0] * len(texts)
    for batch in _within_token_budget(order, [len(text.ids) for text in texts]):
        for index, value in zip(batch, _measured(model, [texts[index] for index in batch]), strict=True):
            values[index] = value
    return values


def _measured(model: Any, texts: Sequence[ScoredIds]) -> list[float]:
    """Return the values of texts that go through the model together, or in halves where memory runs out."""
    try:
        nll_N = _answer_tokens_nll(innermost(model), texts)
    except (RuntimeError, MemoryError) as err:
        if len(texts) == 1 or not is_out_of_memory(err):
            raise
        nll_N = None
    if nll_N is None:
        free_memory()
        half = len(texts) // 2
        return _measured(model, texts[:half]) + _measured(model, texts[half:])
    return [float(part.double().mean()) for part in nll_N.split([text.num_answer for text in texts])]


@torch.inference_mode()
def _answer_tokens_nll(model: Any, texts: Sequence[ScoredIds]) -> Tensor:
    width = max(len(text.ids) for text in texts)
    # Filled up on the right, where no token before sees it; so no mask is needed.
    ids_BT = torch.tensor([text.ids + text.ids[-1:] * (width - len(text.ids)) for text in texts])
    ends = [len(text.ids) for text in texts]
    rows_N = torch.cat([torch.full((text.num_answer,), row) for row, text in enumerate(texts)])
    places_N = torch.cat([torch.arange(end - text.num_answer, end) for end, text in zip(ends, texts, strict=True)])
    answers_N = ids_BT[rows_N, places_N]
    return torch.cat(
        [
            F.cross_entropy(logits_CV.float(), answers_C.to(logits_CV.device), reduction="none").cpu()
            for logits_CV, answers_C in _chunks(model, ids_BT, rows_N, places_N - 1, answers_N)
        ]
    )


def _chunks(
    model: Any, ids_BT: Tensor, rows_N: Tensor, places_N: Tensor, answers_N: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits at the given places, a chunk at a time, with what is predicted there.

    The body runs once. The model's own forward turns hidden states into logits, with whatever it does beside the head.
    """
    placed_BT = ids_BT.to(input_device(model))
    if model.base_model is model:
        logits_BTV = model(input_ids=placed_BT, use_cache=False).logits
        yield logits_BTV[rows_N.to(logits_BTV.device), places_N.to(logits_BTV.device)], answers_N
        return
    output = model.base_model(input_ids=placed_BT, use_cache=False)
    hidden_BTD = output[0]
    hidden_ND = hidden_BTD[rows_N.to(hidden_BTD.device), places_N.to(hidden_BTD.device)]
    chunk_tokens = max(1, _CHUNK_LOGITS // model.config.get_text_config(decoder=True).vocab_size)
    for hidden_CD, answers_C in zip(hidden_ND.split(chunk_tokens), answers_N.split(chunk_tokens), strict=True):
        shown = type(output)(last_hidden_state=hidden_CD[None])
        with patched_forward(model.base_model, lambda *_args, _shown=shown, **_kwargs: _shown):
            yield model(input_ids=placed_BT, use_cache=False).logits[0], answers_C


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
