r"""Finds the final number or expression of an answer, and says whether two of them are equal.

Looked for in this order: the last ``\boxed{...}``, what follows the last ``####``, what follows the last "answer is",
"solution is" or "answer:", and the last sentence that holds a number. Where that passage holds an equals sign, what
follows the last one counts. A percent or currency sign is a unit: 50% is 50.
"""

import logging
import re
from fractions import Fraction
from typing import Any

from axolotl_sdft.errors import MissingExtraError

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+"
_PLAIN = re.compile(
    rf"(?P<sign>(?<![\w)\]}}.])-)?[$€£¥]?(?P<number>{_NUMBER})(?:\s?/\s?(?P<divisor>{_NUMBER}))?(?:\s?\\?%)?"
)
_BRACED = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_LATEX = re.compile(
    r"\$\$?([^$\n]*\\[a-zA-Z][^$\n]*)\$"
    r"|\\\((.+?)\\\)|\\\[(.+?)\\\]"
    rf"|(-?(?:(?<!\d)\d+\s?)?\\(?:[dt]?frac\s*{_BRACED}\s*{_BRACED}|sqrt\s*(?:\[\d+\])?{_BRACED}))",
    re.DOTALL,
)
_MOST_DIGITS = 1000  # Python refuses to read numbers of more than 4300
_CUE = re.compile(r"####|\b(?:answer|solution)s?\b(?:\s+is|\s+are|\s*:|\s*=)(?:\s*:)?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n+|(?<=[.!?])\s+(?=[^\d\s])")
# Powers of powers and long exponents would keep sympy busy for hours; no answer that is meant to be read has them.
_COSTLY = re.compile(r"\^[^^]{0,20}\^|\^\s*\{?\s*-?\d{4,}|\d\s*!|.{300}", re.DOTALL)


def stated_results(text: str) -> list[str]:
    r"""Return all that an answer states as its result, in order: boxes, what cues announce, and a last equation.

    "The answer is 35. Check: 35 + 10 = 45" states 35 and then 45. An equation before the last cue is a step.
    """
    results = [boxed] if (boxed := _last_boxed(text)) else []
    behind = None
    for cue in _CUE.finditer(text):
        found = _expressions(_announced(text, cue.end()))
        if found:
            results.append(found[0])
            behind = cue.end() + len(_announced(text, cue.end()))
    equations = [part for part in _SENTENCE_END.split(text[behind:]) if "=" in part] if behind is not None else []
    return results + (_expressions(equations[-1])[:1] if equations else [])


def final_expression(text: str) -> str | None:
    """Return the final number or LaTeX expression of an answer as it is written there, or None when there is none."""
    boxed = _last_boxed(text)
    if boxed:
        return boxed
    for cue in reversed(list(_CUE.finditer(text))):
        found = _expressions(_announced(text, cue.end()))
        if found:
            return found[0]
    for passage in reversed(_SENTENCE_END.split(text)):
        found = _expressions(passage)
        if found:
            return found[0] if "=" in passage else found[-1]
    return None


def are_equal(first: str, second: str) -> bool:
    """Say whether two expressions have the same value: 18, 18.0, $18 and 36/2 do."""
    left, right = _fraction(first), _fraction(second)
    if left is not None and right is not None:
        return left == right
    if first == second:
        return True
    return not (_COSTLY.search(first) or _COSTLY.search(second)) and _math_verify_equal(first, second)


def import_math_verify() -> Any:
    """Return the module ``math_verify``, kept from warning about every call without a time limit.

    Raises:
        MissingExtraError: It can't be imported.
    """
    try:
        import math_verify
    except ImportError as err:
        raise MissingExtraError(
            f"self_distillation.checks names numeric_answer, which needs math-verify ({err}); pip install math-verify, "
            "or remove the check"
        ) from err
    for module in ("math_verify.grader", "math_verify.parser"):
        logging.getLogger(module).setLevel(logging.ERROR)
    return math_verify


def _announced(text: str, start: int) -> str:
    """Return the sentence that begins behind a cue."""
    return _SENTENCE_END.split(text[start:].lstrip(" \n*:"), maxsplit=1)[0]


def _last_boxed(text: str) -> str | None:
    """Return what stands in the last box, or None when there is no box or it is left open."""
    box = text.rfind(r"\boxed{")
    opened, depth = box + len(r"\boxed"), 0
    for place in range(opened, len(text)) if box >= 0 else ():
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[opened + 1 : place].strip()
    return None


def _expressions(passage: str) -> list[str]:
    """Return the expressions of a passage; of those after its last equals sign, where there are any."""
    is_plain = _LATEX.search(passage) is None
    return (_all_expressions(passage.rpartition("=")[2]) if is_plain else []) or _all_expressions(passage)


def _all_expressions(passage: str) -> list[str]:
    found = [(match.start(), next(filter(None, match.groups())).strip()) for match in _LATEX.finditer(passage)]
    plain_only = _LATEX.sub(lambda match: " " * len(match.group()), passage)
    found += [(match.start(), match.group().strip()) for match in _PLAIN.finditer(plain_only)]
    return [expression for _, expression in sorted(found)]


def _fraction(expression: str) -> Fraction | None:
    """Return the value of a plain number or fraction, or None for anything else."""
    match = _PLAIN.fullmatch(expression.strip().strip("$"))
    if match is None or len(expression) > _MOST_DIGITS:
        return None
    value = Fraction(match["number"].replace(",", ""))
    if match["divisor"]:
        divisor = Fraction(match["divisor"].replace(",", ""))
        if divisor == 0:
            return None
        value /= divisor
    return -value if match["sign"] else value


def _math_verify_equal(first: str, second: str) -> bool:
    math_verify = import_math_verify()
    # The time limits are signal alarms, which only the main thread may set; _COSTLY keeps out what would need them.
    parsed = [math_verify.parse(f"${expression}$", parsing_timeout=None) for expression in (first, second)]
    return all(parsed) and bool(math_verify.verify(*parsed, timeout_seconds=None))
