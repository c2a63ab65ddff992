"""What a check of a configuration finds. Imports no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal


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
