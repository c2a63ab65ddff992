"""Remembers which attempt was taken for each trained answer, so that long conversations are judged once."""

import numpy as np
from numpy.typing import NDArray

_UNKNOWN, _ORIGINAL = -1, -2


class Outcomes:
    """Two bytes for each trained answer of a dataset. Nothing is known at first."""

    def __init__(self, num_targets: NDArray[np.int32]) -> None:
        self._first = np.concatenate([[0], num_targets.cumsum(dtype=np.int64)])
        self._taken = np.full(self._first[-1], _UNKNOWN, np.int16)

    def is_known(self, row: int, turn: int) -> bool:
        """Whether an answer has been settled."""
        return bool(self._taken[self._first[row] + turn] != _UNKNOWN)

    def taken(self, row: int, turn: int) -> int | None:
        """Return the attempt that was taken for a settled answer, or None where the original one stays."""
        attempt = int(self._taken[self._first[row] + turn])
        return None if attempt == _ORIGINAL else attempt

    def settle(self, row: int, turn: int, attempt: int | None) -> None:
        """Remember which attempt was taken for an answer; None: the original one stays."""
        self._taken[self._first[row] + turn] = _ORIGINAL if attempt is None else attempt

    def unknown_rows(self, rows: NDArray[np.int64], turn: int) -> NDArray[np.int64]:
        """Return those of the rows whose turn-th answer is not settled. All of them must have one."""
        return rows[self._taken[self._first[rows] + turn] == _UNKNOWN]
