"""Where each generated answer stands on disk: 20 bytes an answer, whatever its length.

Answers are numbered by row, turn and attempt, packed into one integer, so that numpy holds and searches them.
"""

import threading
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Key: TypeAlias = tuple[int, int, int]
"""Row, trained turn and attempt, each counted from 0."""

Keys: TypeAlias = NDArray[np.int64]
"""Packed keys."""

_TURN_BITS, _ATTEMPT_BITS = 16, 8  # leaves 39 bits for the row
_LEAST_MERGE = 65536


def pack(row: int, turn: int, attempt: int) -> int:
    """Return one integer for an answer; its order is that of the key."""
    return (row << _TURN_BITS | turn) << _ATTEMPT_BITS | attempt


def pack_rows(rows: NDArray[np.int64], turn: int, attempt: int) -> Keys:
    """Return the packed keys of the same turn and attempt of many rows."""
    return (rows << _TURN_BITS | turn) << _ATTEMPT_BITS | attempt


def unpack(key: int) -> Key:
    """Return row, turn and attempt of a packed key."""
    turn_and_row = key >> _ATTEMPT_BITS
    return turn_and_row >> _TURN_BITS, turn_and_row & (1 << _TURN_BITS) - 1, key & (1 << _ATTEMPT_BITS) - 1


class AnswerIndex:
    """Maps packed keys to a place and a length. The first place of a key stays. Threads may share it.

    New keys wait in a dictionary until there are enough of them to be worth merging into the sorted arrays.
    """

    def __init__(self) -> None:
        self._keys: Keys = np.empty(0, np.int64)
        self._places: NDArray[np.int64] = np.empty(0, np.int64)
        self._lengths: NDArray[np.uint32] = np.empty(0, np.uint32)
        self._recent: dict[int, tuple[int, int]] = {}
        self._lock = threading.RLock()

    def add(self, key: int, place: int, length: int) -> None:
        """Remember where an answer stands."""
        with self._lock:
            self._recent.setdefault(key, (place, length))
            if len(self._recent) >= max(_LEAST_MERGE, len(self._keys) // 8):
                self._merge()

    def find(self, key: int) -> tuple[int, int] | None:
        """Return place and length of an answer, or None."""
        with self._lock:
            position = int(self._keys.searchsorted(key))
            if position < len(self._keys) and self._keys[position] == key:
                return int(self._places[position]), int(self._lengths[position])
            return self._recent.get(key)

    def holds(self, keys: Keys) -> NDArray[np.bool_]:
        """Return for each packed key whether it is there."""
        with self._lock:
            recent = self._recent
            found = np.fromiter((key in recent for key in keys.tolist()), np.bool_, len(keys))
            if len(self._keys):
                positions = self._keys.searchsorted(keys).clip(max=len(self._keys) - 1)
                found |= self._keys[positions] == keys
            return found

    def __len__(self) -> int:
        with self._lock:
            self._merge()
            return len(self._keys)

    def __iter__(self) -> Iterator[int]:
        with self._lock:
            self._merge()
            keys = self._keys  # never changed in place
        for start in range(0, len(keys), _LEAST_MERGE):
            yield from keys[start : start + _LEAST_MERGE].tolist()

    def _merge(self) -> None:
        keys = np.fromiter(self._recent, np.int64, len(self._recent))
        where = np.fromiter(
            self._recent.values(), np.dtype([("place", np.int64), ("length", np.uint32)]), len(self._recent)
        )
        self._recent = {}
        is_new = ~self.holds(keys)
        keys = np.concatenate([self._keys, keys[is_new]])
        order = keys.argsort(kind="stable")
        self._keys = keys[order]
        self._places = np.concatenate([self._places, where["place"][is_new]])[order]
        self._lengths = np.concatenate([self._lengths, where["length"][is_new]])[order]
