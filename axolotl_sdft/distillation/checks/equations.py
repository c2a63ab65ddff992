"""The ``arithmetic`` check: an equation of the answer does not hold.

Only equations between plain numbers are looked at, such as ``3 * (4 + 5) = 27`` or ``$1.20 x 4 = $4.80``; one with a
unit or a variable in its left side is left alone. A percentage may be meant either way: 20% is 0.2 or 20.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterator
from fractions import Fraction

from axolotl_sdft.distillation.interfaces import Answer, Target
from axolotl_sdft.distillation.texts import shortened

_NUMBER = r"[$€£¥]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)%?"
_TERM = rf"(?:\( *){{0,8}}(?:- ?)?{_NUMBER}(?: *\)){{0,8}}"
_TIMES, _DIVIDED, _MINUS = "\N{MULTIPLICATION SIGN}", "\N{DIVISION SIGN}", "\N{EN DASH}\N{MINUS SIGN}"
_OPERATOR = rf" ?(?:[-+*/{_TIMES}{_DIVIDED}{_MINUS}]|x(?=[ \d$(.])) ?"
# What another number, a letter or an operator precedes is the end of a longer expression, as in 2 x 1 1/2 = 3.
_START = rf"(?<![\w.,)\]}}%^*/+<>{_TIMES}{_DIVIDED}{_MINUS}-])(?<![-\d)+*/x^%{_TIMES}{_DIVIDED}{_MINUS}] )(?<!and )"
_EQUATION = re.compile(
    rf"{_START}({_TERM}(?:{_OPERATOR}{_TERM}){{1,20}}) ?=(?= ?({_TERM}(?:{_OPERATOR}{_TERM}){{0,20}})(?!\.?\w|[\^(]))"
)
_PYTHON = str.maketrans(
    {_TIMES: "*", "x": "*", _DIVIDED: "/"} | dict.fromkeys(_MINUS, "-") | dict.fromkeys("$\u20ac\u00a3\u00a5,")
)
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def arithmetic(answer: Answer, target: Target) -> str | None:
    """Reject an answer with an equation between plain numbers that is wrong, unless the original has the same one."""
    accepted = {_compact(left, right) for left, right in _equations(target.reference)}
    for left, right in _equations(answer.text):
        if _compact(left, right) not in accepted and not _holds(left, right):
            return f"'{shortened(f'{left} = {right}')}' is wrong"
    return None


def _equations(text: str) -> Iterator[tuple[str, str]]:
    for found in _EQUATION.finditer(text):
        yield found[1].strip(), found[2].strip()


def _compact(left: str, right: str) -> str:
    return re.sub(r"\s", "", f"{left}={right}").translate(_PYTHON)


def _holds(left: str, right: str) -> bool:
    """Say whether both sides are equal, as far as the decimals on the right can show; True where a side has no value.

    In a run-on such as ``2 + 3 = 5 + 1 = 6``, the number right behind the sign may be meant alone.
    """
    first_number = re.match(_TERM, right)
    sides = [right, first_number.group()] if first_number else [right]
    shown = max((len(decimals) for decimals in re.findall(r"\.(\d+)", right)), default=0)
    is_rounded = shown > 0 or "/" in left or _DIVIDED in left
    verdicts = []
    for side in sides:
        for percent in ("/100", ""):
            value, expected = _value(left, percent), _value(side, percent)
            if value is None or expected is None:
                return True
            verdicts.append(abs(value - expected) <= (Fraction(1, 10**shown) if is_rounded else 0))
    return any(verdicts)


def _value(side: str, percent: str) -> Fraction | None:
    """Return the value of one side, or None where it has none: a bracket is missing, a number divided by zero."""
    try:
        return _evaluated(ast.parse(side.translate(_PYTHON).replace("%", percent).strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):  # brackets may nest too deep
        return None


def _evaluated(node: ast.AST) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as value):
            return Fraction(str(value))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluated(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluated(left), _evaluated(right))
    raise SyntaxError(f"{ast.dump(node)} is no number")
