"""The servers' key: read from the environment when a request leaves, kept nowhere, and cut out of what servers say."""

import base64
import html
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, MutableMapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from axolotl_sdft.core.errors import ConfigError

REDACTED = "[redacted key]"
HIDDEN = "(a text that holds the servers' key in another form is not shown)"

_SHORTEST_SECRET = 8
_LONGEST_STAND_IN = 20  # characters of plain words that are no passphrase yet: `sk-no-key-required`
# With `sk-` begin keys, but for that of llama.cpp, which stands for none.
_PLAIN_WORDS = re.compile(r"(?!sk-(?!no-key))(?:[A-Z]+|[A-Z]?[a-z]+)(?:[-_.](?:[A-Z]+|[A-Z]?[a-z]+))*")
_LONGEST_FRAGMENT = 16  # of a key that was split: as many equal characters are not a coincidence
_HTTP_LIBRARIES = {"openai", "httpx", "httpcore", "httpx2", "httpcore2"}
_BETWEEN = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\\\"']")
_JSON_ESCAPE = re.compile(r"\\+u00([0-7][0-9a-fA-F])")


class ApiKey:
    """The key of an environment variable; without the variable, none."""

    def __init__(self, variable: str) -> None:
        self.variable = variable

    def put_into(self, headers: MutableMapping[str, str]) -> None:
        """Let a request carry the key, or none."""
        headers.pop("Authorization", None)
        key = self._value()
        if key:
            headers["Authorization"] = f"Bearer {key}"

    def check(self) -> None:
        """Return when the key can be sent, or there is none.

        Raises:
            ConfigError: It holds a character that no header can; the message names the variable, not the key.
        """
        # An HTTP library would show the whole key in its own error.
        if not re.fullmatch(r"[\x21-\x7e]*", self._value()):
            raise ConfigError(
                f"self_distillation.generation.api_key_env: the environment variable {self.variable} holds a space, a "
                "line break or a letter that is not ASCII, so it can't be a key; set it to the key alone"
            )

    def is_set(self) -> bool:
        """Say whether there is a key to send."""
        return bool(self._value())

    def redacted(self, text: str) -> str:
        """Return a text of a server without the key in it, in whatever form servers quote it.

        Percent-encoded, escaped for JSON or HTML, in base64 or hexadecimal, broken by spaces or control characters, or
        half of it: each becomes ``***``. Encoded in some mixture, it takes the whole text with it.
        """
        key = self._value()
        return _redacted(text, key) if _is_secret(key) else text

    def cleaned(self, value: Any) -> Any:
        """Return parsed JSON with :meth:`redacted` texts, keys of objects among them."""
        key = self._value()
        if not _is_secret(key):
            return value
        shortest = _fragment_size(key)
        return _each_text(value, lambda text: text if len(text) < shortest else _redacted(text, key))

    def is_in(self, text: str) -> bool:
        """Say whether a text holds the key, in any of those forms."""
        return self.redacted(text) != text

    def _value(self) -> str:
        return os.environ.get(self.variable, "").strip()


class LogRedaction(logging.Filter):
    """While it is on, log lines of the HTTP libraries hold no key, and there is no line for each request.

    The SDK's own filter knows headers alone, while its lines for debugging show what is sent, settings among it.
    """

    def __init__(self, key: ApiKey) -> None:
        super().__init__()
        self._key = key

    def filter(self, record: logging.LogRecord) -> bool:
        """Take the key out of a record, or the record out of the log."""
        if record.levelno < logging.WARNING and record.name.partition(".")[0] in ("openai", "httpx", "httpx2"):
            return False
        record.msg, record.args = self._key.redacted(record.getMessage()), ()
        return True

    def turn_on(self) -> None:
        """Begin to look at each record."""
        for logger in _http_loggers():
            logger.addFilter(self)

    def turn_off(self) -> None:
        """Let records pass as they are again."""
        for logger in _http_loggers():
            logger.removeFilter(self)


def _http_loggers() -> Iterator[logging.Logger]:
    """Yield the loggers of the SDK and of what it sends with: a filter is asked for its own logger's records alone."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in _HTTP_LIBRARIES:
            yield logging.getLogger(name)


def _is_secret(key: str) -> bool:
    """Say whether a key is one: ``EMPTY``, ``anything`` or ``not-needed`` is what servers without a key are given.

    Such words stand in any answer, which would be refused for them.
    """
    if len(key) <= _LONGEST_STAND_IN and _PLAIN_WORDS.fullmatch(key):
        return False
    return len(key) >= _SHORTEST_SECRET or not (key.isalpha() or key.isdigit() or not key)


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each_text(item, change) if isinstance(item, str | list | dict) else item for item in value]
    if isinstance(value, dict):
        return {change(name): _each_text(item, change) for name, item in value.items()}
    return value


def _redacted(text: str, key: str) -> str:
    if len(text) < _fragment_size(key):
        return text
    fragments = _fragments(key)
    if any(fragment in text for fragment in fragments):
        text = _without_fragments(text, fragments)
    for form in _encoded(key):
        text = text.replace(form, REDACTED)
    if _BETWEEN.sub("", key) in _BETWEEN.sub("", text):
        text = _broken(key).sub(REDACTED, text)
    return HIDDEN if any(key in decoded for decoded in _decoded(text)) else text


# One key at a time is in use; a cache of one forgets it when another comes.
@lru_cache(maxsize=1)
def _encoded(key: str) -> tuple[str, ...]:
    """Return a key in the encodings in which servers quote it, the longest first."""
    raw = key.encode()
    forms = {quote(key, safe=""), html.escape(key), json.dumps(key)[1:-1], raw.hex(), raw.hex().upper()}
    forms |= {text for shift in range(3) for text in _in_base64(raw, shift)}
    return tuple(sorted(forms - {key}, key=len, reverse=True))


def _in_base64(raw: bytes, shift: int) -> Iterator[str]:
    """Yield what is sure to stand in the base64 of a longer text that holds these bytes at this place modulo 3."""
    first, last = -(-shift * 8 // 6), (shift + len(raw)) * 8 // 6
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield encode(b"\0" * shift + raw).decode()[first:last]


def _fragment_size(key: str) -> int:
    """Return how many characters in a row give a key away: half of it, or 16 of a long one; all of a short one."""
    return min(len(key), max(_SHORTEST_SECRET, min(-(-len(key) // 2), _LONGEST_FRAGMENT)))


@lru_cache(maxsize=1)
def _fragments(key: str) -> tuple[str, ...]:
    """Return all parts of a key that give it away; none of a short key, which may be part of a word."""
    size = max(_SHORTEST_SECRET, _fragment_size(key))
    return tuple(key[start : start + size] for start in range(len(key) - size + 1))


@lru_cache(maxsize=1)
def _broken(key: str) -> re.Pattern[str]:
    """Return what matches a key, whole or with spaces or control characters in it."""
    pattern = f"(?:{_BETWEEN.pattern})*".join(map(re.escape, key))
    # A short one within a longer word is chance.
    return re.compile(pattern if len(key) >= _SHORTEST_SECRET else rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])")


def _without_fragments(text: str, fragments: tuple[str, ...]) -> str:
    """Return a text with each run of characters that overlapping fragments cover replaced."""
    covered = bytearray(len(text))
    for fragment in fragments:
        start = text.find(fragment)
        while start >= 0:
            covered[start : start + len(fragment)] = b"\1" * len(fragment)
            start = text.find(fragment, start + 1)
    parts, place = [], 0
    for run in re.finditer(b"\x01+", covered):
        parts += [text[place : run.start()], REDACTED]
        place = run.end()
    return "".join([*parts, text[place:]])


def _decoded(text: str) -> Iterator[str]:
    """Yield a text with escapes of one kind after another undone, twice: proxies quote what was quoted."""
    for _ in range(2):
        if "%" in text:
            yield (text := unquote(text))
        if "\\" in text:
            yield (text := _JSON_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text).replace("\\/", "/"))
        if "&" in text:
            yield (text := html.unescape(text))
