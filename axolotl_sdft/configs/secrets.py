"""Finds what must not leave this machine: keys and passwords. What it finds is never shown. Imports no torch."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from axolotl_sdft.configs.findings import Finding, fault, texts_with_keys
from axolotl_sdft.core.safe_output import is_secret_name, looks_secret

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
