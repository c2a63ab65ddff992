"""Values and functions in a plain form, which tells them apart wherever they lie in memory.

``str`` and ``repr`` will not do: for many objects they name an address in memory, for sets an order by chance, and of
large arrays they leave out the middle.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import partial
from pathlib import PurePath
from re import Pattern
from types import CodeType, FunctionType, MethodType, ModuleType
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


_PLAIN = (str, int, float, bool, type(None))
_FUNCTION_OF = ("__func__", "fget", "func")  # of static and class methods, of properties, of cached ones


def callable_name(thing: Any) -> str:
    """Return the short name of a function or class; of an object with ``__call__`` that of its class. A text is one."""
    if isinstance(thing, str):
        return thing
    if isinstance(thing, partial):
        return callable_name(thing.func)
    return str(getattr(thing, "__name__", None) or type(thing).__name__)


def signature_fault(thing: Any, arguments: tuple[str, ...]) -> str | None:
    """Say why a thing can't be called with these positional arguments, or None when it can."""
    if not callable(thing):
        return f"is a {type(thing).__name__}, which can't be called"
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):  # some builtins tell no signature
        return None
    try:
        signature.bind(*arguments)
    except TypeError:
        return f"must take ({', '.join(arguments)}), but its signature is {signature}"
    return None


def callable_identity(thing: Callable[..., Any]) -> str:
    """Return a name with 12 hex digits that change with what a function does.

    The source counts of the function, or of the methods of a class, and of all of the same module that it uses; so do
    the values of arguments that :func:`functools.partial` sets, of variables around the function, and of constants of
    its module. What it takes from other modules, and an object such as a model, counts by its name alone: there an
    attribute ``version`` of the function can say that it is another one now.

    Raises:
        ValueError: It is a lambda, or has no source, and no ``version`` either.
    """
    function = thing
    while isinstance(function, partial):
        function = function.func
    version = getattr(function, "version", None)
    module = _module(function)
    try:
        description = _Describer(module).describe(thing)
    except _SourcelessError as err:
        if version is None:
            raise ValueError(
                f"{callable_name(thing)} can't be recognised by a later run: {err}; define it with def in a file or a "
                "notebook's cell, or give it an attribute such as version = '1'"
            ) from None
        description = None
    digest = hashlib.sha256(json.dumps([description, str(version)], sort_keys=True).encode()).hexdigest()
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{module}.{named.__qualname__} {digest[:12]}"


class _SourcelessError(Exception):
    """There is no source by which a function can be told from others."""


class _Describer:
    """Describes values as JSON; those of one module by their content, those of others by their name."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._seen: dict[int, str] = {}

    def describe(self, value: Any) -> Any:
        """Return what a value holds, without its place in memory."""
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, partial):
            return ["partial", self.describe(value.func), self.describe(value.args), self.describe(value.keywords)]
        if isinstance(value, MethodType):
            return [self.describe(value.__func__), self.describe(value.__self__)]
        if isinstance(value, list | tuple):
            return [self.describe(item) for item in value]
        if isinstance(value, Mapping):
            return [[self.describe(key), self.describe(item)] for key, item in value.items()]
        if isinstance(value, FunctionType | type):
            return self._defined(value)
        if hasattr(value, "__wrapped__"):  # functools.cache and the like
            return self.describe(value.__wrapped__)
        return _name(value) if isinstance(value, ModuleType) else self._object(value)

    def _defined(self, value: Any) -> Any:
        if id(value) in self._seen or _module(value) != self._module:
            return _name(value)
        self._seen[id(value)] = _name(value)
        parts = self._function(value) if isinstance(value, FunctionType) else self._class(value)
        return [_name(value), *parts]

    def _function(self, function: FunctionType) -> Iterator[Any]:
        yield _source(function)
        yield self.describe([function.__defaults__, function.__kwdefaults__])
        yield [self._cell(cell) for cell in function.__closure__ or ()]
        used = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
        yield self.describe(dict(sorted(used.items())))

    def _class(self, kind: type) -> Iterator[Any]:
        yield [self.describe(base) for base in kind.__bases__]
        for name, member in sorted(vars(kind).items()):
            function = next((getattr(member, name) for name in _FUNCTION_OF if hasattr(member, name)), member)
            is_generated = isinstance(function, FunctionType) and _is_generated(function)
            if not name.startswith("__") or (isinstance(function, FunctionType) and not is_generated):
                yield [name, self.describe(function)]

    def _cell(self, cell: Any) -> Any:
        try:
            return self.describe(cell.cell_contents)
        except ValueError:  # not filled yet
            return None

    def _object(self, value: Any) -> Any:
        if id(value) in self._seen:
            return _name(type(value))
        try:
            return self.describe(plain_value(value))
        except TypeError:
            if inspect.isroutine(value) and not self._seen:
                raise _SourcelessError(f"{callable_name(value)} has no source") from None
        self._seen[id(value)] = _name(type(value))
        own = type(value).__module__ == self._module
        return [self._defined(type(value)), self.describe(vars(value)) if own and hasattr(value, "__dict__") else None]


def _source(function: FunctionType) -> str:
    if function.__name__ == "<lambda>":
        raise _SourcelessError(f"{function.__qualname__} is a lambda")
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        raise _SourcelessError(f"{function.__qualname__} has no source") from None


def _is_generated(function: FunctionType) -> bool:
    """Say whether a method was made of a text, as those of dataclasses are."""
    return bool(inspect.unwrap(function).__code__.co_filename == "<string>")


def _names(code: CodeType) -> set[str]:
    """Return the names that code looks up, with those of the functions inside it."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def _module(thing: Any) -> str:
    return str(getattr(thing, "__module__", None) or type(thing).__module__)


def _name(thing: Any) -> str:
    own = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", type(thing).__name__)
    return f"{_module(thing)}.{own}"
