"""What a recovery report is asked for: models, answers that none was trained on, other prompts, and settings."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from axolotl_sdft.config import GeneralPromptsConfig, RecoveryReportConfig
from axolotl_sdft.core.errors import ConfigError, DatasetError
from axolotl_sdft.core.model_folder import holds_model, is_adapter
from axolotl_sdft.core.texts import evenly_spaced
from axolotl_sdft.inference.interfaces import Target

SHIPPED_FILE = "general_prompts.txt"
NUM_SHOWN = 3
"""General prompts whose answers are shown side by side."""
_KEY = "recovery_report.general_prompts.path"
_JSON_SUFFIXES = (".json", ".jsonl")


def general_prompts(config: GeneralPromptsConfig) -> list[str]:
    """Return the prompts of a file, up to ``num_samples`` of them, spread evenly.

    A file whose name ends in ``.jsonl`` or ``.json`` holds an object with a ``prompt`` on each line, any other file the
    prompt itself. Empty lines don't count.

    Raises:
        DatasetError: The file can't be read, holds no prompt, or a line is not what it should be.
    """
    if config.path is None:
        text, is_json = resources.files(__package__).joinpath(SHIPPED_FILE).read_text(encoding="utf-8"), False
    else:
        text, is_json = _read(config.path), config.path.lower().endswith(_JSON_SUFFIXES)
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    prompts = [_prompt(config.path, number, line) if is_json else line for number, line in lines]
    if not prompts:
        raise DatasetError(f"{_KEY} is {config.path!r}, which holds no prompt; write one on each line")
    return [prompts[place] for place in evenly_spaced(len(prompts), config.num_samples)]


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except (OSError, ValueError) as err:
        raise DatasetError(
            f"{_KEY} is {path!r}, which can't be read ({err}); name a text file with a prompt on each line, or remove "
            "the key for those that come with the package"
        ) from err


def _prompt(path: str | None, number: int, line: str) -> str:
    try:
        row: Any = json.loads(line)
    except ValueError:
        row = None
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise DatasetError(
            f'{_KEY} is {path!r}, whose line {number} is not an object with a prompt, such as {{"prompt": "Why is the '
            'sky blue?"}'
        )
    return prompt.strip()


@dataclass(frozen=True)
class ReportedModel:
    """A model by the name that the report calls it."""

    name: str
    folder: Path
    """A checkpoint, or a LoRA adapter whose ``adapter_config.json`` names its base model."""

    @property
    def is_adapter(self) -> bool:
        """Whether the folder holds a LoRA adapter."""
        return is_adapter(self.folder)


def named_model(name: str, folder: str | Path, key: str) -> ReportedModel:
    """Return a model that the user names.

    Raises:
        ConfigError: The folder holds none; the message names ``key``.
    """
    path = Path(folder).expanduser()
    if not holds_model(path):
        what = "holds no weights with their config.json or adapter_config.json" if path.is_dir() else "is not a folder"
        raise ConfigError(
            f"{key} is {str(folder)!r}, which {what}; name a folder with a checkpoint or a LoRA adapter, or remove the "
            "entry"
        )
    return ReportedModel(name, path)


@dataclass(frozen=True)
class RecoverySpec:
    """What a recovery report compares, on which answers, and how."""

    models: tuple[ReportedModel, ...]
    """The seed model first."""
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
    has_answers: bool = True
    """Whether the models answer general prompts, which a comparison by likelihood alone does without."""

    @property
    def seed(self) -> ReportedModel:
        """The model that the others are compared with."""
        return self.models[0]

    @cached_property
    def prompts(self) -> list[str]:
        """The prompts from outside the task."""
        return general_prompts(self.config.general_prompts)

    @property
    def shown_prompts(self) -> list[int]:
        """Places of the general prompts whose answers a person is shown."""
        return evenly_spaced(len(self.prompts), NUM_SHOWN)

    @property
    def template_identity(self) -> dict[str, Any]:
        """What shapes a chat beside its messages."""
        given = {} if self.chat_template is None else {"chat_template": self.chat_template}
        return {**self.template_arguments, **given}

    @property
    def exact_match_targets(self) -> list[Target]:
        """The held-out answers that the models are to find themselves; an empty one can't be found."""
        assert self.config.exact_match is not None
        targets = [target for target in self.held_out if target.reference.strip()]
        return [targets[place] for place in evenly_spaced(len(targets), self.config.exact_match.num_samples)]
