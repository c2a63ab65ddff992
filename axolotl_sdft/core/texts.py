"""Small helpers for texts that people read."""

import re
import unicodedata

# Scripts that write no spaces between words: each of their characters counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
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
