"""Computes the keys and values of prompts, of what they begin with in common only once.

Shapes: B rows, T tokens, P tokens of the shared beginning, H heads, D head size.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from axolotl_sdft.inference.forwarding import Forward
from axolotl_sdft.inference.local.sequences import Row

# Padded tokens that go through the model at once: as few as keep it busy, for the sake of memory and of little padding.
_BATCH_TOKENS_ON_CPU, _BATCH_TOKENS = 1024, 4096
_LEAST_SHARED = 16  # a shorter beginning saves less than the mask costs that it takes


class Prefill:
    """Computes all but the last token of each row: that one is the first to be decoded.

    The longest beginning that the rows of a group share, such as a system prompt and worked examples, is kept for the
    groups that follow.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._shared_ids: list[int] = []
        self._shared_states: list[tuple[Tensor, Tensor]] = []

    def __call__(self, rows: Sequence[Row]) -> Iterator[tuple[DynamicCache, list[int]]]:
        """Yield, for some rows after the other, their keys and values and how many tokens of each row these are.

        Each row begins in the first column, and what follows its tokens there is of no use.
        """
        num_shared = self._num_shared([row.ids[:-1] for row in rows])
        most_tokens = _BATCH_TOKENS_ON_CPU if self._forward.device.type == "cpu" else _BATCH_TOKENS
        for group in _within(rows, most_tokens, num_shared):
            yield self._states(group, num_shared), [len(row.ids) - 1 for row in group]

    def forget(self) -> None:
        """Free the shared beginning."""
        self._shared_ids, self._shared_states = [], []

    def _num_shared(self, rows: list[list[int]]) -> int:
        """Return how many tokens of a shared beginning are known, after learning of a longer one that pays."""
        own = rows[0][: min(_num_alike(rows[0], row) for row in rows)]
        known = _num_alike(self._shared_ids, own)
        if len(rows) > 1 and len(own) >= known + _LEAST_SHARED:
            cache = DynamicCache()
            self._forward(input_ids=torch.tensor([own]), past_key_values=cache)
            self._shared_ids, known = own, len(own)
            self._shared_states = [(layer.keys, layer.values) for layer in cache.layers]
        return known if known >= _LEAST_SHARED else 0

    def _states(self, rows: Sequence[Row], num_shared: int) -> DynamicCache:
        cache = DynamicCache()
        if num_shared:
            for layer, states in enumerate(self._shared_states):
                key_BHPD, value_BHPD = (part[:, :, :num_shared].expand(len(rows), -1, -1, -1) for part in states)
                cache.update(key_BHPD, value_BHPD, layer)
        self._forward(
            input_ids=_padded([row.ids[num_shared:-1] or row.ids[-1:] for row in rows]), past_key_values=cache
        )
        return cache


def _num_alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two rows begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def _within(rows: Sequence[Row], most_tokens: int, num_shared: int) -> Iterator[list[Row]]:
    """Yield runs of rows whose padded size, less what is shared, stays within a number of tokens."""
    group: list[Row] = []
    for row in rows:
        longest = max(len(other.ids) for other in (*group, row)) - num_shared
        if group and (len(group) + 1) * longest > most_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _padded(rows: Sequence[list[int]]) -> Tensor:
    """Return rows of tokens [B, T], filled up with a token of their own on the right, where no token before sees it."""
    width = max(map(len, rows))
    return torch.tensor([row + row[-1:] * (width - len(row)) for row in rows])
