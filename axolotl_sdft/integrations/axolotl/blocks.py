"""Reads the blocks out of an Axolotl configuration."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from axolotl_sdft.config import (
    BLOCKS,
    DynSDPBConfig,
    LayerPruningConfig,
    LogitDistillationConfig,
    MergeConfig,
    RecoveryReportConfig,
    SelfDistillationConfig,
    yaml_path,
)
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.core.safe_output import masked

SEED_KEY = "sdft_seed_model"
"""Where the plugin keeps the seed model after ``base_model`` has become the pruned checkpoint."""


STAGES = ("layer_pruning", "self_distillation", "logit_distillation", "dynsdpb")
"""The blocks of which each switches on a stage of training."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of a configuration; None where one is not there."""

    layer_pruning: LayerPruningConfig | None
    self_distillation: SelfDistillationConfig | None
    dynsdpb: DynSDPBConfig | None
    logit_distillation: LogitDistillationConfig | None = None
    merge: MergeConfig | None = None
    recovery_report: RecoveryReportConfig | None = None

    @property
    def has_stage(self) -> bool:
        """Whether a stage of training is on. The other blocks only say what commands of their own do."""
        return bool(self.named_stages)

    @property
    def trainer_blocks(self) -> tuple[str, ...]:
        """The blocks that bring a trainer, by name."""
        return tuple(name for name in self.named_stages if name in ("logit_distillation", "dynsdpb"))

    @property
    def named_stages(self) -> list[str]:
        """The blocks of the stages that are on, by name."""
        return [name for name in STAGES if getattr(self, name) is not None]


def read_blocks(cfg: Mapping[str, Any]) -> Blocks:
    """Return the blocks of a configuration, raw or validated.

    Raises:
        ConfigError: A block is wrong; one line per fault, each with its dotted key and value. Or a top-level key is a
            block's name misspelt, which Axolotl would drop without a word.
    """
    faults = [
        f"{key} is no key of Axolotl or its plugins; did you mean {near[0]!r}?"
        for key in cfg
        if key not in BLOCKS and key != SEED_KEY and (near := difflib.get_close_matches(str(key), BLOCKS, 1, 0.85))
    ]
    blocks = {}
    for name, model in BLOCKS.items():
        value = cfg.get(name)
        try:
            blocks[name] = None if value is None else model.model_validate(plain(value))
        except ValidationError as err:
            faults += [fault_line(name, error) for error in err.errors()]
    if faults:
        raise ConfigError("\n".join(faults))
    return Blocks(**blocks)  # type: ignore[arg-type]


def fault_line(block: str, error: Any) -> str:
    """Return what is wrong with a block: the dotted key, its value, and what it should be."""
    place = yaml_path(error["loc"])
    key = ".".join([block, *map(str, place)])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":  # our own rules tell the values themselves
        return f"{key}: {message}"
    return f"{key} is {masked(error['input'], str((place or ('',))[-1]))!r}: {message}"


def plain(value: Any) -> Any:
    """Return nested mappings as plain dicts: Axolotl's own type answers None for any missing key."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
