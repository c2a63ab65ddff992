"""Finds what must not leave this machine: keys and tokens. What it finds is never shown. Imports no torch."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from axolotl_sdft.sharing.findings import Finding, fault

_SECRET_NAME = re.compile(r"(^|_)(api_?key|key_api|token|secret|password|passwd|credentials)$", re.IGNORECASE)
_HARMLESS = re.compile(r"(^|_)(bos|eos|pad|unk|sep|cls|mask|eot)_token$|^hf_use_auth_token$")
_SECRET_VALUE = re.compile(
    r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|"
    r"://[^/\s:@]+:[^/\s@]+@"
)
_WANDB_KEY = re.compile(r"[0-9a-f]{40}")
_OUT = "take it out, and let it come from an environment variable"


def secret_findings(raw: Mapping[str, Any], text: str) -> Iterator[Finding]:
    """Yield the keys whose values are secrets by their name or their form, and secrets in comments."""
    found = list(_in(raw, ""))
    yield from found
    if not found and _SECRET_VALUE.search(text):
        yield fault("comments", f"one holds what looks like a key or a password; {_OUT}")


def _in(value: Any, key: str) -> Iterator[Finding]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _in(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _in(item, f"{key}[{index}]")
    elif isinstance(value, str) and value:
        name = key.rpartition(".")[2]
        is_named = bool(_SECRET_NAME.search(name)) and not _HARMLESS.search(name)
        is_key = bool(_WANDB_KEY.fullmatch(value)) and "wandb" in name
        if is_named or is_key or _SECRET_VALUE.search(value):
            yield fault(key, f"holds what looks like a key or a password; {_OUT}")
