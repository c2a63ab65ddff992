"""Checks of answers that must say the same as the original: ``exact_match`` and ``normalized_match``."""

import re
import unicodedata

from axolotl_sdft.core.texts import shortened
from axolotl_sdft.inference.interfaces import Answer, Target

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
