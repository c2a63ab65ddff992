"""Decodes many rows at once: a finished row leaves at the next step, and new rows take the places that get free.

Shapes: B rows, T tokens, P tokens of the shared beginning, H heads, D head size.

Shapes: B rows, V vocabulary.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from axolotl_sdft.core.errors import is_out_of_memory
from axolotl_sdft.inference.forwarding import Forward, free_memory
from axolotl_sdft.inference.local.sequence_cache import RowCache, row_blocks
from axolotl_sdft.inference.local.sequences import ActiveSequence, Choice

LOG = logging.getLogger(__name__)

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

    def __call__(self, rows: Sequence[ActiveSequence]) -> Iterator[tuple[DynamicCache, list[int]]]:
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
            self._forward(input_ids=torch.tensor([own]), cache=cache)
            self._shared_ids, known = own, len(own)
            self._shared_states = [(layer.keys, layer.values) for layer in cache.layers]
        return known if known >= _LEAST_SHARED else 0

    def _states(self, rows: Sequence[ActiveSequence], num_shared: int) -> DynamicCache:
        cache = DynamicCache()
        if num_shared:
            for layer, states in enumerate(self._shared_states):
                key_BHPD, value_BHPD = (part[:, :, :num_shared].expand(len(rows), -1, -1, -1) for part in states)
                cache.update(key_BHPD, value_BHPD, layer)
        self._forward(input_ids=_padded([row.ids[num_shared:-1] or row.ids[-1:] for row in rows]), cache=cache)
        return cache


def _num_alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two rows begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def _within(rows: Sequence[ActiveSequence], most_tokens: int, num_shared: int) -> Iterator[list[ActiveSequence]]:
    """Yield runs of rows whose padded size, less what is shared, stays within a number of tokens."""
    group: list[ActiveSequence] = []
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


_JOINING_SHARE = 8  # new rows wait until they are this part of all: fewer at a time would leave hardware idle


class ContinuousDecoder:
    """Writes rows to their ends, as many at once as the settings and the memory allow.

    Args:
        model: A model that fits, see :mod:`~axolotl_sdft.inference.local.support`.
        choose: Chooses each row's next token from the logits [B, V].
        ends: Tokens that end an answer.
        most_rows: Most rows at once.
        most_tokens: Most rows at once times the tokens that the longest of them may grow to.
    """

    def __init__(
        self,
        model: Any,
        choose: Callable[[Tensor, Sequence[ActiveSequence]], list[Choice]],
        ends: Collection[int],
        most_rows: int,
        most_tokens: int,
    ) -> None:
        self._forward = Forward(model)
        self._prefill = Prefill(self._forward)
        self._choose, self._ends = choose, frozenset(ends)
        self._most_rows, self._most_tokens = most_rows, most_tokens

    def run(self, rows: Iterable[ActiveSequence]) -> Iterator[ActiveSequence]:
        """Yield each row when it is done. Rows are drawn as places get free.

        Where memory runs out, all rows in flight are put back, and half as many go on from where they were. A row that
        does not fit alone fails.
        """
        waiting = _Waiting(rows)
        live: list[ActiveSequence] = []
        cache = RowCache()
        while True:
            joining = self._joining(waiting, live)
            in_flight = [*live, *joining]
            if not in_flight:
                return
            finished = self._advanced(live, joining, cache)
            if finished is None:
                cache = RowCache()
                live.clear()
                finished = self._after_running_out(in_flight, waiting)
            yield from finished

    def _joining(self, waiting: "_Waiting", live: Sequence[ActiveSequence]) -> list[ActiveSequence]:
        """Draw the rows that are to join now."""
        joining: list[ActiveSequence] = []
        longest = max((row.most_ids for row in live), default=0)
        while (row := waiting.next()) is not None:
            longest = max(longest, row.most_ids)
            num_rows = len(live) + len(joining) + 1
            if num_rows > 1 and (num_rows > self._most_rows or num_rows * longest > self._most_tokens):
                waiting.put_back([row])
                break
            joining.append(row)
        if row is not None and live and len(joining) < self._most_rows // _JOINING_SHARE:
            waiting.put_back(joining)
            return []
        return joining

    @torch.inference_mode()
    def _advanced(
        self, live: list[ActiveSequence], joining: Sequence[ActiveSequence], cache: RowCache
    ) -> list[ActiveSequence] | None:
        """Write one token in each row, and return the rows that this ended; None when memory ran out."""
        try:
            place = 0
            for prefilled, lengths in self._prefill(joining) if joining else ():
                cache.admit(prefilled, lengths)
                live.extend(joining[place : place + len(lengths)])
                place += len(lengths)
            logits_BV = self._decoded(live, cache)
            choices = self._choose(logits_BV, live)
        except (RuntimeError, MemoryError) as err:
            if not is_out_of_memory(err):
                raise
            return None
        for row, (token, logprob) in zip(live, choices, strict=True):
            row.append(token, logprob, self._ends)
        return _leaving(live, cache)

    def _decoded(self, live: Sequence[ActiveSequence], cache: RowCache) -> Tensor:
        cache.make_room()
        with row_blocks(cache.lengths, self._forward.device):
            logits_BV = self._forward(
                input_ids=torch.tensor([row.ids[-1:] for row in live]),
                attention_mask=cache.attention_mask(),
                position_ids=torch.tensor(cache.lengths)[:, None],
                cache=cache,
            )
        cache.advance()
        return logits_BV

    def _after_running_out(self, in_flight: Sequence[ActiveSequence], waiting: "_Waiting") -> list[ActiveSequence]:
        """Return the row that can't be written, if it was alone; else put the rows back, and take fewer from now on."""
        self._prefill.forget()
        free_memory()
        if len(in_flight) == 1:
            in_flight[0].fail(f"memory ran out for this row alone, at {len(in_flight[0].ids)} tokens")
            return [*in_flight]
        self._most_rows = len(in_flight) // 2
        LOG.warning(
            "memory ran out with %d rows in flight; going on with %d. A lower "
            "self_distillation.generation.max_batch_tokens avoids this",
            *(len(in_flight), self._most_rows),
        )
        waiting.put_back(in_flight)
        return []


def _leaving(live: list[ActiveSequence], cache: RowCache) -> list[ActiveSequence]:
    """Take the rows that are done out of those in flight, and return them."""
    finished = []
    for place in reversed(range(len(live))):
        if live[place].is_done:
            finished.append(live[place])
            live[place] = live[-1]
            live.pop()
            cache.remove(place)
    return finished


class _Waiting:
    """Rows that are still to be written: those put back first, then those of an iterator."""

    def __init__(self, rows: Iterable[ActiveSequence]) -> None:
        self._rows = iter(rows)
        self._put_back: deque[ActiveSequence] = deque()

    def next(self) -> ActiveSequence | None:
        """Return the next row; None when there is none left."""
        return self._put_back.popleft() if self._put_back else next(self._rows, None)

    def put_back(self, rows: Sequence[ActiveSequence]) -> None:
        """Have rows come next."""
        self._put_back.extendleft(reversed(rows))
