"""What a recovery report is asked for: the models, the answers that none of them was trained on, and the settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from axolotl_sdft.config import RecoveryReportConfig
from axolotl_sdft.core.sampling import evenly_spaced
from axolotl_sdft.inference.interfaces import Target


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


@dataclass(frozen=True)
class RecoverySpec:
    """What a recovery report compares, on which answers, and how."""

    models: tuple[ReportedModel, ...]
    """The seed first."""
    config: RecoveryReportConfig
    output_dir: Path
    """Finished figures are kept in ``figures`` in it, and found again."""
    held_out: tuple[Target, ...] = ()
    """Answers that no model was trained on."""
    notes: tuple[str, ...] = ()
    """What is missing already, and why."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where models and rows come from."""
    trust_remote_code: bool = False
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template is given besides."""
    chat_template: str | None = None
    """Chat template of models that have none, as Jinja text."""

    @property
    def seed(self) -> ReportedModel:
        """The model that the others are compared with."""
        return self.models[0]

    @cached_property
    def prompts(self) -> list[str]:
        """The prompts from outside the task."""
        from axolotl_sdft.evaluation.measures.general_prompts import general_prompts

        return general_prompts(self.config.general_prompts)

    @property
    def template_identity(self) -> dict[str, Any]:
        """What shapes a chat beside its messages."""
        given = {} if self.chat_template is None else {"chat_template": self.chat_template}
        return {**self.template_arguments, **given}

    @property
    def exact_match_targets(self) -> list[Target]:
        """The held-out answers that the models are to find themselves."""
        assert self.config.exact_match is not None
        return [
            self.held_out[place] for place in evenly_spaced(len(self.held_out), self.config.exact_match.num_samples)
        ]
