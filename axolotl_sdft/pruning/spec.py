"""What layer pruning is asked for: seed model, settings, and the folders that follow from them. No torch here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.artifacts import fingerprint, read_json
from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.core.identity import model_identity
from axolotl_sdft.core.model_folder import read_config, slug
from axolotl_sdft.core.trained_on import PROVENANCE_FILE, PRUNED_KEY
from axolotl_sdft.pruning.checkpoint.architecture import layer_count
from axolotl_sdft.pruning.checkpoint.cut import CheckpointPlan, plan_checkpoint, refuse_adapter
from axolotl_sdft.pruning.general_answers import GeneralText
from axolotl_sdft.pruning.planning.plan import (
    num_dropped,
    validate_pruning,
    within_budget,
)
from axolotl_sdft.pruning.planning.removable import Removable, find_removable
from axolotl_sdft.pruning.planning.savings import count_parameters
from axolotl_sdft.pruning.scoring.measure import scoring_identity
from axolotl_sdft.pruning.scoring.scores import Batch, metric_code

_FORMAT = 4
"""Counts up when the same settings give another checkpoint, or a default that is left out of them means another."""


@dataclass(frozen=True)
class PruningSpec:
    """One seed model to be pruned. Creating it checks the settings against its ``config.json``; no weights are read."""

    seed_dir: Path
    seed_name: str
    """The Hub id or folder that the user named."""
    config: LayerPruningConfig
    calibration_fingerprint: str
    """Changes with the calibration text."""
    load_batches: Callable[[], Sequence[Batch]]
    """Called when layers are scored, unless the metric reads no text, and when a patch is fitted."""
    root: Path
    """Folder of the scores' folder and, unless ``output_dir`` is set, of the pruned checkpoint's."""
    general_text: GeneralText | None = None
    """What the seed model writes itself for the fit of a patch, beside the text that is read."""
    trust_remote_code: bool = False
    """Run code that comes with the seed model."""

    def __post_init__(self) -> None:
        if not self.is_input_pruned:
            refuse_adapter(self.seed_dir)
            validate_pruning(self.counted_config, self.num_layers)

    @cached_property
    def is_input_pruned(self) -> bool:
        """Whether the seed model is itself a result of these settings, perhaps trained since."""
        return self.seed_config.get(PRUNED_KEY) == fingerprint(self.settings)

    @cached_property
    def counted_config(self) -> LayerPruningConfig:
        """The settings with a number of layers in the place of ``target``.

        Raises:
            ConfigError: No number of layers meets the target.
        """
        if self.config.target is None:
            return self.config
        return within_budget(self.config, *count_parameters(self.seed_dir))

    @cached_property
    def output_dir(self) -> Path:
        """Absolute path of the pruned checkpoint."""
        if self.config.output_dir is not None:
            return Path(self.config.output_dir).expanduser().absolute()
        name = f"{slug(self.seed_name)}-drop{self.num_dropped}-{fingerprint(self.identity)}"
        return self.root.expanduser().absolute() / name

    @cached_property
    def scores_dir(self) -> Path:
        """Absolute path of the folder that keeps the scores: the same for every number of layers."""
        name = f"{slug(self.seed_name)}-scores-{fingerprint(self.scoring)}"
        return self.root.expanduser().absolute() / name

    @cached_property
    def answers_dir(self) -> Path:
        """Absolute path of the folder that keeps the seed model's answers to general prompts."""
        loading = {"dtype": self.config.dtype, "load_in_4bit": self.config.load_in_4bit}
        template = self.general_text.chat_template if self.general_text is not None else None
        asked = [self.seed_fingerprint, loading, *([] if template is None else [template])]
        name = f"{slug(self.seed_name)}-general-{fingerprint(asked)}"
        return self.root.expanduser().absolute() / name

    @property
    def is_done(self) -> bool:
        """Whether the pruned checkpoint is there, made from this seed model with these settings."""
        path = self.output_dir / PROVENANCE_FILE
        return path.is_file() and not self.differing(read_json(path))

    @cached_property
    def seed_config(self) -> dict[str, Any]:
        """The seed model's ``config.json``."""
        return read_config(self.seed_dir)

    @cached_property
    def num_layers(self) -> int:
        """Decoder layers of the seed model."""
        return layer_count(self.seed_config)

    @property
    def num_dropped(self) -> int:
        """How many of them go."""
        return num_dropped(self.counted_config, self.num_layers)

    @cached_property
    def removable(self) -> Removable:
        """Which layers may be removed, found from the seed model's ``config.json``."""
        allowed = range(self.config.protect_first, self.num_layers - self.config.protect_last)
        return find_removable(self.seed_config, self.num_dropped, allowed, self._fault_of)

    def _fault_of(self, drop_layers: Sequence[int]) -> str | None:
        try:
            self.verify(plan_checkpoint(self.seed_dir, drop_layers))
        except CheckpointError as err:
            return str(err)
        return None

    @cached_property
    def scoring(self) -> dict[str, Any]:
        """All that shapes the scores."""
        return scoring_identity(self.seed_fingerprint, self.config, self.calibration_fingerprint)

    @cached_property
    def seed_fingerprint(self) -> str:
        """Identity of the seed model as it was when first asked for."""
        return model_identity(self.seed_dir)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that shape the pruned checkpoint."""
        return shaping_settings(self.config)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that shapes the result."""
        is_scored = self.config.drop_layers is None
        reads_text = is_scored or self.config.patch != "none"
        return {
            "format": _FORMAT,
            "seed": self.seed_fingerprint,
            "settings": self.settings,
            "calibration_text": self.calibration_fingerprint if reads_text else None,
            "general_text": self.general_text.identity if self.general_text is not None else None,
            **(metric_code(self.config.metric) if is_scored else {}),
        }

    def verify(self, cut: CheckpointPlan) -> None:
        """Refuse a cut whose model would not be the seed model with those layers left out."""
        from axolotl_sdft.pruning.checkpoint.verify import verify_cut

        kept = [layer for layer in range(cut.num_layers) if layer not in cut.drop_layers]
        verify_cut(self.seed_config, cut.config, kept)

    def differing(self, found: dict[str, Any]) -> list[str]:
        """Return the dotted keys in which a checkpoint with this provenance differs from the one asked for."""
        return _differing(found, self.identity)


def shaping_settings(config: LayerPruningConfig, *, with_defaults: bool = False) -> dict[str, Any]:
    """Return the settings that shape the pruned checkpoint, without defaults, so that a new setting changes nothing."""
    if config.drop_layers is not None and config.patch == "none":
        named = {"drop_layers": sorted(config.drop_layers), "max_shard_size": config.max_shard_size}
        return named | {"patch": config.patch}
    unrelated: dict[str, Any] = dict.fromkeys(("output_dir", "device_map"), True)
    unrelated["calibration"] = {"batch_size"}
    if config.drop_layers is not None:
        config = config.model_copy(update={"drop_layers": tuple(sorted(config.drop_layers))})
        unrelated |= dict.fromkeys(("metric", "token_reduction", "protect_first", "protect_last"), True)
    settings = config.model_dump(mode="json", exclude=unrelated, exclude_none=True, exclude_defaults=not with_defaults)
    # A calibration block that differs from the default in its batch size alone is empty by now.
    return {key: value for key, value in settings.items() if value != {}}


def _differing(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return the dotted keys of ``wanted`` whose values ``found`` doesn't have."""
    keys: list[str] = []
    for key, value in wanted.items():
        other = found.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            keys += [f"{key}.{inner}" for inner in _differing(other, value) + sorted(other.keys() - value.keys())]
        elif other != value:
            keys.append(key)
    return keys
