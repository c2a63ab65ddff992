"""The lines of a journal: an answer, or what checks said of one. Whatever else a line holds is no line of a journal."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias, get_args

from axolotl_sdft.distillation.generation.answer_index import KEY_BYTES
from axolotl_sdft.inference.interfaces import Answer, FinishReason

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
