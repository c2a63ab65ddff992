"""The files of a journal: their lines, and where each answer or verdict stands, in 28 bytes an entry.

An entry has a key of 16 bytes, a digest of its content. numpy holds and searches the keys as two numbers each: the
first is searched for, the second confirms.
"""

import json
import math
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from axolotl_sdft.inference.interfaces import Answer, FinishReason

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


_FINISH_REASONS = get_args(FinishReason)
_HEX_DIGITS = 2 * KEY_BYTES
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class StoredAnswer:
    """An answer under the key of its question."""

    key: bytes
    answer: Answer
    ends: bool = False
    """Whether it is the last one of its batch."""

    @property
    def is_failure(self) -> bool:
        """Whether there is no answer yet: the request failed, and may succeed another time."""
        return self.answer.finish_reason == "error" and not self.answer.is_final

    @classmethod
    def of(cls, key: bytes, answer: Answer) -> "StoredAnswer":
        """Return an answer as it can be stored, whatever a backend has given.

        Half surrogates are replaced, since no dataset can hold them. What is not an answer at all becomes one that
        failed, so that a fault of one answer stays one.
        """
        why = _unfit_because(answer)
        if why is not None:
            return cls(key, Answer("", "error", 0, error=f"the backend gave no answer: {why}", seconds=answer.seconds))
        error = None if answer.error is None else storable(str(answer.error))
        logprob = answer.mean_logprob if _is_finite(answer.mean_logprob) else None
        return cls(key, replace(answer, text=storable(answer.text), error=error, mean_logprob=logprob))

    def to_line(self) -> bytes:
        """Return the line."""
        answer = self.answer
        entry: dict[str, Any] = {"question": self.key.hex(), "text": answer.text, "finish_reason": answer.finish_reason}
        entry |= {"num_tokens": answer.num_tokens, "seconds": round(answer.seconds, 6)}
        for name, value in (("mean_logprob", answer.mean_logprob), ("error", answer.error)):
            if value is not None:
                entry[name] = value
        for name, is_set in (("is_final", answer.is_final), ("ends_batch", self.ends)):
            if is_set:
                entry[name] = True
        return _line(entry)


class StoredVerdict(NamedTuple):  # a million lines of a few each are read at the start
    """What one check said of an answer."""

    key: bytes
    """Of the answer with what it was compared with."""

    check: str
    """Identity of the check."""

    rejection: tuple[str, str] | None = None
    """Name and reason; None where the answer passed."""

    is_outage: bool = False
    """Whether the check could say nothing, but may another time."""

    @staticmethod
    def to_line(verdicts: Sequence["StoredVerdict"]) -> bytes:
        """Return the line of all verdicts on one answer; only the last of them may be a rejection."""
        entry: dict[str, Any] = {"judged": verdicts[0].key.hex()}
        entry["passed"] = [verdict.check for verdict in verdicts if verdict.rejection is None]
        if verdicts[-1].rejection is not None:
            entry["rejected"] = [verdicts[-1].check, *map(storable, verdicts[-1].rejection)]
        if verdicts[-1].is_outage:
            entry["is_outage"] = True
        return _line(entry)


Entry: TypeAlias = StoredAnswer | list[StoredVerdict]
"""What a line holds."""


def storable(text: str) -> str:
    """Return a text without half surrogates, which no file and no dataset can hold."""
    return _HALF_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def parse(line: bytes) -> Entry | None:
    """Return what a line holds, or None where it is damaged or of another kind."""
    try:
        entry = json.loads(line)
        if "question" in entry:
            return _answer(entry)
        return _verdicts(entry)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _answer(entry: dict[str, Any]) -> StoredAnswer | None:
    answer = Answer(
        entry["text"],
        entry["finish_reason"],
        entry["num_tokens"],
        entry.get("mean_logprob"),
        entry.get("error"),
        entry.get("is_final") is True,
        float(entry["seconds"]),
    )
    if _unfit_because(answer) is not None or not isinstance(answer.error, str | None):
        return None
    return StoredAnswer(_key(entry["question"]), answer, entry.get("ends_batch") is True)


def _verdicts(entry: dict[str, Any]) -> list[StoredVerdict] | None:
    key, passed, rejected = _key(entry["judged"]), entry["passed"], entry.get("rejected")
    verdicts = [StoredVerdict(key, check) for check in passed]
    if rejected is not None:
        check, name, reason = rejected
        verdicts.append(StoredVerdict(key, check, (name, reason), entry.get("is_outage") is True))
    texts = [*passed, *(rejected or [])]
    return verdicts if verdicts and all(isinstance(text, str) for text in texts) else None


def _key(digits: str) -> bytes:
    if len(digits) != _HEX_DIGITS:
        raise ValueError("a key has 32 hex digits")
    return bytes.fromhex(digits)


def _unfit_because(answer: Answer) -> str | None:
    """Return why something can't be an answer; None where it can."""
    if not isinstance(answer.text, str):
        return f"its text is a {type(answer.text).__name__}"
    if answer.finish_reason not in _FINISH_REASONS:
        return f"its finish_reason is {answer.finish_reason!r}"
    if not isinstance(answer.num_tokens, int) or answer.num_tokens < 0:
        return f"its num_tokens is {answer.num_tokens!r}"
    if not isinstance(answer.mean_logprob, int | float | None):
        return f"its mean_logprob is {answer.mean_logprob!r}"
    return None


def _is_finite(number: float | None) -> bool:
    return number is not None and math.isfinite(number)


def _line(entry: dict[str, Any]) -> bytes:
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode()
