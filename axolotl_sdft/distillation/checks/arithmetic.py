"""The ``arithmetic`` check: an equation of the answer does not hold. Works out ``3 * (4 + 5)`` exactly, in bounded
time.

Nothing nests here but a list: a text of a hundred thousand brackets has no value, and raises nothing.

Only equations between plain numbers are looked at, such as ``3 * (4 + 5) = 27`` or ``$1.20 x 4 = $4.80``; one with a
unit or a variable in its left side is left alone. A percentage may be meant either way: 20% is 0.2 or 20. A result that
does not fit into the decimals that are shown may be rounded there, or cut off behind the point.
"""

import operator
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache

from axolotl_sdft.core.texts import shortened
from axolotl_sdft.inference.interfaces import Answer, Target

_MAX_CHARACTERS = 500
_MAX_BITS = 20_000  # of a power; a chat answer never needs more
_CURRENCY = re.compile(r"(?:US)?[$\u20ac\u00a3\u00a5\u20b9]")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?)"
    r"|(?P<percent>%(?!\s*[\d(.]))|(?P<operator>\*\*|//|mod\b|[-+*/^%()]))"
)
_SPELLING = str.maketrans(
    {"\N{MULTIPLICATION SIGN}": "*", "\N{MIDDLE DOT}": "*", "\N{DOT OPERATOR}": "*", "x": "*", "X": "*"}
    | {"\N{DIVISION SIGN}": "/"}
    | dict.fromkeys("\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}", "-")
)
_NEGATIVE = "negative"
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "%": 2, "mod": 2, _NEGATIVE: 3, "^": 4, "**": 4}
_FROM_THE_RIGHT = (_NEGATIVE, "^", "**")


def value_of(text: str, percent: Fraction = Fraction(1, 100)) -> Fraction | None:
    """Return the exact value of a calculation, or None where it has none, is none or would take long.

    Args:
        text: Numbers, brackets and operators, in any of the usual spellings; currency signs don't count.
        percent: What a percent sign multiplies by.
    """
    tokens = _tokens(text)
    if not tokens:
        return None
    try:
        return _calculated(tokens, percent)
    except (ArithmeticError, ValueError, LookupError):  # division by zero; brackets and operators that do not fit
        return None


def _tokens(text: str) -> list[str]:
    """Return the parts of a calculation; none where it holds anything else."""
    if len(text) > _MAX_CHARACTERS:
        return []
    text = _GROUPED.sub("", _CURRENCY.sub("", text)).translate(_SPELLING).strip()
    tokens, place = [], 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            return []
        tokens.append("percent" if found["percent"] else found[0].strip())
        place = found.end()
    return tokens


def _calculated(tokens: list[str], percent: Fraction) -> Fraction:
    values: list[Fraction] = []
    operators: list[str] = []
    wants_value = True
    for token in tokens:
        if token[0].isdigit() or token[0] == ".":
            _require(wants_value)
            values.append(Fraction(token))
            wants_value = False
        elif token == "percent":
            _require(not wants_value)
            values.append(values.pop() * percent)
        elif token == "(":
            _require(wants_value)
            operators.append(token)
        elif token == ")":
            _require(not wants_value)
            while operators[-1] != "(":
                _apply(operators.pop(), values)
            operators.pop()
        elif wants_value:
            _require(token in "+-")
            operators += [_NEGATIVE] if token == "-" else []
        else:
            _apply_stronger(token, operators, values)
            operators.append(token)
            wants_value = True
    _require(not wants_value)
    while operators:
        _apply(operators.pop(), values)
    [value] = values
    return value


def _require(fits: bool) -> None:
    if not fits:
        raise ValueError("an operator without a number, or a number without an operator")


def _apply_stronger(token: str, operators: list[str], values: list[Fraction]) -> None:
    """Apply the operators before ``token`` that bind at least as strongly as it does."""
    while operators and operators[-1] != "(":
        stronger = _PRECEDENCE[operators[-1]] - _PRECEDENCE[token]
        if stronger < 0 or (stronger == 0 and token in _FROM_THE_RIGHT):
            return
        _apply(operators.pop(), values)


def _apply(name: str, values: list[Fraction]) -> None:
    right = values.pop()
    if name == _NEGATIVE:
        values.append(-right)
        return
    values.append(_OPERATORS[name](values.pop(), right))


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    size = base.numerator.bit_length() + base.denominator.bit_length()
    if exponent.denominator != 1 or abs(exponent) * size > _MAX_BITS:
        raise ValueError("a root, or a power that would take long")
    return base ** int(exponent)


_OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": lambda left, right: Fraction(left // right),
    "%": operator.mod,
    "mod": operator.mod,
    "^": _power,
    "**": _power,
}


_NUMBER = r"[$€£¥]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)%?"
_TERM = rf"(?:\( ?){{0,8}}(?:- ?)?{_NUMBER}(?: ?\)){{0,8}}"
_TIMES, _DIVIDED, _MINUS = "\N{MULTIPLICATION SIGN}", "\N{DIVISION SIGN}", "\N{EN DASH}\N{MINUS SIGN}"
_OPERATOR = rf" ?(?:\*\*|//|mod |[-+*/^{_TIMES}{_DIVIDED}{_MINUS}]|x(?=[ \d$(.])) ?"
# What another number, a letter or an operator precedes is the end of a longer expression, as in 2 x 1 1/2 = 3.
_START = (
    rf"(?<![\w.,)\]}}%^*/+<>{_TIMES}{_DIVIDED}{_MINUS}\u221a|-])(?<![-\d)+*/x^%{_TIMES}{_DIVIDED}{_MINUS}] )(?<!and )"
    r"(?<!\d:)(?<!log )(?<!ln )(?<!sin )(?<!cos )(?<!tan )(?<!mod )(?<!sqrt )"
)
_EQUATION = re.compile(
    rf"{_START}({_TERM}(?:{_OPERATOR}{_TERM}){{1,20}}) ?="
    rf"(?= ?({_TERM}(?:{_OPERATOR}{_TERM}){{0,20}})(?!\.?\w|[\^(]|:\d))"
)
# Behind it the right side goes on, or is denied: 3 1/2, 3 remainder 1, 3 million, 5 is wrong.
_GOES_ON = re.compile(
    r" ?(?:\d|\.\.\.|…|and (?:a|an|one|two|three|\d)\b|r(?:em(?:ainder)?)?\b|with\b|full\b|whole\b|complete|\(?mod\b|"
    r"hundred|thousand|million|billion|dozen|cents?\b|\(?(?:is|are|would be) (?:wrong|false|incorrect|not)\b|\(wrong)",
    re.IGNORECASE,
)
_OTHER_ARITHMETIC = re.compile(
    r"\b(?:binary|hexadecimal|octal|base[- ](?:\d|two|eight|twelve|sixteen)|modul(?:o|ar)|clock arithmetic|concatenat)",
    re.IGNORECASE,
)
_LEADING_ZERO = re.compile(r"(?<![\d.,])0\d")  # 0930 is a time, 007 a name
_FEWEST_FLOAT_DIGITS = 13  # so many are shown where a computer divided; the last ones are not to be trusted


def arithmetic(answer: Answer, target: Target) -> str | None:
    """Reject an answer with an equation between plain numbers that is wrong, unless the original has the same one.

    A quotient may be rounded: 100 / 3 is 33, but 7 / 2 is not 3. What can be written out must be exact.
    """
    if _OTHER_ARITHMETIC.search(answer.text) or _OTHER_ARITHMETIC.search(target.instruction):
        return None  # where 1 + 1 may be 10
    accepted = {_compact(left, right) for left, right in _equations(target.reference)}
    for left, right in _equations(answer.text):
        if _compact(left, right) not in accepted and not _holds(left, right):
            return f"'{shortened(f'{left} = {right}')}' is wrong"
    return None


def _equations(text: str) -> Iterator[tuple[str, str]]:
    for found in _EQUATION.finditer(text):
        if not _GOES_ON.match(text, found.end(2)):
            yield found[1].strip(), found[2].strip()


def _compact(left: str, right: str) -> str:
    """Return an equation in one spelling."""
    signs = str.maketrans({_TIMES: "*", "x": "*", _DIVIDED: "/"} | dict.fromkeys(_MINUS, "-"))
    return re.sub(r"[\s$\u20ac\u00a3\u00a5,]", "", f"{left}={right}").translate(signs)


@lru_cache(maxsize=4096)
def _holds(left: str, right: str) -> bool:
    """Say whether both sides are equal, as far as the decimals on the right can show; True where a side has no value.

    In a run-on such as ``2 + 3 = 5 + 1 = 6``, the number right behind the sign may be meant alone.
    """
    first_number = re.match(_TERM, right)
    sides = {right, first_number.group()} if first_number else {right}
    percents = (Fraction(1, 100), Fraction(1)) if "%" in left + right else (Fraction(1),)
    if _LEADING_ZERO.search(left):
        return True
    is_quotient = re.search(rf"(?<!/)/(?!/)|{_DIVIDED}", left) is not None
    verdicts = []
    for side in sides:
        for percent in percents:
            value, expected = value_of(left, percent), value_of(side, percent)
            if value is None or expected is None:
                return True
            verdicts.append(_agrees(value, expected, side, is_quotient))
    return any(verdicts)


def _agrees(value: Fraction, written: Fraction, side: str, is_quotient: bool) -> bool:
    """Say whether a side may be what a value is written as."""
    if value == written:
        return True
    shown = max((len(decimals) for decimals in re.findall(r"\.(\d+)", side)), default=0)
    unit = Fraction(1, 10**shown)
    error = abs(value - written)
    if (value / unit).denominator == 1:
        return False  # its decimals would have fitted
    if shown:
        is_float = len(re.sub(r"\D", "", side)) >= _FEWEST_FLOAT_DIGITS
        return error <= unit or (is_float and error <= abs(value) / 10 ** (_FEWEST_FLOAT_DIGITS + 1))
    return is_quotient and (error < unit / 2 or (error == unit / 2 and abs(written) > abs(value)))
