"""Attention for decoding that does not expand the keys which several query heads share.

With a mask, transformers copies keys and values for every query head. For a single query, the heads of a group can
stand in the place of queries instead: same sums, no copies.

Shapes: B rows, N query heads, H key heads, G query heads per key head, T tokens, D head size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "sdft_grouped"
_BLOCK_ROWS = 8  # on a CPU, where a call costs little next to the columns of padding that it saves

_blocks: ContextVar[Sequence[tuple[slice, int]]] = ContextVar("blocks", default=())


def use_grouped_attention(model: Any) -> bool:
    """Have a model attend this way, and return whether it does: it has to use transformers' SDPA until now."""
    if not getattr(model, "_supports_attention_backend", False) or model.config._attn_implementation != "sdpa":
        return False
    AttentionInterface.register(_NAME, _grouped_attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.set_attn_implementation(_NAME)
    return True


def use_plain_attention(model: Any) -> None:
    """Have a model attend the usual way again."""
    model.set_attn_implementation("sdpa")


@contextmanager
def row_blocks(lengths: Sequence[int], device: torch.device) -> Iterator[None]:
    """Attend by blocks of rows while open, each without the columns that its own rows do not use.

    Args:
        lengths: Tokens of each row, without the one that is being decoded.
        device: Where the model runs. Only a CPU gains by blocks.
    """
    blocks: list[tuple[slice, int]] = []
    if device.type == "cpu":
        longest = max(lengths)
        for start in range(0, len(lengths), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            blocks.append((rows, longest - max(lengths[rows])))
    token = _blocks.set(blocks)
    try:
        yield
    finally:
        _blocks.reset(token)


def _grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    is_per_row = attention_mask is None or attention_mask.shape[:2] == (query.shape[0], 1)
    if query.shape[2] != 1 or not is_per_row or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    rows, heads, _, size = query.shape
    query_BHGD = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    parts = [
        F.scaled_dot_product_attention(
            query_BHGD[block],
            key[block, :, first:],
            value[block, :, first:],
            attn_mask=None if attention_mask is None else attention_mask[block, :, :, first:],
            scale=scaling,
        )
        for block, first in _blocks.get() or ((slice(None), 0),)
    ]
    output_BHGD = parts[0] if len(parts) == 1 else torch.cat(parts)
    return output_BHGD.reshape(rows, 1, heads, value.shape[-1]), None
