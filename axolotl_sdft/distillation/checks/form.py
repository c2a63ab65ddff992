"""Checks of an answer's form and wording: ``empty``, ``truncated``, ``length_ratio``, ``exact_match``,
``normalized_match``.
"""

import re
import unicodedata
from typing import Annotated

from pydantic import Field

from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.core.texts import shortened, words
from axolotl_sdft.distillation.checks.options import YAML_KEY, prepared_by
from axolotl_sdft.inference.interfaces import Answer, Target

_COLONS = (":", "\N{FULLWIDTH COLON}")


def empty(answer: Answer, target: Target) -> str | None:
    """Reject an answer of nothing but punctuation, and one whose original is empty."""
    if not target.reference.strip():
        return "the original answer is empty"
    if not answer.text.strip():
        return "no text"
    if _is_punctuation(answer.text) and not _is_punctuation(target.reference):
        return "nothing but punctuation"
    return None


def truncated(answer: Answer, target: Target) -> str | None:
    """Reject an answer that was cut off by ``max_new_tokens``, and one that announces something and ends there."""
    if answer.finish_reason == "length":
        return f"cut off after {answer.num_tokens} tokens"
    breaks_off = answer.text.rstrip(" *\n").endswith(_COLONS) and not target.reference.rstrip().endswith(_COLONS)
    return "ends with a colon" if breaks_off else None


def _min_is_below_max(*, min: float, max: float, slack: int) -> None:
    if min >= max:
        raise ConfigError(f"{YAML_KEY}: the check length_ratio has min: {min}, not below max: {max}; change one")


@prepared_by(_min_is_below_max)
def length_ratio(
    answer: Answer,
    target: Target,
    *,
    min: Annotated[float, Field(ge=0)] = 0.25,
    max: Annotated[float, Field(gt=0)] = 4.0,
    slack: Annotated[int, Field(ge=0)] = 20,
) -> str | None:
    """Reject an answer with far fewer or far more words than the original.

    ``min`` and ``max`` bound the words of the answer divided by those of the original; a difference of up to ``slack``
    words is always allowed, so that a short original may be answered in a sentence.
    """
    written, expected = len(words(answer.text)), len(words(target.reference))
    if abs(written - expected) <= slack or min * expected <= written <= max * expected:
        return None
    return f"{written} words, the original {expected}"


def _is_punctuation(text: str) -> bool:
    return all(unicodedata.category(character)[0] in "PZC" for character in text)


_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def exact_match(answer: Answer, target: Target) -> str | None:
    """Reject an answer that is not the original, character by character; space around them does not count."""
    return None if answer.text.strip() == target.reference.strip() else _difference(answer.text, target.reference)


def normalized_match(answer: Answer, target: Target) -> str | None:
    """Reject an answer with other words than the original; case, punctuation, spacing and a, an, the don't count."""
    same = _normalized(answer.text) == _normalized(target.reference)
    return None if same else _difference(answer.text, target.reference)


def _normalized(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold()
    # Marks of a number stay: 1.5 is not 15, -5 and .5 are not 5.
    kept = re.sub(r"(?!(?<!\w)[-.]\d)(?:(?<!\d)[^\w\s]|[^\w\s](?!\d))", " ", text)
    without_articles = _ARTICLES.sub(" ", kept)
    # Where nothing but articles or punctuation stands, they are the answer.
    return " ".join((without_articles if without_articles.strip() else text).split())


def _difference(text: str, reference: str) -> str:
    return f"answer '{shortened(text, 40)}', original '{shortened(reference, 40)}'"
