"""The models that a recovery report compares."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ReportedModel:
    """A model by the name that the report calls it."""

    name: str
    folder: Path
    """A checkpoint, or a LoRA adapter whose ``adapter_config.json`` names its base model."""

    @property
    def is_adapter(self) -> bool:
        """Whether the folder holds a LoRA adapter."""
        return (self.folder / "adapter_config.json").is_file()
