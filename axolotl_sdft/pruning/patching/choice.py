"""Decides on text that no map was fitted on: how far is a pruned model from the seed model?

Shapes: B rows, T tokens of a row, C places of a chunk, V vocabulary.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from axolotl_sdft.pruning.patching.record import UnpatchableError
from axolotl_sdft.pruning.scoring.next_token import chunks_of, logits_by_chunk
from axolotl_sdft.pruning.scoring.running import ids_and_mask
from axolotl_sdft.pruning.scoring.scores import Batch

_INTERVAL = 10


def split_held_out(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Return the text to fit on, and a tenth of the rows, spread evenly, that is held out; at least one of two rows.

    Rows stay in their micro-batches, as they are padded.
    """
    lengths = [len(batch["input_ids"]) for batch in batches]
    total = sum(lengths)
    held = set(range(min(_INTERVAL, total) // 2, total, _INTERVAL)) if total > 1 else set()
    start, parts = 0, []
    for batch, length in zip(batches, lengths, strict=True):
        is_held = torch.tensor([row in held for row in range(start, start + length)], dtype=torch.bool)
        parts.append((_rows(batch, ~is_held), _rows(batch, is_held)))
        start += length
    kept, out = ([part for part in side if len(part["input_ids"])] for side in zip(*parts, strict=True))
    return kept, out


def _rows(batch: Batch, chosen_B: Tensor) -> Batch:
    names = [name for name in ("input_ids", "attention_mask") if name in batch]
    return {name: batch[name][chosen_B.to(batch[name].device)] for name in names}


def divergences(
    model: PreTrainedModel, held_out: Sequence[Batch], variants: Sequence[Callable[[], AbstractContextManager[None]]]
) -> list[float]:
    """Return KL(seed || variant) in nats per token of each variant of a model.

    Args:
        model: Runs as the seed model; logits of one variant and of the seed are held for one chunk of places at a time.
        held_out: Text that nothing was fitted on.
        variants: Each gives a context in which the model runs as that variant.

    Raises:
        UnpatchableError: The model has no logits for each token.
    """
    sums = [0.0] * len(variants)
    for batch in held_out:
        ids_BT, mask_BT = ids_and_mask(model, batch)
        seed_logits_of = logits_by_chunk(model, ids_BT, mask_BT)
        logits_of = []
        for variant in variants:
            with variant():
                logits_of.append(logits_by_chunk(model, ids_BT, mask_BT))
        for chunk in chunks_of(model, *ids_BT.shape):
            seed_BCV = _log_probabilities(seed_logits_of(chunk), ids_BT[:, chunk])
            for place, of_variant in enumerate(logits_of):
                variant_BCV = _log_probabilities(of_variant(chunk), ids_BT[:, chunk])
                kl_BC = F.kl_div(variant_BCV, seed_BCV, reduction="none", log_target=True).sum(-1)
                sums[place] += float(kl_BC[mask_BT[:, chunk].to(kl_BC.device)].double().sum())
    count = max(1, sum(num_tokens(batch) for batch in held_out))
    return [total / count for total in sums]


def num_tokens(batch: Batch) -> int:
    """Return how many tokens of a micro-batch are no padding."""
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()


def _log_probabilities(logits_BCV: Tensor, ids_BC: Tensor) -> Tensor:
    if logits_BCV.shape[:2] != ids_BC.shape:
        raise UnpatchableError(
            "the model gives no logits for each token, so whether a patch brings it nearer to the seed can't be told"
        )
    return logits_BCV.to(torch.promote_types(logits_BCV.dtype, torch.float32)).log_softmax(-1)
