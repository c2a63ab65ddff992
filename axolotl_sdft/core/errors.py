"""Every error that the package raises on purpose.

Each child also inherits the standard-library type that a caller would expect, so ``except ValueError`` keeps working. A
message names the YAML key or path, the value, what it meets, and the way out. :func:`error_context` gives errors of
other packages such a message, and errors of ours the key that they lack.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from axolotl_sdft.core.texts import printable

Explain: TypeAlias = "Callable[[Exception], SdftError | None]"
"""Given an error, returns the one to raise in its place, or None where it has nothing to add."""

# Builds of torch differ in what they raise where a CPU's or Apple's memory ends.
_MEMORY_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory")


def first_line(err: BaseException) -> str:
    """Return the first line of what an error says, or its type where it says nothing."""
    return next(iter(str(err).strip().splitlines()), type(err).__name__)


class SdftError(Exception):
    """Root of all errors raised on purpose. Its text holds nothing that steers a terminal, whatever it quotes."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(SdftError, ValueError):
    """A setting can't work: alone, with another one, or with this model or dataset."""


class UnknownNameError(SdftError, LookupError):
    """A metric, template, check, backend or row format is not registered under this name."""


class PluginError(SdftError, TypeError):
    """A plugin does not fit the extension point that it registers for."""


class CheckpointError(SdftError, ValueError):
    """A checkpoint can't be read, scored or cut."""


class DatasetError(SdftError, ValueError):
    """A dataset is missing, empty, or its rows can't be rewritten."""


class BackendError(SdftError, RuntimeError):
    """What generates the answers stopped working; what it had answered until then is kept."""


class ArtifactError(SdftError, OSError):
    """A folder can't be written, or holds something else than expected."""


class MissingExtraError(SdftError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class ServerError(SdftError, ConnectionError):
    """No server answers, or none that does is of use."""


@contextmanager
def error_context(*explanations: Explain) -> Iterator[None]:
    """Let errors that are raised while this is open say what they are about.

    Args:
        explanations: Asked in turn; the first that has something to add makes the error that is raised.

    Example:
        >>> with error_context(failure("base_model (m) can't be loaded", "name another folder")):
        ...     raise KeyError("gemma9")
        Traceback (most recent call last):
        CheckpointError: base_model (m) can't be loaded (KeyError: 'gemma9'); name another folder
    """
    try:
        yield
    except Exception as err:
        better = next((found for explain in explanations if (found := explain(err)) is not None), None)
        if better is None:
            raise
        raise better from err


def failure(what: str, way_out: str | None, error: type[SdftError] = CheckpointError) -> Explain:
    """Explain whatever another package raises, with its type and the first line of what it says.

    Errors of ours and a lack of memory say best themselves what is the matter; they are left as they are. Without a
    way out, the message ends with the reason.
    """

    def explain(err: Exception) -> SdftError | None:
        if isinstance(err, SdftError) or is_out_of_memory(err):
            return None
        reason = f"{what} ({type(err).__name__}: {first_line(err)})"
        return error(reason if way_out is None else f"{reason}; {way_out}")

    return explain


def memory_shortage(what: str, way_out: str, error: type[SdftError] = CheckpointError) -> Explain:
    """Explain that memory ran out."""

    def explain(err: Exception) -> SdftError | None:
        return error(f"memory ran out while {what} ({first_line(err)}); {way_out}") if is_out_of_memory(err) else None

    return explain


def keyed(prefix: Callable[[SdftError], str]) -> Explain:
    """Explain which key an error of ours is about: its text gets this prefix, unless that is empty."""

    def explain(err: Exception) -> SdftError | None:
        if not isinstance(err, SdftError) or not (key := prefix(err)):
            return None
        return type(err)(f"{key}{err}")

    return explain


def is_out_of_memory(err: BaseException) -> bool:
    """Say whether an error means that a tensor did not fit. torch is not imported for that."""
    if isinstance(err, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(err).__mro__):
        return True
    return isinstance(err, RuntimeError) and any(message in str(err).lower() for message in _MEMORY_MESSAGES)
