"""Where each stored answer or verdict stands on disk: 28 bytes an entry, whatever its length.

An entry has a key of 16 bytes, a digest of its content. numpy holds and searches the keys as two numbers each: the
first is searched for, the second confirms.
"""

import threading
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16

Keys: TypeAlias = NDArray[np.uint64]
"""Many keys: one row each, of two numbers."""

Place: TypeAlias = tuple[int, int]
"""Where an entry stands and how long it is."""

_MIN_MERGE = 65536


def keys_array(keys: Iterable[bytes]) -> Keys:
    """Return keys as an array."""
    return np.frombuffer(b"".join(keys), ">u8").astype(np.uint64).reshape(-1, 2)


def key_bytes(keys: Keys) -> Iterator[bytes]:
    """Yield the keys of an array, one by one."""
    content = np.ascontiguousarray(keys).astype(">u8").tobytes()
    for start in range(0, len(content), KEY_BYTES):
        yield content[start : start + KEY_BYTES]


class AnswerIndex:
    """Maps keys to places. A key may have several, which stay in the order in which they came. Threads may share it.

    New entries wait in a dictionary until there are enough of them to be worth merging into the sorted arrays.
    """

    def __init__(self) -> None:
        self._keys: Keys = np.empty((0, 2), np.uint64)
        self._places: NDArray[np.int64] = np.empty(0, np.int64)
        self._lengths: NDArray[np.uint32] = np.empty(0, np.uint32)
        self._recent: dict[bytes, list[Place]] = {}
        self._num_recent = 0
        self._lock = threading.RLock()

    def add(self, key: bytes, place: int, length: int) -> None:
        """Remember where an entry stands, after others of the same key."""
        with self._lock:
            self._recent.setdefault(key, []).append((place, length))
            self._num_recent += 1
            if self._num_recent >= max(_MIN_MERGE, len(self._keys) // 8):
                self._merge()

    def find(self, key: bytes) -> list[Place]:
        """Return the places of a key, in the order in which they were added; none where it is unknown."""
        with self._lock:
            first, second = int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")
            found, at = [], int(self._keys[:, 0].searchsorted(np.uint64(first)))
            while at < len(self._keys) and self._keys[at, 0] == first:
                if self._keys[at, 1] == second:
                    found.append((int(self._places[at]), int(self._lengths[at])))
                at += 1
            return found + self._recent.get(key, [])

    def holds(self, keys: Keys) -> NDArray[np.bool_]:
        """Return for each key whether it is there."""
        with self._lock:
            recent = self._recent
            if recent:
                found = np.fromiter((key in recent for key in key_bytes(keys)), np.bool_, len(keys))
            else:
                found = np.zeros(len(keys), np.bool_)
            if len(self._keys):
                at = self._keys[:, 0].searchsorted(keys[:, 0]).clip(max=len(self._keys) - 1)
                is_near = self._keys[at, 0] == keys[:, 0]
                found |= is_near & (self._keys[at, 1] == keys[:, 1])
                # Two keys that differ in their second number alone are next to impossible, but must not be confused.
                for place in np.flatnonzero(is_near & ~found):
                    found[place] = bool(self.find(next(key_bytes(keys[place : place + 1]))))
            return found

    def __contains__(self, key: bytes) -> bool:
        return bool(self.find(key))

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._keys) + self._num_recent

    def __iter__(self) -> Iterator[bytes]:
        """Yield each key once."""
        with self._lock:
            self._merge()
            keys = self._keys  # never changed in place
        before = None
        for start in range(0, len(keys), _MIN_MERGE):
            for key in key_bytes(keys[start : start + _MIN_MERGE]):
                if key != before:
                    yield key
                before = key

    def _merge(self) -> None:
        counts = [len(places) for places in self._recent.values()]
        new = keys_array(self._recent).repeat(counts, axis=0)
        where = np.array([place for places in self._recent.values() for place in places], np.int64).reshape(-1, 2)
        self._recent, self._num_recent = {}, 0
        keys = np.concatenate([self._keys, new])
        order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: what came first stays first
        self._keys = keys[order]
        self._places = np.concatenate([self._places, where[:, 0]])[order]
        self._lengths = np.concatenate([self._lengths, where[:, 1].astype(np.uint32)])[order]
