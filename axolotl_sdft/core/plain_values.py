"""Values that JSON has no form for, told in plain ones that are the same in every process.

``str`` and ``repr`` will not do: for many objects they name an address in memory, for sets an order by chance, and of
large arrays they leave out the middle.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from re import Pattern
from typing import Any
from uuid import UUID

_WRITTEN = (Decimal, Fraction, PurePath, UUID, complex, range)
"""Types whose text is what they hold."""


def plain_value(value: Any) -> Any:
    """Return a value in texts, numbers, lists and mappings, for the ``default`` of :func:`json.dumps`.

    Bytes, arrays and pictures become a digest, with the shape and the dtype or mode; dates their ISO form.

    Raises:
        TypeError: There is no such form of it; the message names the type.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return _digest(bytes(value))
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"{value.days} days {value.seconds} s {value.microseconds} us"
    if isinstance(value, _WRITTEN):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Pattern):
        return [value.pattern, value.flags]
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(item, sort_keys=True, default=plain_value) for item in value)
    return _of_foreign_type(value)


def _of_foreign_type(value: Any) -> Any:
    """Return the content of arrays, tensors and pictures, whose packages may be missing here."""
    if callable(getattr(value, "detach", None)):  # a tensor of torch
        tensor = value.detach().cpu()
        return [str(tensor.dtype), list(tensor.shape), tensor.tolist()]
    if not callable(getattr(value, "tobytes", None)):
        raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__} has no plain form")
    if hasattr(value, "getpalette"):  # a picture of Pillow
        return [value.mode, list(value.size), value.getpalette(), _digest(value.tobytes())]
    if getattr(value, "shape", None) == ():  # one number
        return value.item()
    if str(value.dtype) == "object":  # its bytes are addresses
        return value.tolist()
    return [str(value.dtype), list(value.shape), _digest(value.tobytes())]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
