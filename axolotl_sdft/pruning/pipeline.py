"""The stage: finds the pruned checkpoint of a seed model, or scores, decides and cuts. torch comes with scoring."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.artifacts import atomic_folder, find_or_make, fingerprint, read_json, write_json
from axolotl_sdft.core.callables import callable_name
from axolotl_sdft.core.errors import ArtifactError, CheckpointError, SdftError
from axolotl_sdft.core.identity import model_identity
from axolotl_sdft.core.model_folder import read_config, slug
from axolotl_sdft.core.trained_on import PROVENANCE_FILE, PROVENANCE_FOLDER, PRUNED_KEY
from axolotl_sdft.pruning.checkpoint.architecture import layer_count
from axolotl_sdft.pruning.checkpoint.cut import OUTPUT_KEY, SCORES_FILE, Cut, check_room, read_cut, write_cut
from axolotl_sdft.pruning.patching.record import LayerPatch, bare_patch
from axolotl_sdft.pruning.patching.text import patch_lines
from axolotl_sdft.pruning.planning.budget import within_budget
from axolotl_sdft.pruning.planning.plan import (
    PruningPlan,
    avoided_lines,
    given_plan,
    num_dropped,
    plan_pruning,
    validate_pruning,
)
from axolotl_sdft.pruning.planning.removable import Removable, cheapest_set, find_removable
from axolotl_sdft.pruning.planning.savings import count_parameters
from axolotl_sdft.pruning.scoring.cache import ScoreCache
from axolotl_sdft.pruning.scoring.measure import measured_scores, scoring_identity
from axolotl_sdft.pruning.scoring.scores import Batch, LayerScores, metric_needs_block, metric_needs_text

LOG = logging.getLogger(__name__)

_MAX_TRIALS = 4
_FORMAT = 3
"""Counts up when the same settings give another checkpoint, or a default that is left out of them means another."""


@dataclass(frozen=True)
class PruningTask:
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
    trust_remote_code: bool = False
    """Run code that comes with the seed model."""

    def __post_init__(self) -> None:
        if not self.is_input_pruned:
            validate_pruning(self.counted_config, self._num_layers)

    @cached_property
    def is_input_pruned(self) -> bool:
        """Whether the seed is itself a result of these settings, perhaps trained since."""
        return self._seed_config.get(PRUNED_KEY) == fingerprint(self._settings)

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
        name = f"{slug(self.seed_name)}-drop{self._num_dropped}-{fingerprint(self._identity)}"
        return self.root.expanduser().absolute() / name

    @cached_property
    def scores_dir(self) -> Path:
        """Absolute path of the folder that keeps the scores: the same for every number of layers."""
        name = f"{slug(self.seed_name)}-scores-{fingerprint(self._scoring)}"
        return self.root.expanduser().absolute() / name

    @property
    def identity(self) -> dict[str, Any]:
        """All that shapes the result, as its provenance file holds it."""
        return dict(self._identity)

    @property
    def is_done(self) -> bool:
        """Whether the pruned checkpoint is there, made from this seed with these settings."""
        path = self.output_dir / PROVENANCE_FILE
        return path.is_file() and not _differing(read_json(path), self._identity)

    def plan(self) -> PruningPlan:
        """Return which layers go. No checkpoint is written; scores that had to be made are kept in ``scores_dir``.

        Raises:
            SdftError: The seed can't be cut, or the settings can't work.
        """
        self._trial_cut()
        return self._planned(self.scores())

    def scores(self) -> LayerScores | None:
        """Return what removing layers costs: kept from before, else measured now. None with ``drop_layers``.

        Of several processes one measures; ``scores.json`` in ``scores_dir`` then holds the scores.

        Raises:
            SdftError: The seed can't be cut, or the settings can't work.
        """
        if self.config.drop_layers is not None:
            return None
        cache = ScoreCache(self.scores_dir, self._scoring | {"seed_model": self.seed_name})
        return cache.find_or_make(self._num_dropped, self._scores_anew)

    def run(self) -> Path:
        """Return the folder of the pruned checkpoint, made unless it is there. Of several processes one makes it.

        Raises:
            ArtifactError: The folder holds something else, or can't be written.
            SdftError: The seed can't be cut, or the settings can't work.
        """
        if self.is_done:
            LOG.info("using the pruned checkpoint %s", self.output_dir)
            return self.output_dir
        self._refuse_what_is_there()
        check_room(self._trial_cut(), self.output_dir)
        find_or_make(self.output_dir, self._make, lambda: self.is_done)
        return self.output_dir

    @cached_property
    def _seed_config(self) -> dict[str, Any]:
        return read_config(self.seed_dir)

    @cached_property
    def _num_layers(self) -> int:
        return layer_count(self._seed_config)

    @property
    def _num_dropped(self) -> int:
        return num_dropped(self.counted_config, self._num_layers)

    def _trial_cut(self) -> Cut:
        """Return a cut of as many layers; it finds now, without a model, what would stop the real one after scoring.

        A block that can't go alone does not mean that none can, so a few are tried.
        """
        faults = []
        for layers in self._trial_sets():
            try:
                return read_cut(self.seed_dir, layers)
            except CheckpointError as err:
                faults.append(err)
        raise faults[0]

    def _trial_sets(self) -> Sequence[Sequence[int]]:
        """Return the layers named, or sets that may go: the deepest blocks without the last layer if possible."""
        if self.config.drop_layers is not None:
            return [self.config.drop_layers]
        metric_needs_text(self.config.metric)  # refuses a name that is not registered
        last = self._num_layers - 1
        free = sorted(self._removable.free_blocks, key=lambda block: (last in block, -block[0]))
        if free:
            return free[:_MAX_TRIALS]
        if metric_needs_block(self.config.metric):
            reason = next(filter(None, self._removable.blocks.values()))
            raise CheckpointError(
                f"layer_pruning.metric is {callable_name(self.config.metric)}, which removes neighbouring layers, but "
                f"no {self._num_dropped} neighbours of those that may go can be removed: {reason}; lower num_layers or "
                "choose metric block_influence, which takes single layers"
            )
        depths = {layer: float(-layer) for block in self._removable.blocks for layer in block}
        return [cheapest_set(depths, self._num_dropped, self._removable)[0]]

    @cached_property
    def _removable(self) -> Removable:
        """Which layers may go, found from the seed's ``config.json``."""
        allowed = range(self.config.protect_first, self._num_layers - self.config.protect_last)
        return find_removable(self._seed_config, self._num_dropped, allowed, self._fault_of)

    def _fault_of(self, drop_layers: Sequence[int]) -> str | None:
        try:
            self._verify(read_cut(self.seed_dir, drop_layers))
        except CheckpointError as err:
            return str(err)
        return None

    def _planned(self, scores: LayerScores | None) -> PruningPlan:
        if scores is None:
            return given_plan(self.counted_config, self._num_layers)
        plan = plan_pruning(scores, self.counted_config, self._removable)
        for line in avoided_lines(plan):
            LOG.warning("%s", line)
        return plan

    @cached_property
    def _scoring(self) -> dict[str, Any]:
        return scoring_identity(self._seed_fingerprint, self.config, self.calibration_fingerprint)

    @cached_property
    def _seed_fingerprint(self) -> str:
        return model_identity(self.seed_dir)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return shaping_settings(self.config)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """All that shapes the result."""
        reads_text = self.config.drop_layers is None or self.config.patch != "none"
        return {
            "format": _FORMAT,
            "seed": self._seed_fingerprint,
            "settings": self._settings,
            "calibration_text": self.calibration_fingerprint if reads_text else None,
        }

    def _refuse_what_is_there(self) -> None:
        path = self.output_dir / PROVENANCE_FILE
        if not self.output_dir.exists():
            return
        differing = _differing(read_json(path), self._identity) if path.is_file() else None
        if differing == []:  # another process has just made it
            return
        fault = f"differs in {', '.join(differing)}" if differing else "is missing"
        raise ArtifactError(
            f"{OUTPUT_KEY}: {self.output_dir} is there, but is not the checkpoint asked for: its {PROVENANCE_FILE} "
            f"{fault}; delete the folder or name another one"
        )

    def _make(self) -> None:
        scores = self.scores()
        plan = self._planned(scores)
        cut = read_cut(self.seed_dir, plan.drop_layers)
        if scores is None:  # else planning has verified it
            self._verify(cut)
        cut = dataclasses.replace(cut, config=cut.config | {PRUNED_KEY: fingerprint(self._settings)})
        check_room(cut, self.output_dir)
        patch = self._patch(cut)
        with atomic_folder(self.output_dir) as folder:
            write_cut(cut, folder, self.config.max_shard_size, self._provenance(plan, scores), patch)
            if scores is not None:
                write_json(folder / PROVENANCE_FOLDER / SCORES_FILE, scores.to_json())
        LOG.info(
            "pruned %s: dropped %s of %d layers (%s), %.1fM parameters before, %.1fM after: %s",
            self.seed_name,
            ", ".join(map(str, plan.drop_layers)),
            plan.num_layers,
            _reason(plan),
            cut.parameters_before / 1e6,
            cut.parameters_after / 1e6,
            self.output_dir,
        )

    def _patch(self, cut: Cut) -> LayerPatch | None:
        """Return what is folded into the layers before each cut; None where the settings ask for nothing."""
        if self.config.patch == "none":
            return None
        patch = self._fitted_patch(cut)
        for is_applied, line in patch_lines(patch.to_json()):
            LOG.log(logging.INFO if is_applied else logging.WARNING, "%s", line)
        return patch

    def _fitted_patch(self, cut: Cut) -> LayerPatch:
        from axolotl_sdft.pruning.patching.stage import fitted_patch

        try:
            batches = self._batches
        except SdftError as err:
            if "patch" in self.config.model_fields_set:  # asked for, not just the default
                raise
            return bare_patch(cut.drop_layers, f"no calibration text to fit it on ({err})")
        stored = (cut.tensors, cut.layer_prefix)
        return fitted_patch(self.seed_dir, cut.drop_layers, stored, self.config, batches, self.trust_remote_code)

    @cached_property
    def _batches(self) -> Sequence[Batch]:
        return self.load_batches()

    def _provenance(self, plan: PruningPlan, scores: LayerScores | None) -> dict[str, Any]:
        return self._identity | {
            "seed_model": self.seed_name,
            "seed_dir": str(self.seed_dir),
            "metric": plan.metric,
            "cost": plan.cost,
            "scores": scores.to_json() if scores is not None else None,
        }

    def _scores_anew(self, known: LayerScores | None) -> LayerScores:
        """Return the scores of the pruned checkpoint if it is there, else measure."""
        if self.is_done:
            return LayerScores.from_json(read_json(self.output_dir / PROVENANCE_FOLDER / SCORES_FILE))
        self._verify(self._trial_cut())
        for line in self._removable.fixed_lines():
            LOG.warning("%s", line)
        return measured_scores(
            self.seed_dir,
            self.config,
            lambda: self._batches,
            self._num_dropped,
            trust_remote_code=self.trust_remote_code,
            may_go=lambda layers: self._removable.reason_in_config(layers) is None,
            known=known,
        )

    def _verify(self, cut: Cut) -> None:
        """Refuse a cut whose model would not be the seed model with those layers left out."""
        from axolotl_sdft.pruning.checkpoint.verify import verify_cut

        kept = [layer for layer in range(cut.num_layers) if layer not in cut.drop_layers]
        verify_cut(self._seed_config, cut.config, kept)


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


def _reason(plan: PruningPlan) -> str:
    if plan.metric is None:
        return "as named"
    return plan.metric if plan.cost is None else f"{plan.metric} {plan.cost:.4f}"


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
