"""Works out plain arithmetic such as ``3 * (4 + 5)`` or ``2^10``, exactly and in bounded time.

Nothing nests here but a list: a text of a hundred thousand brackets has no value, and raises nothing.
"""

import operator
import re
from collections.abc import Callable
from fractions import Fraction

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
