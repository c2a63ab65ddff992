"""What the YAML blocks have in common: sizes and counts that may be written in several ways, and functions for
names.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from typing import Annotated, Any, TypeAlias, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    WithJsonSchema,
    model_validator,
)

from axolotl_sdft.core.callables import callable_identity, callable_name, signature_fault


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
        return _with_paths_as_text(data)

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """Return what is wrong with a key that the block does not have, and what may be meant."""
        return f"unknown key {key!r}; {nearest_key_hint(key, cls.model_fields)}"


def _with_paths_as_text(value: Any) -> Any:
    """Return a value as YAML would hold it where Python names folders and files by paths."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, dict):
        return {key: _with_paths_as_text(inner) for key, inner in value.items()}
    return [_with_paths_as_text(inner) for inner in value] if isinstance(value, list) else value


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the pydantic models that an annotation holds, such as those of ``list[A | B] | None``."""
    # Python 3.10 takes list[int] for a class.
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


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
        f"{value!r} is not a number of layers; write a whole number from 1 on, such as 6, or a fraction of the model's "
        "layers between 0 and 1, such as 0.25"
    )


_COUNT_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def parse_parameters(value: Any) -> int | float:
    """Return a count of parameters, or a fraction of a model's parameters, from a number or a text such as ``6.5B``.

    Raises:
        ValueError: It is neither a count from 1 on nor a fraction between 0 and 1.
    """
    text = "" if isinstance(value, bool) else str(value).replace("_", "").strip().upper()
    unit = text[-1:] if text[-1:] in _COUNT_UNITS and not text[-1:].isdigit() else ""
    try:
        number = float(text.removesuffix(unit)) * _COUNT_UNITS[unit]
    except ValueError:
        number = math.nan
    if not unit and 0 < number < 1:
        return number
    if 1 <= number < math.inf:
        return round(number)
    raise ValueError(
        f"{value!r} is not a number of parameters; write a count such as 6.5B or 110M, or a fraction of the model's "
        "parameters between 0 and 1, such as 0.8"
    )


_NUMBER_AND_UNIT = re.compile(r"\s*[\d.]+\s*[a-z]+\s*", re.IGNORECASE)
_LEAST_BYTES = 1000  # far below any use; a number without its unit is smaller
_BYTE_SIZE = TypeAdapter(ByteSize)


def parse_size(value: Any) -> int:
    """Return the bytes that a size such as ``500MB`` or ``2GiB`` stands for; a number alone is bytes.

    Raises:
        ValueError: The value is not a number followed by a unit, or less than 1 KB.
    """
    try:
        is_whole = isinstance(value, int) or (isinstance(value, str) and bool(_NUMBER_AND_UNIT.fullmatch(value)))
        size = _BYTE_SIZE.validate_python(value) if is_whole else 0  # ByteSize ignores what follows the unit
    except (ValueError, OverflowError):
        size = 0
    if size < _LEAST_BYTES:
        raise ValueError(f"{value!r} is not a size of at least 1KB; write a number and a unit, such as 500MB or 5GB")
    return int(size)


Size: TypeAlias = Annotated[ByteSize, BeforeValidator(parse_size)]
"""A number of bytes, written with a unit. Equal sizes are equal in any spelling."""


Function: TypeAlias = Callable[..., Any]
CheckOptions: TypeAlias = dict[str, dict[str, Any]]


def _or_function(kind: str, arguments: tuple[str, ...], written: Any) -> Callable[[Any], Any]:
    """Return what takes a function that fits, and leaves anything else to the type that a YAML file may hold."""
    adapter: TypeAdapter[Any] = TypeAdapter(written, config=ConfigDict(hide_input_in_errors=True))

    def validate(value: Any) -> Any:
        if not callable(value):
            return adapter.validate_python(value)
        fault = signature_fault(value, arguments)
        if fault:
            raise ValueError(f"the {kind} {callable_name(value)} {fault}")
        callable_identity(value)  # without one, no result could be found again
        return value

    return validate


def identified(value: Any) -> Any:
    """Return a setting as it stands in fingerprints and reports: of a function its identity."""
    return callable_identity(value) if callable(value) else value


_IDENTIFIED = PlainSerializer(identified, when_used="json")
_TEXT = WithJsonSchema({"type": "string"})

TemplateSetting: TypeAlias = Annotated[
    str | Function, PlainValidator(_or_function("template", ("target",), str)), _IDENTIFIED, _TEXT
]
MetricSetting: TypeAlias = Annotated[
    str | Function, PlainValidator(_or_function("metric", ("model", "batches", "options"), str)), _IDENTIFIED, _TEXT
]
BackendSetting: TypeAlias = Annotated[
    str | Function, PlainValidator(_or_function("backend", ("model_dir", "config"), str)), _IDENTIFIED, _TEXT
]
CheckSetting: TypeAlias = Annotated[
    str | CheckOptions | Function,
    PlainValidator(_or_function("check", ("answer", "target"), str | CheckOptions)),
    _IDENTIFIED,
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]}),
]


def check_name(check: Any) -> str:
    """Return the name of a check, written alone or with its options, or of a function."""
    return next(iter(check)) if isinstance(check, dict) else callable_name(check)
