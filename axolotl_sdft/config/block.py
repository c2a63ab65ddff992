"""What the YAML blocks have in common, and numbers that a user may write in several ways."""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


def nearest_key_hint(key: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the nearest known key, or the list of all when none is near."""
    names = sorted(known)
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(names)}"


class Block(BaseModel):
    """A YAML block: frozen, described by the strings under its fields, strict about its keys."""

    # Values that are wrong may be secrets in the wrong place, so pydantic's own text shows none.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _unknown_keys_name_the_nearest_known_one(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(cls.unknown_key(str(key)))
        return data

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """Return what is wrong with a key that the block does not have, and what may be meant."""
        return f"unknown key {key!r}; {nearest_key_hint(key, cls.model_fields)}"


def parse_num_layers(value: Any) -> int | float:
    """Return a count of layers, or a fraction of a model's layers, from a number or its text.

    Raises:
        ValueError: It is neither a whole number from 1 on nor a fraction between 0 and 1.
    """
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    is_whole = isinstance(value, int) or (isinstance(value, str) and value.strip().isdecimal())
    if number is not None and is_whole and number >= 1:
        return int(value)
    if number is not None and not is_whole and 0 < number < 1:
        return number
    raise ValueError(
        f"{value!r} is no number of layers; write a whole number from 1 on, such as 6, or a fraction of the model's "
        "layers between 0 and 1, such as 0.25"
    )


_SIZE_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Return the bytes that a size such as ``500MB`` or ``2GiB`` stands for.

    Raises:
        ValueError: The text is no positive number followed by a unit.
    """
    compact = text.replace(" ", "").upper()
    unit = next((unit for unit in sorted(_SIZE_UNITS, key=len, reverse=True) if compact.endswith(unit)), None)
    try:
        size = int(float(compact.removesuffix(unit)) * _SIZE_UNITS[unit]) if unit else 0
    except (ValueError, OverflowError):  # infGB overflows
        size = 0
    if size <= 0:
        raise ValueError(f"{text!r} is no size; write a number and a unit, such as 500MB or 5GB")
    return size
