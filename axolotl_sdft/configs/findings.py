"""What a check of a configuration finds, and keys and passwords among it, which are never shown. Imports no torch."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from axolotl_sdft.core.safe_output import is_secret_name, looks_secret


@dataclass(frozen=True)
class Finding:
    """One thing that keeps a configuration from being of use to others."""

    level: Literal["fault", "advice"]
    """``fault``: it fails for others, does something else there, or gives a secret away. ``advice``: it runs, but could
    serve them better."""

    key: str
    """Dotted key in the YAML, such as ``datasets[0].path``, or ``description``."""

    message: str

    def line(self) -> str:
        """Return the finding as one line of text."""
        return f"{self.level}: {self.key}: {self.message}"


def fault(key: str, message: str) -> Finding:
    """Return a finding that must be mended before sharing."""
    return Finding("fault", key, message)


def advice(key: str, message: str) -> Finding:
    """Return a finding that may stay."""
    return Finding("advice", key, message)


def texts_with_keys(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield every text below a value with its dotted key."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from texts_with_keys(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from texts_with_keys(item, f"{key}[{index}]")
    elif isinstance(value, str):
        yield key, value


_PLACEHOLDER = re.compile(
    r"\$\{?\w+\}?|<.*>|\{\{.*\}\}|\*+|\.+|x+|(your|my)\W?.*|(env|environ|os\.environ)\b.*|none|null|true|false|"
    r"required|optional|unset|auto|empty|redacted|changeme",
    re.IGNORECASE,
)
_ASSIGNED = re.compile(r"""(?<![\w-])([A-Za-z][\w.-]*)["']?(?:\s*[:=]|\s+is)\s*["']?([^\s"',;]{6,})""")
_PASSWORD = re.compile(r"passw(or)?d$|pwd$|passphrase$", re.IGNORECASE)
_OUT = "take it out, and let it come from an environment variable"


def secret_findings(raw: Mapping[str, Any], text: str) -> Iterator[Finding]:
    """Yield the keys whose values are secrets by their name or their form, and secrets in comments."""
    for key, value in texts_with_keys(raw, ""):
        if _is_secret(key.rpartition(".")[2].partition("[")[0], value):
            yield fault(key, f"holds what looks like a key or a password; {_OUT}")
    for line in text.splitlines():
        comment = line if line.lstrip().startswith("#") else line.partition(" #")[2]
        if _holds_secret(comment):
            yield fault("comments", f"one holds what looks like a key or a password; {_OUT}")
            return


def _is_secret(name: str, value: str) -> bool:
    if not value.strip() or _PLACEHOLDER.fullmatch(value.strip()):
        return False
    return is_secret_name(name) or _holds_secret(value, name)


def _holds_secret(text: str, name: str = "") -> bool:
    """Say whether a sentence or a command holds a key or a password: by its form, or behind a name that says so."""
    return looks_secret(text, name) or any(_is_assigned(word, value) for word, value in _ASSIGNED.findall(text))


def _is_assigned(name: str, value: str) -> bool:
    """Say whether ``name: value`` gives a secret away; a plain word behind ``token:`` is part of a sentence."""
    if not is_secret_name(name) or _PLACEHOLDER.fullmatch(value):
        return False
    is_plain_word = value.rstrip(".)").isalpha() and (value.islower() or value.istitle())
    return not is_plain_word or bool(_PASSWORD.search(name))
