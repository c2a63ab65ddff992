"""The ``repetition`` check: the answer runs in circles."""

import re
from collections import Counter
from collections.abc import Sequence

from axolotl_sdft.distillation.interfaces import Answer, Target
from axolotl_sdft.distillation.texts import shortened

_LONGEST_LOOP = 80  # words
_LONG_LOOP = 12  # words; whoever says that many again begins anew, shorter ones may come twice
_FEWEST_LOOPING_WORDS = 12
_PHRASE = 4  # words
_LEAST_FRESH = 0.55
_FEWEST_PHRASES = 40
_BULLET = re.compile(r"^\s*(?:(?:step )?\d+[.):]|[-*•])\s+", re.IGNORECASE | re.MULTILINE)


def repetition(answer: Answer, target: Target) -> str | None:
    """Reject an answer that says things over and over, unless the original answer or the instruction does so too."""
    text, reference = _BULLET.sub("", answer.text), _BULLET.sub("", target.reference)
    words, reference_words = _words(text), _words(reference)
    looping = _looping_words(words)
    if looping and _looping_words(reference_words) < looping / 2:
        return f"the last {looping} words run in a loop"
    line, count = _most_repeated(text)
    if count > max(_most_repeated(reference)[1], _most_repeated(target.instruction)[1]):
        return f"'{shortened(line, 40)}' {count} times"
    fresh = _fresh_share(words)
    if fresh < min(_LEAST_FRESH, _fresh_share(reference_words)):
        return f"only {fresh:.0%} of its phrases are new"
    return None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _looping_words(words: Sequence[str]) -> int:
    """Return how many words at the end go round in the same loop, at least three times or twice in a long one, or 0.

    ``a b c a b c a b c``, four times as long, loops over three words: each equals the one three places before it.
    """
    most = 0
    for length in range(1, min(_LONGEST_LOOP, len(words) // 2) + 1):
        looping = length
        while looping < len(words) and words[-looping - 1] == words[-looping - 1 + length]:
            looping += 1
        if looping >= max(_FEWEST_LOOPING_WORDS, length * (2 if length >= _LONG_LOOP else 3)):
            most = max(most, looping)
    return most


def _most_repeated(text: str) -> tuple[str, int]:
    """Return the line or sentence that stands there most often, and how often; short ones need more to count.

    Less than three times (four for fewer than six words) is 0 times: a refrain, a closing brace.
    """
    parts = [part.strip() for part in re.split(r"\n+|(?<=[.!?]) +", text)]
    counts = Counter(part for part in parts if len(_words(part)) > 2)
    repeated = [(part, count) for part, count in counts.items() if count >= (3 if len(_words(part)) > 5 else 4)]
    return max(repeated, key=lambda item: item[1], default=("", 0))


def _fresh_share(words: Sequence[str]) -> float:
    """Return the share of different ones among the four-word phrases; 1.0 for a short text."""
    phrases = list(zip(*(words[start:] for start in range(_PHRASE)), strict=False))
    return len(set(phrases)) / len(phrases) if len(phrases) >= _FEWEST_PHRASES else 1.0
