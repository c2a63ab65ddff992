"""Keys and values of many rows, written in place, and attention that does not expand those which query heads share.

With a mask, transformers copies keys and values for every query head. For a single query, the heads of a group can
stand in the place of queries instead: same sums, no copies.

Shapes: B rows, N query heads, H key heads, G query heads per key head, T tokens, D head size.

All rows end in the same column, as if they were padded on the left, so that what transformers makes of padding, windows
and positions holds here too. Columns of no row hold zeros or what is left of previous rows; they are masked.

Shapes: R rows of room, B rows in use, H heads, W columns of room, T tokens, D head size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
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


_MORE_COLUMNS = 64  # room is made for so many tokens at a time: each time, all rows are copied once


class RowCache(Cache):
    """A cache for decoding one token per row at a time."""

    layers: list["_RowLayer"]

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.lengths: list[int] = []
        """Tokens of each row, without the one that is being decoded."""

        self.column = 0
        """Where the token that is being decoded stands."""

        self.num_rows = self.num_columns = 0
        """How many there is room for."""

    @property
    def first_column(self) -> int:
        """The first column that any row uses."""
        return self.column - max(self.lengths)

    def attention_mask(self) -> Tensor:
        """Return what each row attends to, [B, T]; the last column is the token that is being decoded."""
        width = max(self.lengths) + 1
        start_B = torch.tensor([width - 1 - length for length in self.lengths])
        return (torch.arange(width) >= start_B[:, None]).long()

    def admit(self, prefilled: Cache, lengths: Sequence[int]) -> None:
        """Take in further rows, behind those that are there.

        Args:
            prefilled: Keys and values of their tokens, each row's beginning in the first column.
            lengths: How many tokens of each row count.
        """
        self.make_room(len(lengths), max(lengths))
        if not self.layers:
            self.layers = [_RowLayer(self, layer.keys, layer.values) for layer in prefilled.layers]
        for own, other in zip(self.layers, prefilled.layers, strict=True):
            own.admit(other.keys, other.values, lengths)
        self.lengths.extend(lengths)

    def remove(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            columns = slice(self.column - self.lengths[last], self.column)
            for layer in self.layers:
                for states_RHWD in (layer.keys, layer.values):
                    states_RHWD[row, :, columns] = states_RHWD[last, :, columns]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def advance(self) -> None:
        """Count the token that was just decoded, in every row."""
        self.lengths = [length + 1 for length in self.lengths]
        self.column += 1

    def make_room(self, num_new: int = 0, longest_new: int = 0) -> None:
        """Make sure that so many rows more, up to so long, and one more token of every row can be written."""
        num_rows = len(self.lengths) + num_new
        longest = max([*self.lengths, longest_new])
        if num_rows <= self.num_rows and longest <= self.column < self.num_columns:
            return
        self.num_rows, self.num_columns = max(num_rows, self.num_rows), longest + _MORE_COLUMNS
        for layer in self.layers:
            layer.move(self.num_rows, self.num_columns, longest)
        self.column = longest


class _RowLayer(CacheLayerMixin):
    """One layer's keys and values."""

    is_sliding = False  # older tokens than a window are kept, and masked
    keys: Tensor
    values: Tensor

    def __init__(self, rows: RowCache, key_BHTD: Tensor, value_BHTD: Tensor) -> None:
        super().__init__()
        self._rows = rows
        self.keys = _room(key_BHTD, rows.num_rows, rows.num_columns)
        self.values = _room(value_BHTD, rows.num_rows, rows.num_columns)
        self.is_initialized = True

    def admit(self, key_BHTD: Tensor, value_BHTD: Tensor, lengths: Sequence[int]) -> None:
        column, place = self._rows.column, len(self._rows.lengths)
        for row, length in enumerate(lengths):
            self.keys[place + row, :, column - length : column] = key_BHTD[row, :, :length]
            self.values[place + row, :, column - length : column] = value_BHTD[row, :, :length]

    def move(self, num_rows: int, num_columns: int, column: int) -> None:
        """Copy the rows in use into new room, so that they end before a column."""
        in_use = len(self._rows.lengths)
        longest = max(self._rows.lengths, default=0)
        columns = slice(self._rows.column - longest, self._rows.column)
        for name in ("keys", "values"):
            old_RHWD = getattr(self, name)
            new_RHWD = _room(old_RHWD, num_rows, num_columns)
            new_RHWD[:in_use, :, column - longest : column] = old_RHWD[:in_use, :, columns]
            setattr(self, name, new_RHWD)

    def lazy_initialization(self, *_args: Any, **_kwargs: Any) -> None:
        """Do nothing: room is made when rows join."""

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        rows, column = len(self._rows.lengths), self._rows.column
        self.keys[:rows, :, column : column + 1] = key_states
        self.values[:rows, :, column : column + 1] = value_states
        used = slice(self._rows.first_column, column + 1)
        return self.keys[:rows, :, used], self.values[:rows, :, used]

    def get_seq_length(self, *_args: Any) -> int:
        return max(self._rows.lengths)

    def get_mask_sizes(self, *_args: Any) -> tuple[int, int]:
        return max(self._rows.lengths) + 1, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in earlier releases of transformers


def _room(like_BHTD: Tensor, num_rows: int, num_columns: int) -> Tensor:
    # Zeros: a masked NaN, which free memory may hold, would spoil its row all the same.
    return like_BHTD.new_zeros(num_rows, like_BHTD.shape[1], num_columns, like_BHTD.shape[3])
