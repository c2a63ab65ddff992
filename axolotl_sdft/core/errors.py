"""Every error that the package raises on purpose.

Each child also inherits the standard-library type that a caller would expect, so ``except ValueError`` keeps working. A
message names the YAML key or path, the value, what it meets, and the way out.
"""

from axolotl_sdft.core.texts import printable


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
