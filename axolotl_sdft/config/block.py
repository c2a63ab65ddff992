"""What the YAML blocks have in common."""

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
                    raise ValueError(f"unknown key {str(key)!r}; {nearest_key_hint(str(key), cls.model_fields)}")
        return data
