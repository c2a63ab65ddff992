"""Finds what must not leave this machine: keys and passwords. What it finds is never shown. Imports no torch."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from axolotl_sdft.sharing.findings import Finding, fault

_SECRET_NAME = re.compile(
    r"(^|_)(api_?key|key_api|access_key(_id)?|secret_key|private_key|auth_?key|token|secret|secrets|password|passwd|"
    r"pwd|passphrase|credentials?|authorization|cookie)$"
)
_HARMLESS_NAME = re.compile(
    r"(^|_)(bos|eos|pad|unk|sep|cls|mask|eot|image|video|audio|stop|special|max|min|per|new|num)_tokens?$|"
    r"^(hf_)?use_auth_token$|^(first|last|next)_token$"
)
_PLACEHOLDER = re.compile(
    r"\$\{?\w+\}?|<.*>|\{\{.*\}\}|\*+|\.+|x+|(your|my)\W?.*|(env|environ|os\.environ)\b.*|.*_env|none|null|true|false|"
    r"required|optional|unset|auto|empty|redacted|changeme",
    re.IGNORECASE,
)
_SECRET_FORM = re.compile(
    r"hf_[A-Za-z0-9]{20,}|\b(?:sk|rk|pk)[-_][A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|"
    r"glpat-[\w-]{16,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{30,}|xox[abprs]-[\w-]{10,}|nvapi-[\w-]{20,}|"
    r"gsk_\w{20,}|r8_\w{20,}|npm_\w{30,}|pypi-[\w-]{30,}|SG\.[\w-]{16,}\.[\w-]{16,}|wandb_v1_\w{20,}|"
    r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*|-----BEGIN [A-Z ]*PRIVATE KEY|"
    r"\b(?:Bearer|Basic)\s+(?!\$|<)[\w.~+/=-]{12,}"
)
_ASSIGNED = re.compile(r"""(?<![\w-])([A-Za-z][\w.-]*)["']?(?:\s*[:=]|\s+is)\s*["']?([^\s"',;]{6,})""")
_URL = re.compile(r"""[A-Za-z][A-Za-z0-9+.-]*://[^\s"'<>]+""")
_SIGNING_PARAMETER = re.compile(r"(^|[-_])(sig|signature|key|apikey|token|secret|password|credential)$", re.IGNORECASE)
_PASSWORD = re.compile(r"passw(or)?d$|pwd$|passphrase$", re.IGNORECASE)
_WANDB_KEY = re.compile(r"[0-9a-f]{40}")
_OUT = "take it out, and let it come from an environment variable"


def secret_findings(raw: Mapping[str, Any], text: str) -> Iterator[Finding]:
    """Yield the keys whose values are secrets by their name or their form, and secrets in comments."""
    yield from _in(raw, "")
    for line in text.splitlines():
        comment = line if line.lstrip().startswith("#") else line.partition(" #")[2]
        if holds_secret(comment):
            yield fault("comments", f"one holds what looks like a key or a password; {_OUT}")
            return


def holds_secret(text: str) -> bool:
    """Say whether a text holds a key or a password: by its form, behind a name that says so, or in an address."""
    return (
        bool(_SECRET_FORM.search(text))
        or any(_is_assigned_secret(name, value) for name, value in _ASSIGNED.findall(text))
        or any(_is_secret_url(url) for url in _URL.findall(text))
    )


def is_secret(name: str, value: str) -> bool:
    """Say whether the value of a key is a secret, by the key's name or by its own form.

    Args:
        name: The key, without those above it; ``apiKey`` and ``X-Api-Key`` are known as ``api_key`` is.
        value: Its value.
    """
    if _PLACEHOLDER.fullmatch(value.strip()) or not value.strip():
        return False
    key = _snake_case(name)
    is_wandb_key = bool(_WANDB_KEY.fullmatch(value)) and "wandb" in key
    return _names_secret(key) or is_wandb_key or holds_secret(value)


def _names_secret(key: str) -> bool:
    return bool(_SECRET_NAME.search(key)) and not _HARMLESS_NAME.search(key)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").replace(".", "_").lower()


def _is_assigned_secret(name: str, value: str) -> bool:
    """Say whether ``name: value`` within a text gives a secret away; a plain word behind a colon is a sentence."""
    if not _names_secret(_snake_case(name)) or _PLACEHOLDER.fullmatch(value) or _URL.match(value):
        return False
    is_plain_word = value.rstrip(".)").isalpha() and (value.islower() or value.istitle())
    return not is_plain_word or bool(_PASSWORD.search(name))


def _is_secret_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        password, user = parts.password, parts.username
    except ValueError:
        return False
    if password and not _PLACEHOLDER.fullmatch(password):
        return True
    if user and len(user) >= 16 and not _PLACEHOLDER.fullmatch(user):  # a token in the place of a user's name
        return True
    return any(
        _SIGNING_PARAMETER.search(name) and len(value) >= 8 and not _PLACEHOLDER.fullmatch(value)
        for name, value in parse_qsl(parts.query)
    )


def _in(value: Any, key: str) -> Iterator[Finding]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _in(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _in(item, f"{key}[{index}]")
    elif isinstance(value, str) and is_secret(key.rpartition(".")[2].partition("[")[0], value):
        yield fault(key, f"holds what looks like a key or a password; {_OUT}")
