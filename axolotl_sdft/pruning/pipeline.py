"""Prunes layers as a spec asks for: scores, decides and cuts. torch comes with scoring."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from axolotl_sdft.core.artifacts import atomic_folder, find_or_make, fingerprint, read_json, write_json
from axolotl_sdft.core.callables import callable_name
from axolotl_sdft.core.errors import ArtifactError, CheckpointError, DatasetError, SdftError
from axolotl_sdft.core.shared_folders import refuse_separate_folders
from axolotl_sdft.core.terminal import tells_what_is_kept
from axolotl_sdft.core.trained_on import PROVENANCE_FILE, PROVENANCE_FOLDER, PRUNED_KEY
from axolotl_sdft.pruning.checkpoint.cut import (
    OUTPUT_KEY,
    SCORES_FILE,
    CheckpointPlan,
    check_room,
    plan_checkpoint,
    write_cut,
)
from axolotl_sdft.pruning.checkpoint.layer_pattern import pattern_warning
from axolotl_sdft.pruning.checkpoint.tensor_files import refuse_damaged_checkpoint
from axolotl_sdft.pruning.patching.record import LayerPatch, bare_patch, log_patch
from axolotl_sdft.pruning.planning.plan import (
    PruningPlan,
    avoided_lines,
    given_plan,
    plan_pruning,
)
from axolotl_sdft.pruning.planning.removable import cheapest_set
from axolotl_sdft.pruning.scoring.measure import ScoreCache, measured_scores
from axolotl_sdft.pruning.scoring.scores import Batch, LayerScores, metric_needs_block, metric_needs_text
from axolotl_sdft.pruning.spec import PruningSpec

LOG = logging.getLogger(__name__)

_MAX_TRIALS = 4
_SEPARATE = (
    "name one there, or start in a folder there; or run axolotl prune-layers on one machine and copy the folder with "
    "the checkpoint to the same path on each"
)


def run_pruning(spec: PruningSpec) -> Path:
    """Return the folder of the pruned checkpoint, made unless it is there. Of several processes one makes it.

    Raises:
        ArtifactError: The folder holds something else, or can't be written.
        SdftError: The seed model can't be cut, or the settings can't work.
    """
    return PruningRun(spec).run()


class PruningRun:
    """Plans and makes what a spec asks for. What was scored or made before is found again."""

    def __init__(self, spec: PruningSpec) -> None:
        self.spec = spec

    def plan(self) -> PruningPlan:
        """Return which layers to remove. Nothing is written but scores that had to be made, in ``scores_dir``.

        Raises:
            SdftError: The seed model can't be cut, or the settings can't work.
        """
        self._trial_cut()
        return self._planned(self.scores())

    def scores(self) -> LayerScores | None:
        """Return what removing layers costs: kept from before, else measured now. None with ``drop_layers``.

        Of several processes one measures; ``scores.json`` in ``scores_dir`` then holds the scores.

        Raises:
            SdftError: The seed model can't be cut, or the settings can't work.
        """
        if self.spec.config.drop_layers is not None:
            return None
        cache = ScoreCache(self.spec.scores_dir, self.spec.scoring | {"seed_model": self.spec.seed_name})
        with tells_what_is_kept(self._kept, LOG):
            return cache.find_or_make(self.spec.num_dropped, self._scores_anew)

    def _kept(self) -> str:
        scores = self.spec.scores_dir / SCORES_FILE
        kept = f"the scores are kept in {scores}" if scores.is_file() else "no scores were finished"
        return f"{kept}, and no checkpoint was made; to go on, start the same command again"

    def run(self) -> Path:
        """Return the folder of the pruned checkpoint, made unless it is there. Of several processes one makes it.

        Raises:
            ArtifactError: The folder holds something else, or can't be written.
            CheckpointError: It is there, but a file of it is missing or damaged.
            SdftError: The seed model can't be cut, or the settings can't work.
        """
        is_done = self.spec.is_done
        refuse_separate_folders(self.spec.output_dir.parent, "layer_pruning.output_dir", _SEPARATE, is_finished=is_done)
        if is_done:
            refuse_damaged_checkpoint(self.spec.output_dir)
            LOG.info("using the pruned checkpoint %s", self.spec.output_dir)
            return self.spec.output_dir
        self._refuse_what_is_there()
        check_room(self._trial_cut(), self.spec.output_dir)
        find_or_make(self.spec.output_dir, self._make, lambda: self.spec.is_done)
        return self.spec.output_dir

    def _trial_cut(self) -> CheckpointPlan:
        """Return a cut of as many layers; it finds now, without a model, what would stop the real one after scoring.

        A block that can't be removed alone does not mean that none can, so a few are tried.
        """
        faults = []
        for layers in self._trial_sets():
            try:
                return plan_checkpoint(self.spec.seed_dir, layers)
            except CheckpointError as err:
                faults.append(err)
        raise faults[0]

    def _trial_sets(self) -> Sequence[Sequence[int]]:
        """Return the layers named, or removable sets: the deepest blocks without the last layer if possible."""
        if self.spec.config.drop_layers is not None:
            return [self.spec.config.drop_layers]
        metric_needs_text(self.spec.config.metric)  # refuses a name that is not registered
        last = self.spec.num_layers - 1
        free = sorted(self.spec.removable.free_blocks, key=lambda block: (last in block, -block[0]))
        if free:
            return free[:_MAX_TRIALS]
        if metric_needs_block(self.spec.config.metric):
            reason = next(filter(None, self.spec.removable.blocks.values()))
            raise CheckpointError(
                f"layer_pruning.metric is {callable_name(self.spec.config.metric)}, which removes neighbouring layers, "
                f"but no {self.spec.num_dropped} neighbours of those that may be removed can be: {reason}; lower "
                "num_layers or choose metric block_influence, which takes single layers"
            )
        depths = {layer: float(-layer) for block in self.spec.removable.blocks for layer in block}
        return [cheapest_set(depths, self.spec.num_dropped, self.spec.removable)[0]]

    def _planned(self, scores: LayerScores | None) -> PruningPlan:
        if scores is None:
            return given_plan(self.spec.counted_config, self.spec.num_layers)
        plan = plan_pruning(scores, self.spec.counted_config, self.spec.removable)
        for line in avoided_lines(plan):
            LOG.warning("%s", line)
        return plan

    def _refuse_what_is_there(self) -> None:
        path = self.spec.output_dir / PROVENANCE_FILE
        if not os.path.lexists(self.spec.output_dir):  # a link to what is gone can't be replaced by a folder either
            return
        differing = self.spec.differing(read_json(path)) if path.is_file() else None
        if differing == []:  # another process has just made it
            return
        fault = f"differs in {', '.join(differing)}" if differing else "is missing"
        raise ArtifactError(
            f"{OUTPUT_KEY}: {self.spec.output_dir} is there, but is not the checkpoint asked for: its "
            f"{PROVENANCE_FILE} {fault}; delete the folder or name another one"
        )

    def _make(self) -> None:
        self._refuse_what_is_there()  # again: others may have filled the folder while this process waited for it
        scores = self.scores()
        plan = self._planned(scores)
        cut = plan_checkpoint(self.spec.seed_dir, plan.drop_layers)
        if scores is None:  # else planning has verified it
            self.spec.verify(cut)
        cut = dataclasses.replace(cut, config=cut.config | {PRUNED_KEY: fingerprint(self.spec.settings)})
        check_room(cut, self.spec.output_dir)
        warning = pattern_warning(read_json(self.spec.seed_dir / "config.json"), cut.config)
        if warning is not None:
            LOG.warning("%s", warning)
        with tells_what_is_kept(self._kept, LOG):
            patch = self._patch(cut)
            with atomic_folder(self.spec.output_dir) as folder:
                write_cut(cut, folder, self.spec.config.max_shard_size, self._provenance(plan, scores), patch)
                if scores is not None:
                    write_json(folder / PROVENANCE_FOLDER / SCORES_FILE, scores.to_json())
        LOG.info(
            "pruned %s: dropped %s of %d layers (%s), %.1fM parameters before, %.1fM after: %s",
            self.spec.seed_name,
            ", ".join(map(str, plan.drop_layers)),
            plan.num_layers,
            _reason(plan),
            cut.parameters_before / 1e6,
            cut.parameters_after / 1e6,
            self.spec.output_dir,
        )

    def _patch(self, cut: CheckpointPlan) -> LayerPatch | None:
        """Return what is folded into the layers before each cut; None where the settings ask for nothing."""
        if self.spec.config.patch == "none":
            return None
        patch = self._fitted_patch(cut)
        log_patch(patch, LOG)
        return patch

    def _fitted_patch(self, cut: CheckpointPlan) -> LayerPatch:
        from axolotl_sdft.pruning.patching.fit import fitted_patch

        try:
            batches = self._batches
        except SdftError as err:
            if "patch" in self.spec.config.model_fields_set:  # asked for, not just the default
                raise
            if self.spec.general_text is None:
                return bare_patch(cut.drop_layers, f"no calibration text to fit it on ({err})")
            LOG.warning("the patch is fitted without calibration text that was read: %s", err)
            batches = []
        return fitted_patch(
            self.spec.seed_dir,
            cut.drop_layers,
            (cut.tensors, cut.layer_prefix),
            self.spec.config,
            batches,
            self.spec.trust_remote_code,
            self._general_batches if self.spec.general_text is not None else None,
        )

    def _general_batches(self, model: Any, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Return the seed model's answers to general prompts as micro-batches, as many as the other text asks for."""
        from axolotl_sdft.pruning.general_answers import general_texts
        from axolotl_sdft.pruning.patching.cut_model import num_tokens
        from axolotl_sdft.pruning.scoring.loading import encode_texts

        spec, general = self.spec, self.spec.general_text
        assert general is not None
        hidden_size, num_read = model.config.get_text_config().hidden_size, sum(map(num_tokens, batches))
        LOG.info("%s", general.described(hidden_size, num_read))
        try:
            texts = general_texts(
                model,
                spec.seed_dir,
                general.num_tokens(hidden_size, num_read),
                num_prompts=general.num_prompts,
                folder=spec.answers_dir,
                chat_template=general.chat_template,
                trust_remote_code=spec.trust_remote_code,
            )
        except CheckpointError as err:
            if general.share is None:  # asked for as a part of the calibration
                raise DatasetError(f"layer_pruning.calibration asks for general prompts, but {err}") from err
            LOG.warning("no general prompts are answered for the patch, since %s", err)
            return []
        if not texts:
            LOG.warning("the seed model gave no answer to any general prompt")
            return []
        return encode_texts(texts, spec.seed_dir, spec.config.calibration, trust_remote_code=spec.trust_remote_code)

    @cached_property
    def _batches(self) -> Sequence[Batch]:
        return self.spec.load_batches()

    def _provenance(self, plan: PruningPlan, scores: LayerScores | None) -> dict[str, Any]:
        return self.spec.identity | {
            "seed_model": self.spec.seed_name,
            "seed_dir": str(self.spec.seed_dir),
            "metric": plan.metric,
            "cost": plan.cost,
            "scores": scores.to_json() if scores is not None else None,
        }

    def _scores_anew(self, known: LayerScores | None) -> LayerScores:
        """Return the scores of the pruned checkpoint if it is there, else measure."""
        if self.spec.is_done:
            return LayerScores.from_json(read_json(self.spec.output_dir / PROVENANCE_FOLDER / SCORES_FILE))
        self.spec.verify(self._trial_cut())
        for line in self.spec.removable.fixed_lines():
            LOG.warning("%s", line)
        return measured_scores(
            self.spec.seed_dir,
            self.spec.config,
            lambda: self._batches,
            self.spec.num_dropped,
            trust_remote_code=self.spec.trust_remote_code,
            may_go=lambda layers: self.spec.removable.reason_in_config(layers) is None,
            known=known,
        )


def _reason(plan: PruningPlan) -> str:
    if plan.metric is None:
        return "as named"
    return plan.metric if plan.cost is None else f"{plan.metric} {plan.cost:.4f}"
