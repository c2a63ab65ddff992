"""What people read: short texts, which rows to show them, and self-contained HTML pages."""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

# Scripts that write no spaces between words: each of their characters counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:['\N{{RIGHT SINGLE QUOTATION MARK}}]\w+)?")

# C0 but tab and line feed, C1, marks of writing direction, half surrogates.
_DISTURBING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSEEN = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
_SURROGATE = re.compile("[\ud800-\udfff]")


def shortened(text: str, length: int = 60) -> str:
    """Return a text on one line, cut to ``length`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def one_line(text: str) -> str:
    """Return a :func:`printable` text on one line."""
    return " ".join(printable(text).split())


def printable(text: str) -> str:
    """Return a text without what would disturb a terminal or a page: control characters, turned writing directions."""
    return _DISTURBING.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: space, control characters and marks without a width."""
    return all(unicodedata.category(character) in _UNSEEN for character in text)


def well_formed(text: str) -> str:
    """Return a text without halves of surrogate pairs, which come from JSON that was cut within an emoji.

    Two halves that belong together become their character, others U+FFFD.
    """
    if _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def cut(text: str, length: int) -> str:
    """Return a text with its lines, cut after ``length`` characters, with a note of how many are left out."""
    text = text.strip()
    return text if len(text) <= length else f"{text[:length].rstrip()} ... ({len(text) - length:,} more characters)"


def words(text: str) -> list[str]:
    """Return the words of a text, in the case in which they stand there; in Chinese, for one, the characters."""
    return _WORD.findall(text)


def num_words(text: str) -> int:
    """Return about how many words a text has: spaces tell them, and in Chinese, for one, two characters make one."""
    return len(text.split()) + len(_UNSPACED_CHARACTER.findall(text)) // 2


def duration(seconds: float) -> str:
    """Return a time in the two units that matter: ``45 s``, ``12 min``, ``3 h 20 min``, ``2 days 5 h``."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"


def short_number(value: int, unit: str) -> str:
    """Return a number in four digits, with the prefix of its thousands: 134515008 is 134.5 M."""
    size, prefixes = float(value), iter(("", "k", "M", "G", "T", "P"))
    prefix = next(prefixes)
    while abs(size) >= 999.95:
        size, prefix = size / 1000, next(prefixes)
    digits = f"{size:.1f}" if prefix else str(value)
    return f"{digits} {prefix}{unit}".rstrip()


def evenly_spaced(length: int, count: int) -> list[int]:
    """Return up to ``count`` indices, spread over all of ``range(length)``; 3 of 10: 0, 3, 6."""
    count = min(length, count)
    return [place * length // count for place in range(count)]


@cache
def page_template(package: str, file_name: str) -> Any:
    """Return a Jinja template that lies in a package; it may include ``page_head.html.jinja``, and knows our filters.

    Args:
        package: Such as ``axolotl_sdft.distillation``.
        file_name: Of the template in it.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        """Make texts printable; what a macro has drawn is Markup, and done already."""
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    def source(name: str) -> str:
        home = package if name == file_name else __package__
        return resources.files(home).joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        loader=FunctionLoader(source),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cut": cut, "percent": _percent, "count": _count, "duration": duration}
    return environment.get_template(file_name)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _count(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.10g}"


def texts_with_keys(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text below a value with its dotted key."""
    yield from ((name, text) for name, text in leaves_with_keys(value, key) if isinstance(text, str))


def leaves_with_keys(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value that is no mapping and no list with its dotted key."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from leaves_with_keys(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves_with_keys(item, f"{key}[{index}]")
    else:
        yield key, value
