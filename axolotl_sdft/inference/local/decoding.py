"""Decodes many rows at once: a finished row leaves at the next step, and new rows take the places that get free.

Shapes: B rows, V vocabulary.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from axolotl_sdft.inference.forwarding import Forward
from axolotl_sdft.inference.local.grouped_attention import row_blocks
from axolotl_sdft.inference.local.prefill import Prefill
from axolotl_sdft.inference.local.sequence_cache import RowCache
from axolotl_sdft.inference.local.sequences import Row
from axolotl_sdft.inference.local.token_choice import Choice
from axolotl_sdft.inference.oom import free_memory, is_out_of_memory

LOG = logging.getLogger(__name__)

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
        choose: Callable[[Tensor, Sequence[Row]], list[Choice]],
        ends: Collection[int],
        most_rows: int,
        most_tokens: int,
    ) -> None:
        self._forward = Forward(model)
        self._prefill = Prefill(self._forward)
        self._choose, self._ends = choose, frozenset(ends)
        self._most_rows, self._most_tokens = most_rows, most_tokens

    def run(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield each row when it is done. Rows are drawn as places get free.

        Where memory runs out, all rows in flight are put back, and half as many go on from where they were. A row that
        does not fit alone fails.
        """
        waiting = _Waiting(rows)
        live: list[Row] = []
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

    def _joining(self, waiting: "_Waiting", live: Sequence[Row]) -> list[Row]:
        """Draw the rows that are to join now."""
        joining: list[Row] = []
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
    def _advanced(self, live: list[Row], joining: Sequence[Row], cache: RowCache) -> list[Row] | None:
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

    def _decoded(self, live: Sequence[Row], cache: RowCache) -> Tensor:
        cache.make_room()
        with row_blocks(cache.lengths, self._forward.device):
            logits_BV = self._forward(
                input_ids=torch.tensor([row.ids[-1:] for row in live]),
                attention_mask=cache.attention_mask(),
                position_ids=torch.tensor(cache.lengths)[:, None],
                past_key_values=cache,
            )
        cache.advance()
        return logits_BV

    def _after_running_out(self, in_flight: Sequence[Row], waiting: "_Waiting") -> list[Row]:
        """Return the row that can't be written, if it was alone; else put the rows back, and take fewer from now on."""
        self._prefill.forget()
        free_memory()
        if len(in_flight) == 1:
            in_flight[0].fail(f"memory ran out for this row alone, at {len(in_flight[0].ids)} tokens")
            return [*in_flight]
        self._most_rows = len(in_flight) // 2
        LOG.warning(
            "memory ran out with %d rows in flight; going on with %d. A lower "
            "self_distillation.generation.batch_tokens avoids this",
            *(len(in_flight), self._most_rows),
        )
        waiting.put_back(in_flight)
        return []


def _leaving(live: list[Row], cache: RowCache) -> list[Row]:
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

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = iter(rows)
        self._put_back: deque[Row] = deque()

    def next(self) -> Row | None:
        """Return the next row; None when there is none left."""
        return self._put_back.popleft() if self._put_back else next(self._rows, None)

    def put_back(self, rows: Sequence[Row]) -> None:
        """Have rows come next."""
        self._put_back.extendleft(reversed(rows))
