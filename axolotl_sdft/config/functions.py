"""Settings that are names in a YAML file, and from Python also functions: templates, checks, metrics and backends."""

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from pydantic import ConfigDict, PlainSerializer, PlainValidator, TypeAdapter, WithJsonSchema

from axolotl_sdft.core.callables import callable_identity, callable_name, signature_fault

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
