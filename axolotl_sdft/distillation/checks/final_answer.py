"""The ``numeric_answer`` check: the answer states another result than the original.

Looked for are every ``\boxed{...}``, what follows ``####``, and what cues such as "the answer is" announce; without any
of these, the last sentence that holds a number and is not a note.
"""

import re

from axolotl_sdft.core.texts import shortened
from axolotl_sdft.distillation.checks.math_worker import Allowance, import_math_verify
from axolotl_sdft.distillation.checks.options import NOTHING_TO_COMPARE, prepared_by
from axolotl_sdft.distillation.checks.results import (
    Result,
    may_hold_result,
    read_formula,
    read_result,
    same_result,
)
from axolotl_sdft.inference.interfaces import Answer, Target

_MAX_CUES = 20  # from the end; an answer with more announces the same again and again
_MAX_SENTENCE = 600  # characters
_MAX_SENTENCES = 50  # with numbers, from the end, of a text without a cue
_MAX_BOX = 1000
_NOUN = r"(?:answer|solution|result)s?"
_CUE = re.compile(
    rf"####|^A:|(?<!/)\b{_NOUN}\b(?:\s+to\s+(?:the|this|your|that)\s+\w+)?(?:\*\*)?"
    r"(?:\s+(?:is|are|comes to|would be|will be|must be)\b|\s*:|\s*=)(?:\*\*)?(?:\s*(?::|=|therefore|thus|then)\s?)?",
    re.IGNORECASE | re.MULTILINE,
)
_CONCLUSION = re.compile(
    r"[\s*]*(?:so|therefore|thus|hence|in (?:total|all|the end)|altogether|actually|wait|correction|no,|sorry|finally|"
    r"i mean|or rather)\b",
    re.IGNORECASE,
)
_COUNT = re.compile(
    r"\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|"
    r"(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|dozen)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\n+|(?<=[.!?])\s+(?=[^\d\s])")
_NOTE = re.compile(
    r"[\s*_(\[]*(?:notes?\b|n\.?b\.|p\.?s\.|let me know|please|if you|feel free|hope|i hope|source|sources|prices|"
    r"disclaimer|would you|do you|is there)",
    re.IGNORECASE,
)
_NUMBERING = re.compile(r"\A\s*(?:(?:step\s+)?\d{1,2}[.)]\s+(?=\S)|[*\u2022]\s+)", re.IGNORECASE)


def stated_results(text: str, question: str = "") -> list[Result]:
    r"""Return all that an answer states as its result, in order: boxes, what cues announce, what is concluded.

    "The answer is 35. Check: 35 + 10 = 45" states 35 and then 45. An equation before the last cue is a step. Without a
    box or a cue, the last sentence with a number states it.
    """
    results, end = _announced(text, question)
    if end is not None:
        results += _concluded(text[end:], question)
    if results:
        return results
    last = _last_statement(text, question)
    return [last] if last else []


def announces_result(text: str) -> bool:
    """Say whether a text marks its result: by a box, by ``####``, or by a cue such as "the answer is"."""
    return bool(_announced(text, "")[0])


def _announced(text: str, question: str) -> tuple[list[Result], int | None]:
    """Return the results in boxes and behind cues, and where the last of the latter ends; None without any of them."""
    results = [box for box in (_read_box(text, place) for place in _boxes(text)) if box]
    end = None
    for cue in list(_CUE.finditer(text))[-_MAX_CUES:]:
        passage = _sentence(text, cue.end())
        # What stands in a box was read already.
        result = None if r"\boxed" in passage else read_result(passage, announced=True, question=question)
        if result is not None:
            results.append(result)
            end = cue.end() + passage_end(text, cue.end(), passage)
    return results, end


def passage_end(text: str, start: int, passage: str) -> int:
    """Return how far behind a cue its sentence reaches."""
    return text.find(passage, start) - start + len(passage)


def _sentence(text: str, start: int) -> str:
    """Return the sentence that begins behind a cue."""
    ahead = text[start : start + _MAX_SENTENCE].lstrip(" \n*:")
    return _SENTENCE_END.split(ahead, maxsplit=1)[0]


def _sentences(text: str) -> list[str]:
    return [part for part in _SENTENCE_END.split(text) if part.strip()]


def _concluded(text: str, question: str) -> list[Result]:
    """Return the results that stand behind the last cue: of the last equation, and of each sentence that concludes."""
    sentences = [part[-_MAX_SENTENCE:] for part in _sentences(text[-10 * _MAX_SENTENCE :]) if not _NOTE.match(part)]
    equations = [part for part in sentences if "=" in part]
    chosen = [part for part in sentences if _CONCLUSION.match(part) or part in equations[-1:]]
    found = (read_result(part, announced=False, question=question) for part in chosen)
    return [result for result in found if result is not None]


def _last_statement(text: str, question: str) -> Result | None:
    """Return the result of the last sentence that states a number; of a note only where nothing else does."""
    parts = _sentences(text)
    telling = [part for part in parts if may_hold_result(part) or part is parts[-1]][-_MAX_SENTENCES:]
    sentences = [_NUMBERING.sub("", part[-_MAX_SENTENCE:], count=1) for part in telling]
    has_digits = bool(re.search(r"\d", text))
    notes = []
    for sentence in reversed(sentences):
        if has_digits and not re.search(r"\d", sentence) and not _counts(sentence):
            continue
        result = read_result(sentence, announced=False, question=question)
        if result is None:
            continue
        if not _NOTE.match(sentence) and not sentence.rstrip().endswith("?"):
            return result
        notes.append(result)
    return notes[0] if notes else None


def _counts(sentence: str) -> bool:
    """Say whether a sentence without digits tells a number in words; "one" and "half" are often no numbers."""
    return _COUNT.search(sentence) is not None


def _boxes(text: str) -> list[int]:
    return [found.start() for found in re.finditer(r"\\boxed\{", text)][-_MAX_CUES:]


def _read_box(text: str, box: int) -> Result | None:
    """Return the result in a box, with a word such as million that follows; None where the box is left open."""
    opened, depth = box + len(r"\boxed"), 0
    for place in range(opened, min(len(text), opened + _MAX_BOX)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            content = text[opened + 1 : place]
            scale = re.match(r"[\s$]*((?:hundred|thousand|million|billion|dozen)s?\b)", text[place + 1 : place + 20])
            return read_formula(f"{content} {scale[1]}" if scale else content)
    return None


_SECONDS = 2.0  # of computing, for all comparisons of an answer; one that takes longer is rejected


@prepared_by(import_math_verify)
def numeric_answer(answer: Answer, target: Target) -> str | None:
    """Reject an answer with another result than the original, with two different results, or with none.

    Results are compared as a whole: all numbers of a pair, a range or a time, the sign, words such as million, bounds
    such as "at least", the letter of a multiple choice. Units count where both texts name one. Where the original holds
    no number there is nothing to compare with, and the answer is rejected as well.
    """
    stated = stated_results(target.reference, target.instruction)
    if not stated:
        return f"{NOTHING_TO_COMPARE} number"
    expected = stated[-1]
    results = stated_results(answer.text, target.instruction)
    if not results:
        return f"no number, reference {shortened(expected.source)}"
    allowance = Allowance(_SECONDS)
    for result in reversed(results):
        if not same_result(result, expected, allowance):
            is_last = result is results[-1]
            named = shortened(result.source, 40)
            named = named if is_last else f"{named} and {shortened(results[-1].source, 40)}"
            return f"answer {named}, reference {shortened(expected.source, 40)}"
    return None
