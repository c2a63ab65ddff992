"""Finds the quantities of a passage: numbers with their signs, times, dates, ratios, ranges and calculations.

The markup of LaTeX and Markdown is taken off before: ``\\frac{1}{2}`` is 1/2.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from axolotl_sdft.distillation.checks.arithmetic import value_of
from axolotl_sdft.distillation.checks.plain_numbers import START, read_number

_DASHES = "-\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}"
_MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DATE = re.compile(
    rf"\b(?:{_MONTH}\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:,?\s+(?P<year>\d{{4}}))?"
    rf"|(?P<day_first>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH.replace('month', 'month_after')}"
    r"(?:,?\s+(?P<year_after>\d{4}))?)(?![\w:])",
    re.IGNORECASE,
)
_HALF_DAY = r"(?P<half>[ap])\.?\s?m\b\.?"
_CLOCK = re.compile(
    rf"(?P<hour>\d{{1,2}}):(?P<minute>[0-5]\d)(?::[0-5]\d)?(?![\d:])(?:\s?{_HALF_DAY})?"
    rf"|(?P<full_hour>\d{{1,2}})\s?{_HALF_DAY.replace('half', 'half_after')}",
    re.IGNORECASE,
)
_CHAIN = re.compile(rf"\d+(?:(?P<mark>[.,:/]|[{_DASHES}])\d+)(?:(?P=mark)\d+)+(?!\d)")
_RATIO = re.compile(r"(?P<first>\d+(?:\.\d+)?)\s?:\s?(?P<second>\d+(?:\.\d+)?)(?![\d:])")
_RANGE_MARK = re.compile(rf"\s?(?:[{_DASHES}]|to|through)\s?[$\u20ac\u00a3]?(?=[\d.])|\s+(?:to|through)\s+")
_OPERAND = r"\(?\s?[$\u20ac\u00a3]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)%?\)?"
_OPERATOR = r"\s?(?:\*\*?|//?|[-+\u2212\u2013](?![-+])|[\u00d7\u00f7^x])\s?"
_CALCULATION = re.compile(rf"{_OPERAND}(?:{_OPERATOR}(?:\(?-?{_OPERAND}\)?)){{1,30}}(?![\d.]*\d)")
_MINUS_ONLY = re.compile(r"[^*/^x+\u00d7\u00f7]*")
_CURRENCY = r"(?:(?:US|A|C)?[$\u20ac\u00a3\u00a5\u20b9]\s?|\bRs\.?\s?)"
_SIGN = re.compile(rf"(?P<word>\b(?:minus|negative)\s+)?(?:(?P<dash>[{_DASHES}])(?P<gap>\s?))?(?:{_CURRENCY})?$")
_BEFORE_SIGN = re.compile(r"(?:^|[=:(\[{<>,*]|\b(?:is|are|be|equals?|answer|to|of))\s*$", re.IGNORECASE)
_PLUS_MINUS = re.compile(r"\N{PLUS-MINUS SIGN}\s?$")
_UNIT = re.compile(
    r"\s?(?:%|\u00b0\s?[CF]?\b|\u00b0|[$\u20ac\u00a3\u00a5])"
    r"|\s?[A-Za-z\u00b5]+(?:\s?\^\s?\(?-?[1-4]\)?|[2-4]\b)?(?:/[A-Za-z]+)*"
)
_VARIABLE = re.compile(r"(?:\s?[xyz]|[abcnpqruvwtij]|[xyzabn]{2,3})(?![\w'])(?!\s?\d)|\s?(?:\\[a-z]|[\u03c0\u221a])")
_GOES_ON = re.compile(
    r"\s?\^|\s?[-+*/^]\s?(?:[a-z](?![\w])|\\|[\u03c0\u221a]|\d+[a-z](?!\w))|\s?\((?=\s?[a-z]\s?[-+*/^])"
)
_BRACED = r"\{((?:[^{}]|\{[^{}]*\}){0,200})\}"
_SUPERSCRIPTS = str.maketrans("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-")
_SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+")
_WIDE = {0xFF01 + place: 0x21 + place for place in range(94)}  # as Chinese and Japanese keyboards write ASCII
_PLAINER = (
    (re.compile(r"(?<![\w\\])sqrt\s?\(([^()]{1,40})\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<=[\d)])\s?\*?\s?pi\b"), r"\\pi"),
    (re.compile(r"<<[^<>]{0,200}>>"), ""),  # annotations of a calculator
    (re.compile(r"(?<![\d)\s])\*\*|\*\*(?![\d(\s])|__|(?<=\d)\*\*(?=\s|$)|`"), ""),
    (re.compile(r"\\(?:text|mathrm|mathbf|mathit|textbf|operatorname)\s*" + _BRACED), r" \1 "),
    (re.compile(r"\\[dt]?frac\s*\{?\s*(\d+)\s*\}?\s*\{?\s*(\d+)\s*\}?"), r" \1/\2"),
    (re.compile(r"\\[,;:!> ]|~|\\(?:quad|left|right|displaystyle)\b"), " "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\(?:times|cdot)\b"), "\N{MULTIPLICATION SIGN}"),
    (re.compile(r"\\div\b"), "\N{DIVISION SIGN}"),
    (re.compile(r"\\pm\b"), "\N{PLUS-MINUS SIGN}"),
    (re.compile(r"\\(?:leq?|leqslant)\b|<="), "\N{LESS-THAN OR EQUAL TO}"),
    (re.compile(r"\\(?:geq?|geqslant)\b|>="), "\N{GREATER-THAN OR EQUAL TO}"),
    (re.compile(r"\\(?:lt)\b"), "<"),
    (re.compile(r"\\(?:gt)\b"), ">"),
    (re.compile(r"\\approx\b"), " about "),
    (re.compile(r"\\cup\b"), " or "),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?"), "\N{DEGREE SIGN}"),
    (re.compile(r"\\([$%&#_{}])"), r"\1"),
    (re.compile(r"\\[()\[\]]|\$"), ""),
    (re.compile(r"\^\s*\{\s*(-?\d{1,4})\s*\}"), r"^\1"),
    (re.compile(r"(?<=\d)\s+(?=\^)"), ""),
)
_MEASURES = {
    name: names.split()[0]
    for names in (
        *("hour hours hr hrs h", "minute minutes min mins", "second seconds sec secs s", "day days", "week weeks"),
        *("month months", "year years", "foot feet ft", "inch inches", "yard yards yd", "mile miles mi"),
        *("cent cents", "kilometer kilometers kilometre kilometres km", "meter meters metre metres m"),
        *("centimeter centimeters centimetre centimetres cm", "millimeter millimeters mm", "gram grams g"),
        *("kilogram kilograms kg", "pound pounds lb lbs", "ounce ounces oz", "liter liters litre litres l"),
        *("milliliter milliliters ml", "ton tons tonne tonnes", "gallon gallons", "quart quarts", "pint pints"),
    )
    for name in names.split()
}


@dataclass(frozen=True)
class Quantity:
    """One number, or what is written with several and means one thing, such as a time, a date or a range."""

    kind: str
    """``number``, ``time``, ``date``, ``ratio``, ``range``, ``either`` (plus or minus) or ``chain``, as in 3.5.1."""

    value: Any
    start: int
    end: int
    """Behind the unit, where it has one."""

    unit: str = ""
    """A unit of measure in its first spelling; empty for any other word."""

    is_formula: bool = False
    """Whether the number is a part of a formula with variables or roots."""

    def same_as(self, other: "Quantity") -> bool:
        """Say whether both mean the same: 4:30 PM and 16:30 do, 5 hours and 5 minutes do not."""
        if self.unit and other.unit and self.unit != other.unit:
            return False
        kinds = {self.kind, other.kind}
        if kinds == {"time"}:
            return _same_time(self.value, other.value)
        if kinds == {"date"}:
            return _same_date(self.value, other.value)
        if kinds == {"time", "number"}:
            time, number = (self, other) if self.kind == "time" else (other, self)
            hour, minute, _ = time.value
            return bool(minute == 0 and hour == number.value)
        if kinds == {"time", "ratio"}:
            time, ratio = (self, other) if self.kind == "time" else (other, self)
            return bool(time.value[:2] == ratio.value)
        return self.kind == other.kind and self.value == other.value


def plain_text(text: str) -> str:
    """Return a text without the markup of LaTeX and Markdown around its numbers."""
    text = text.translate(_WIDE)
    text = _SUPERSCRIPT.sub(lambda found: "^" + found[0].translate(_SUPERSCRIPTS), text)
    for pattern, plain in _PLAINER:
        text = pattern.sub(plain, text)
    return text


def find_quantities(text: str) -> list[Quantity]:
    """Return the quantities of a passage, in order; those in one another count as one."""
    return list(_quantities(text))


def _quantities(text: str) -> Iterator[Quantity]:
    place = 0
    while (start := _next_start(text, place)) is not None:
        found = _read(text, start)
        if found is None:
            place = start + 1
            continue
        yield found
        place = max(found.end, start + 1)


def _next_start(text: str, place: int) -> int | None:
    number = START.search(text, place)
    if number is None:
        return None
    date = _DATE.search(text, place, min(len(text), number.end() + 20))
    return date.start() if date and date.start() < number.start() else number.start()


def _read(text: str, start: int) -> Quantity | None:
    found = _read_date(text, start) or _read_clock(text, start) or _read_ratio(text, start) or _read_plain(text, start)
    if found is None or found.is_formula:
        return found
    if found.kind in ("number", "range") and (_VARIABLE.match(text, found.end) or _GOES_ON.match(text, found.end)):
        return replace(found, is_formula=True)
    unit = _UNIT.match(text, found.end)
    if unit is None or found.kind in ("date", "time"):
        return found
    name = _MEASURES.get(unit[0].strip().lower(), "")
    # A word behind a space may belong to the sentence; only what is a unit for certain is taken along.
    takes_along = bool(name) or not unit[0][0].isspace() or not unit[0].replace("/", "").strip().isalpha()
    return replace(found, unit=name, end=unit.end()) if takes_along else found


def _read_date(text: str, start: int) -> Quantity | None:
    found = _DATE.match(text, start)
    if found is None:
        return None
    month = (found["month"] or found["month_after"])[:3].lower()
    day, year = found["day"] or found["day_first"], found["year"] or found["year_after"]
    return Quantity("date", (month, int(day), int(year) if year else None), start, found.end())


def _read_clock(text: str, start: int) -> Quantity | None:
    found = _CLOCK.match(text, start)
    if found is None:
        return None
    half = (found["half"] or found["half_after"] or "").lower()
    value = (int(found["hour"] or found["full_hour"]), int(found["minute"] or 0), half)
    return Quantity("time", value, start, found.end()) if value[0] <= 24 else None


def _read_ratio(text: str, start: int) -> Quantity | None:
    number = read_number(text, start)
    chain = _CHAIN.match(text, start)
    if chain is not None and (number is None or number[1] < chain.end()) and "=" not in text[chain.end() :][:2]:
        return Quantity("chain", chain[0], start, chain.end())
    found = _RATIO.match(text, start)
    if found is None:
        return None
    return Quantity("ratio", (Fraction(found["first"]), Fraction(found["second"])), start, found.end())


def _read_plain(text: str, start: int) -> Quantity | None:
    number = read_number(text, start)
    if number is None:
        return None
    (value, end), sign = number, _sign(text, start)
    calculation = _CALCULATION.match(text, start)
    if calculation is not None and calculation.end() > end and not _MINUS_ONLY.fullmatch(calculation[0]):
        worked_out = value_of(text[start : calculation.end()])
        if worked_out is None:  # a power that would take long, a division by zero
            return Quantity("number", value, start, calculation.end(), is_formula=True)
        return Quantity("number", sign * worked_out, start, calculation.end())
    if _PLUS_MINUS.search(text[max(0, start - 3) : start]):
        return Quantity("either", value, start, end)
    mark = _RANGE_MARK.match(text, end) or (_UNIT.match(text, end) and _range_behind_unit(text, end))
    second = read_number(text, mark.end()) if mark and START.match(text, mark.end()) else None
    if second is not None:
        return Quantity("range", (sign * value, second[0]), start, second[1])
    return Quantity("number", sign * value, start, end)


def _range_behind_unit(text: str, end: int) -> re.Match[str] | None:
    """Return the mark of a range whose first number has a unit, as in "10 cm to 12 cm"."""
    unit = _UNIT.match(text, end)
    if unit is None or unit[0].strip().lower() not in _MEASURES | {"%": "%"}:
        return None
    return _RANGE_MARK.match(text, unit.end())


def _sign(text: str, start: int) -> int:
    """Return -1 for a number behind a minus, 1 else; a dash between words or numbers is not a minus."""
    before = text[max(0, start - 24) : start]
    found = _SIGN.search(before)
    if found is None:
        return 1
    if found["word"]:
        return -1
    if not found["dash"]:
        return 1
    ahead = before[: found.start()]
    if found["gap"]:
        return -1 if _BEFORE_SIGN.search(ahead) else 1
    return -1 if not ahead or not (ahead[-1].isalnum() or ahead[-1] in ")]}%") else 1


def _same_time(first: tuple[int, int, str], second: tuple[int, int, str]) -> bool:
    if first[2] and second[2]:
        return first == second
    return first[1] == second[1] and bool({first[0], _hour_of_day(first)} & {second[0], _hour_of_day(second)})


def _hour_of_day(time: tuple[int, int, str]) -> int:
    hour, _, half = time
    return hour % 12 + (12 if half == "p" else 0) if half else hour


def _same_date(first: tuple[str, int, int | None], second: tuple[str, int, int | None]) -> bool:
    return first[:2] == second[:2] and (first[2] == second[2] or None in (first[2], second[2]))
