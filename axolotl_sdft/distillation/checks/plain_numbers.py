"""Reads one number at a place of a text, however it is written: digits, words, fractions, with million or dozen."""

import re
from fractions import Fraction

_SPACE = "[ \N{NO-BREAK SPACE}\N{THIN SPACE}\N{NARROW NO-BREAK SPACE}'\N{RIGHT SINGLE QUOTATION MARK}_]"
# 1,250.5; 1,00,000 as in India; 1.250,00; 1.250.000; 1 250; 1,5 or 1.5
_LITERAL = re.compile(
    r"(?:(?P<comma>[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d+)?)"
    r"|(?P<dot>[1-9]\d{0,2}(?:\.\d{3})+,\d+|[1-9]\d{0,2}(?:\.\d{3}){2,})"
    rf"|(?P<space>[1-9]\d{{0,2}}(?:{_SPACE}\d{{3}})+(?:[.,]\d+)?)"
    r"|(?P<simple>\d+(?:[.,]\d+)?|\.\d+))(?!\d|[.,]\d)(?:[eE](?P<exponent>[-+\N{MINUS SIGN}]?\d{1,3})(?!\w))?"
)
_GLYPHS = {
    **{"\u00bd": "1/2", "\u00bc": "1/4", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3", "\u2155": "1/5"},
    **{"\u2156": "2/5", "\u2157": "3/5", "\u2158": "4/5", "\u215b": "1/8", "\u215c": "3/8", "\u215d": "5/8"},
}
_DIGITS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
_SMALL = _DIGITS | {"zero": 0, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15}
_SMALL |= {"sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19}
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_SCALES = {
    **{"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12},
    **{"k": 1000, "mn": 10**6, "bn": 10**9},
}
_SCALES |= {
    word: scale
    for scale, words in (
        (1000, "thousands mil mille mila tausend duizend tusen ribu тысяча тысячи тысяч тыс"),
        (10**5, "lakh lakhs"),
        (10**6, "millions millón millones millon millionen mio milhão milhões milione milioni miljoen"),
        (10**6, "миллион миллиона миллионов млн juta milyon"),
        (10**7, "crore crores"),
        (10**9, "billions milliarde milliarden mrd milliard milliards miliardo miliardi miljard milyar"),
        (10**9, "bilhão bilhões миллиард миллиарда миллиардов млрд"),
        (10**12, "trillions"),
    )
    for word in words.split()
}
_SCALES |= {"hundreds": 100, "dozens": 12}
# Those of scripts without spaces, unless they begin a unit: 千克 is a kilogram, 百分 a percent.
_JOINED_SCALES = {"百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "만": 10**4}
_JOINED_SCALES |= {"亿": 10**8, "億": 10**8, "억": 10**8, "兆": 10**12, "조": 10**12}
_JOINED_SCALE = re.compile(r"\s?(百(?!分)|千(?![克米瓦卡])|[万萬만亿億억兆조])")
_UNSPACED = "\u0e01-\u0e4e\u0e80-\u0ece\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7}
_PARTS |= {"eighth": 8, "ninth": 9, "tenth": 10, "hundredth": 100, "thousandth": 1000}
_WORD = re.compile(r"[\s-]*\b([A-Za-z]+)\b")
_SCALE_NAMES = "|".join(sorted((name for name in _SCALES if len(name) > 1), key=len, reverse=True))
_SCALE = re.compile(rf"[\s-]*\b((?i:{_SCALE_NAMES}))(?!\w)|([kKMB])(?!\w)")
_MIXED = re.compile(r"[ -](?P<top>\d{1,3})\s?[/\u2044]\s?(?P<bottom>\d{1,3})(?!\d|[/.]\d)")
_DIVISOR = re.compile(r"\s?[/\u2044]\s?(?=[\d.])")
_PART_NAME = "half|thirds?|quarters?|fourths?|fifths?|sixths?|eighths?|tenths?"
_AND_A_PART = re.compile(rf"\s+(?:[a-z]+\s+)?and\s+(a|an|one|two|three)[\s-]+({_PART_NAME})\b", re.IGNORECASE)
_A = re.compile(
    rf"(?:an?|one)\s+(?=(?:hundred|thousand|million|billion|trillion|dozen|{_PART_NAME})\b)|half\s+(?=an?\s)",
    re.IGNORECASE,
)
_NUMBER_WORDS = "|".join((*_SMALL, *_TENS))
START = re.compile(
    rf"(?:(?<![\w.])|(?<=[{_UNSPACED}]))(?:\d|\.\d)|[{''.join(_GLYPHS)}]"
    rf"|\b(?:{_NUMBER_WORDS}|half|an?\s+(?:hundred|thousand|million|billion|dozen|{_PART_NAME}))\b",
    re.IGNORECASE,
)
"""Where a number may begin."""


def read_number(text: str, place: int) -> tuple[Fraction, int] | None:
    """Return the value of the number that begins at ``place``, without a sign, and where it ends; None without one."""
    read = _read_digits(text, place) or _read_glyph(text, place) or _read_words(text, place)
    if read is None:
        return None
    value, end = read
    part = _AND_A_PART.match(text, end)
    if part is not None:
        count = _SMALL.get(part[1].lower(), 1)
        value, end = value + Fraction(count, _PARTS[_singular(part[2])]), part.end()
    return _scaled(text, value, end)


def _read_digits(text: str, place: int) -> tuple[Fraction, int] | None:
    found = _LITERAL.match(text, place)
    if found is None:
        return None
    value, end = _literal_value(found), found.end()
    if value.denominator == 1 and (mixed := _MIXED.match(text, end)) and 0 < int(mixed["top"]) < int(mixed["bottom"]):
        return value + Fraction(int(mixed["top"]), int(mixed["bottom"])), mixed.end()
    glyph = _read_glyph(text, end + (text[end : end + 1] == " "))
    if glyph is not None:
        return value + glyph[0], glyph[1]
    slash = _DIVISOR.match(text, end)
    divisor = _LITERAL.match(text, slash.end()) if slash else None
    if divisor is not None and (below := _literal_value(divisor)):
        return value / below, divisor.end()
    return value, end


def _literal_value(found: re.Match[str]) -> Fraction:
    digits = found["comma"] or found["dot"] or found["space"] or found["simple"]
    if found["comma"]:
        digits = digits.replace(",", "")
    elif found["dot"]:
        digits = digits.replace(".", "")
    elif found["space"]:
        digits = re.sub(_SPACE, "", digits)
    exponent = int((found["exponent"] or "0").replace("\N{MINUS SIGN}", "-"))
    whole, _, decimals = digits.replace(",", ".").partition(".")
    if len(digits) > 1000:  # Python refuses to read numbers of more than 4300 digits; no answer needs as many
        return Fraction(-len(digits))
    return Fraction(int(whole + decimals or "0"), 10 ** len(decimals)) * Fraction(10) ** exponent


def _read_glyph(text: str, place: int) -> tuple[Fraction, int] | None:
    glyph = _GLYPHS.get(text[place : place + 1])
    return (Fraction(glyph), place + 1) if glyph else None


def _read_words(text: str, place: int) -> tuple[Fraction, int] | None:
    article = _A.match(text, place)
    if article is not None:
        after = _WORD.match(text, article.end())
        name = _singular(after[1]) if after else ""
        if after and name in _PARTS:
            return Fraction(1, _PARTS[name]), after.end()
        if article[0].lower().startswith("half"):
            return Fraction(1, 2), _past_article(text, article.end())
    word = _WORD.match(text, place)
    if word and word[1].lower() == "half":
        return Fraction(1, 2), word.end()
    read = _read_count(text, place)
    if read is None:
        return None
    part = _WORD.match(text, read[1])
    if part and part[1].lower() != "seconds" and (below := _PARTS.get(_singular(part[1]))) and read[0] < below:
        return read[0] / below, part.end()
    return read


def _past_article(text: str, place: int) -> int:
    """Return where "a" in "half a million" ends, or ``place`` where what is halved is not a number."""
    found = re.compile(r"an?(?=\s+(?:hundred|thousand|million|billion|trillion|dozen)\b)").match(text, place)
    return found.end() if found else place - 1


def _read_count(text: str, place: int) -> tuple[Fraction, int] | None:
    """Return the value of a run of number words such as "two hundred and five", and where it ends."""
    article = _A.match(text, place)
    total, end, joins = (1, article.end() - 1, False) if article else (-1, place, False)
    while (word := _WORD.match(text, end if not joins else place)) is not None:
        name = word[1].lower()
        value = _SMALL.get(name, _TENS.get(name))
        if name == "and" and total > 0 and total % 100 == 0:
            joins, place = True, word.end()
            continue
        if name == "hundred" and 0 < total < 100:
            total *= 100
        elif value is None or not _may_follow(total, value):
            break
        else:
            total = value if total < 0 else total + value
        joins, end = False, word.end()
    return (Fraction(total), end) if total >= 0 else None


def _may_follow(total: int, value: int) -> bool:
    return total < 0 or (total > 0 and (total % 100 == 0 or (total % 10 == 0 and total % 100 >= 20 and 0 < value < 10)))


def _scaled(text: str, value: Fraction, end: int) -> tuple[Fraction, int]:
    """Multiply by the words that follow, as in "2 hundred thousand" and "five thousand two hundred"."""
    while (joined := _JOINED_SCALE.match(text, end)) is not None:
        scale = _JOINED_SCALES[joined[1]]
        value, end = value * scale, joined.end()
        rest = _read_digits(text, end)  # 3万5000 is 35,000
        if rest is not None:
            small, small_end = _scaled(text, *rest)
            value, end = (value + small, small_end) if small < scale else (value, end)
    while (found := _SCALE.match(text, end)) is not None:
        name = (found[1] or {"M": "mn", "B": "bn"}.get(found[2], found[2])).lower()
        value, end = value * _SCALES[name], found.end()
        rest = _read_count(text, end) if name in ("hundred", "thousand", "million") else None
        if rest is not None and text[end : end + 1] in " -":
            small, small_end = _scaled(text, *rest) if "thousand" in text[end : rest[1] + 12].lower() else rest
            value, end = value + small, small_end
    return value, end


def _singular(word: str) -> str:
    return word.lower().removesuffix("s")
