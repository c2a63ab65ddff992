"""Every error that the package raises on purpose, for code that catches them. All descend from :class:`SdftError`."""

from axolotl_sdft.core.errors import (
    ArtifactError,
    BackendError,
    CheckpointError,
    ConfigError,
    DatasetError,
    MissingExtraError,
    PluginError,
    SdftError,
    ServerError,
    UnknownNameError,
)

__all__ = [
    "ArtifactError",
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "MissingExtraError",
    "PluginError",
    "SdftError",
    "ServerError",
    "UnknownNameError",
]
