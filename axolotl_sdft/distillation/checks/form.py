"""Checks of an answer's form: that it says something, ends, does not copy, and is in the language that was asked for.

Scripts are told apart by the Unicode names of letters, languages in Latin letters by their most frequent function
words. These speak up only where one language is far ahead of all others in both texts, so that names, code and lists
pass.
"""

import re
import unicodedata
from collections import Counter
from functools import lru_cache
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
    # Where nothing but articles stands, they are the answer, such as option A; so is mere punctuation.
    shortest = next(filter(str.strip, (_ARTICLES.sub(" ", kept), kept)), text)
    return " ".join(shortest.split())


def _difference(text: str, reference: str) -> str:
    return f"answer '{shortened(text, 40)}', original '{shortened(reference, 40)}'"


_FEWEST_LETTERS = 8
_FOREIGN_SHARE = 0.1  # of an answer's letters, in scripts that nobody else in the conversation writes
_FEWEST_FUNCTION_WORDS = 4
_FEWEST_DIFFERENT = 3
_LEAST_SHARE = 0.15  # of a text's words; function words make up a third to a half of prose
_LEAD = 2.0

_FUNCTION_WORDS = {
    "English": "the of and to is are was were that it for with this be have from by which they you not on at will its",
    "German": "der die das und ist nicht ein eine den dem mit von zu sich auf für wird sind auch als wie im werden",
    "French": "le la les des est et une dans qui pour pas sur avec par il du sont au ce cette vous nous ou être plus",
    "Spanish": "el la los las y es una en que por con para del se su no como más son al lo está pero este muy o",
    "Italian": "il la di che è e per un una non sono della con gli del nel le si come più anche questo alla dei ma",
    "Portuguese": "o a os as e é uma em que não para com do da se por no na dos mais como ao são foi também mas",
    "Dutch": "de het een en van is dat niet op te zijn voor met die aan er ook als bij maar om wordt worden naar of",
    "Swedish": "och att det som en är av för på med den till inte ett om har de var från eller kan så men vid",
    "Polish": "i w na się nie jest to z do że jak o dla od po przez są oraz ale które który tym także może",
    "Turkish": "ve bir bu için ile olarak da de olan çok gibi daha en ne kadar değil sonra olduğu veya ama her var",
}
_PROFILES = {language: frozenset(words.split()) for language, words in _FUNCTION_WORDS.items()}


def language(answer: Answer, target: Target, *, max_drift: Annotated[float, Field(gt=0, le=1)] = 0.4) -> str | None:
    """Reject an answer in another script or, for ten languages in Latin letters, another language than the original.

    ``max_drift`` bounds the share of letters that would have to change their script to turn one text's mix of scripts
    into the other's; a tenth of the letters in a script that the conversation does not use is too much in any case.
    """
    written, expected = _scripts(answer.text), _scripts(target.reference)
    if min(written.total(), expected.total()) >= _FEWEST_LETTERS:
        drift = sum(max(0.0, share - _share(expected, script)) for script, share in _shares(written).items())
        if drift > max_drift:
            return f"{_main(written)} letters, the original {_main(expected)}"
        foreign = written - Counter({script: written[script] for script in _known_scripts(target)})
        if foreign.total() > _FOREIGN_SHARE * written.total():
            return f"{foreign.total()} {_main(foreign)} letters"
    spoken, original = spoken_language(answer.text), spoken_language(target.reference)
    return f"in {spoken}, the original in {original}" if spoken and original and spoken != original else None


def spoken_language(text: str) -> str | None:
    """Return the language that a text's function words show, or None where they are few or shared by several."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    counts = Counter({language: _num_function_words(words, known) for language, known in _PROFILES.items()})
    (first, most), (_, second) = counts.most_common(2)
    is_clear = most >= max(_FEWEST_FUNCTION_WORDS, _LEAST_SHARE * len(words), _LEAD * second)
    return first if is_clear else None


def _num_function_words(words: list[str], known: frozenset[str]) -> int:
    """Count the words that are known; single letters, which code is full of, and one word alone are not evidence."""
    found = [word for word in words if len(word) > 1 and word in known]
    return len(found) if len(set(found)) >= _FEWEST_DIFFERENT else 0


def _known_scripts(target: Target) -> set[str]:
    return set(_scripts("\n".join([target.reference, *(message["content"] for message in target.context)])))


def _scripts(text: str) -> Counter[str]:
    """Count the letters of each script."""
    return Counter(_script(letter) for letter in text if letter.isalpha())


_SCRIPTS = {
    **dict.fromkeys(("Cjk", "Ideographic"), "Chinese"),
    **dict.fromkeys(("Hiragana", "Katakana", "Katakana-hiragana"), "Japanese"),
}
"""Scripts by how the names of their letters begin, where that is another word."""


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "unnamed").removeprefix("HALFWIDTH ").removeprefix("FULLWIDTH ")
    script = name.split()[0].capitalize()
    return _SCRIPTS.get(script, script)


def _shares(scripts: Counter[str]) -> dict[str, float]:
    return {script: count / scripts.total() for script, count in scripts.items()}


def _share(scripts: Counter[str], script: str) -> float:
    return scripts[script] / scripts.total()


def _main(scripts: Counter[str]) -> str:
    return scripts.most_common(1)[0][0]
