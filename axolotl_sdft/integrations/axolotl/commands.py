"""One stage alone, for the command line: each function yields the lines that a person reads."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.artifacts import ensure_writable, read_json
from axolotl_sdft.core.errors import ArtifactError, CheckpointError, ConfigError, MissingExtraError, SdftError
from axolotl_sdft.core.model_folder import holds_model
from axolotl_sdft.core.trained_on import PROVENANCE_FILE
from axolotl_sdft.core.training_record import recorded_datasets
from axolotl_sdft.distillation.output.corrections import refuse_existing, write_corrections
from axolotl_sdft.distillation.output.dataset import read_summary
from axolotl_sdft.distillation.output.report import REPORT_FILE
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.rows.left_alone import rewritten_of
from axolotl_sdft.distillation.spec import SUMMARY_FILE
from axolotl_sdft.evaluation.summary import Artifacts
from axolotl_sdft.integrations.axolotl.blocks import Blocks, pruned_before, read_blocks, seed_dir_of, seed_of
from axolotl_sdft.integrations.axolotl.datasets import check_overrides
from axolotl_sdft.integrations.axolotl.pruned_base import output_dir_of, pruned_dir_of
from axolotl_sdft.integrations.axolotl.rewriting import check_logits, distillation_specs, logit_lines
from axolotl_sdft.integrations.axolotl.rules import check_plugin, check_rules
from axolotl_sdft.integrations.axolotl.stages import pruning_spec
from axolotl_sdft.pruning.checkpoint.cut import SCORES_FILE
from axolotl_sdft.pruning.patching.record import patch_lines
from axolotl_sdft.pruning.pipeline import PruningRun
from axolotl_sdft.pruning.planning.report import PruningTable
from axolotl_sdft.pruning.planning.savings import read_savings
from axolotl_sdft.pruning.spec import PruningSpec

LOG = logging.getLogger(__name__)

_SAY_WHAT_GOES = ("num_layers", "target", "drop_layers")


@dataclass(frozen=True)
class PrunedAlone:
    """What pruning the base model does and could do, and what was made of it."""

    spec: PruningSpec
    table: PruningTable | None
    """None where the base model has been pruned with these settings already."""

    pruned_dir: Path | None = None
    pictures: tuple[Path, ...] = ()
    why_no_pictures: str = ""

    def lines(self) -> Iterator[str]:
        """Yield it for a person, the paths and the next command last."""
        spec, table = self.spec, self.table
        if table is None:
            yield f"{spec.seed_name} has been pruned with these settings already; nothing is left to do"
            return
        yield from table.lines()
        if table.scores is not None:
            yield f"scores: {spec.scores_dir / SCORES_FILE}"
            yield from (f"picture: {path}" for path in self.pictures)
        if self.why_no_pictures:
            yield f"no pictures: {self.why_no_pictures}"
        yield from _patch_lines(spec, table.config)
        if self.pruned_dir is not None:
            yield f"pruned checkpoint: {self.pruned_dir}"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        provenance = read_json(self.pruned_dir / PROVENANCE_FILE) if self.pruned_dir is not None else {}
        return {
            "is_pruned_already": self.table is None,
            **(self.table.to_json() if self.table is not None else {}),
            "patch": provenance.get("patch"),
            "scores": str(self.spec.scores_dir / SCORES_FILE) if self.table and self.table.scores else None,
            "pictures": [str(path) for path in self.pictures],
            "pruned_checkpoint": None if self.pruned_dir is None else str(self.pruned_dir),
        }


def prune_alone(cfg: Any, dry_run: bool, num_layers: int | float | None = None) -> PrunedAlone:
    """Return what pruning the base model does and could do; the checkpoint is there then, unless ``dry_run``.

    Scores and pictures are kept in both cases, so that another number of layers is planned in seconds.

    Args:
        cfg: The raw configuration.
        dry_run: Write no checkpoint.
        num_layers: Takes the place of ``layer_pruning.num_layers``, ``target`` and ``drop_layers``.

    Raises:
        ConfigError: The configuration has no ``layer_pruning`` block, or so many layers can't go.
    """
    if cfg.get("layer_pruning") is None:
        raise ConfigError("there is no layer_pruning block; add one, such as layer_pruning: {num_layers: 2}")
    if num_layers is None:
        return _prune(cfg, dry_run)
    if isinstance(cfg.layer_pruning, Mapping):
        others = {key: value for key, value in cfg.layer_pruning.items() if key not in _SAY_WHAT_GOES}
        cfg.layer_pruning = {**others, "num_layers": num_layers}
    try:
        return _prune(cfg, dry_run)
    except ConfigError as err:
        raise ConfigError(f"with --num-layers {num_layers}: {err}") from err


def _prune(cfg: Any, dry_run: bool) -> PrunedAlone:
    config = _checked_blocks(cfg).layer_pruning
    assert config is not None
    spec = pruning_spec(cfg, config)
    if spec.is_input_pruned:
        return PrunedAlone(spec, None)
    # First, since it refuses what would stop it before the layers are scored.
    pruning = PruningRun(spec)
    pruned_dir = None if dry_run else pruning.run()
    plan, scores = pruning.plan(), pruning.scores()
    table = PruningTable(spec.seed_name, plan, scores, read_savings(spec.seed_dir, plan.drop_layers), config)
    if scores is None:
        return PrunedAlone(spec, table, pruned_dir)
    try:
        return PrunedAlone(spec, table, pruned_dir, tuple(table.draw(spec.scores_dir)))
    except (MissingExtraError, ArtifactError) as err:
        return PrunedAlone(spec, table, pruned_dir, why_no_pictures=str(err))


def _patch_lines(spec: PruningSpec, config: LayerPruningConfig) -> Iterator[str]:
    """Yield what the pruned checkpoint says of its patch, if it is there."""
    if config.patch == "none":
        yield "patch: none (layer_pruning.patch)"
    elif spec.is_done:
        record = read_json(spec.output_dir / PROVENANCE_FILE)["patch"]
        yield from (f"patch: {line}" for _, line in patch_lines(record))
    else:
        when = "not in a dry run; fitted when the checkpoint is written"
        yield f"patch: {when} (layer_pruning.patch: none for a bare cut)"
        if spec.general_text is not None:
            yield f"  on the calibration text and {spec.general_text.planned(spec.seed_config)}"


def distill_alone(
    cfg: Any,
    num_previews: int | None,
    width: int | None = None,
    corrections: Path | None = None,
    logits: int | None = None,
) -> Iterator[str]:
    """Rewrite the datasets, or show some rows; yield counts, folders and reports.

    Args:
        cfg: The raw configuration.
        num_previews: Show so many rows of each dataset, and write nothing.
        width: Columns of the terminal that shows them; None for a file or a pipe.
        corrections: File for conversations in which rejected attempts are corrected; with several datasets, each has
            its own, numbered.
        logits: Also write so many of the seed model's most likely tokens for each trained one.

    Raises:
        ConfigError: The configuration has no ``self_distillation`` block.
        ArtifactError: The file for the corrections exists already.
    """
    config = _checked_blocks(cfg).self_distillation
    if config is None:
        raise ConfigError("there is no self_distillation block; an empty one will do: self_distillation: {}")
    entries_and_specs = distillation_specs(cfg)
    specs = [spec for _, spec in entries_and_specs]
    if logits is not None:
        check_logits(entries_and_specs)
    files = _numbered(corrections, len(specs))
    for (entry, spec), file in zip(entries_and_specs, files, strict=True):
        if num_previews is not None:
            yield from _preview(spec, num_previews, width)
            continue
        folder = run_distillation(spec)
        summary = read_summary(folder)
        yield f"{spec.where}: {rewritten_of(summary)}: {folder}"
        yield f"report: {folder / REPORT_FILE}"
        if file is not None:
            yield f"{spec.where}: {write_corrections(spec, file)} wrong attempts with their corrections: {file}"
        if logits is not None:
            yield from logit_lines(cfg, entry, spec, folder, logits)


def _numbered(path: Path | None, count: int) -> list[Path | None]:
    """Return a file for each dataset; where there is only one, the file itself."""
    if path is None:
        return [None] * count
    files = [path] if count == 1 else [path.with_stem(f"{path.stem}-{number}") for number in range(count)]
    for file in files:
        refuse_existing(file)
        ensure_writable(file.parent, "--corrections")
    return [*files]


def _preview(spec: Any, num_rows: int, width: int | None) -> Iterator[str]:
    from axolotl_sdft.distillation.output.preview import answer_lines, preview, preview_lines

    previewed = preview(spec, num_rows)
    for shown in previewed.answers:
        yield from answer_lines(shown, spec.where, width)
    yield from preview_lines(previewed, spec.where, len(spec.dataset))


def find_artifacts(cfg: Any) -> Artifacts:
    """Return what the stages of a configuration have made so far; makes nothing.

    What a trained model was trained on is found without data and seed model.

    Raises:
        SdftError: A setting can't work, or asks for another pruned checkpoint than the model was trained on.
    """
    blocks = _checked_blocks(cfg)
    pruning = blocks.layer_pruning
    return Artifacts(
        seed_dir=_seed_dir_if_there(cfg),
        pruned_dir=pruned_before(cfg)
        if pruning is None
        else pruned_dir_of(cfg, pruning, lambda: pruning_spec(cfg, pruning)),
        distilled_dirs=_distilled_dirs(cfg) if blocks.self_distillation is not None else [],
        output_dir=Path(cfg.get("output_dir") or "./model-out"),
        seed_name=seed_of(cfg)[0],
    )


def _distilled_dirs(cfg: Any) -> list[Path]:
    """Return the datasets that the trained model was trained on, else those that the configuration asks for."""
    folder = output_dir_of(cfg)
    recorded = recorded_datasets(folder) if holds_model(folder) else ()
    trained = [path for path in recorded if path is not None and (path / SUMMARY_FILE).is_file()]
    if not trained:
        return _finished_dirs(cfg)
    try:
        asked = _finished_dirs(cfg)
    except SdftError as err:  # data or seed model are gone, which what was trained does not need
        LOG.debug("which datasets the configuration asks for can't be told", exc_info=err)
        return trained
    if _named(asked) != _named(trained):
        LOG.warning(
            "the rewritten rows are those that the model in %s was trained on (%s); the configuration asks for others "
            "by now (%s). To have those, train again (axolotl train), or name another output_dir",
            *(folder, _named(trained), _named(asked) or "not rewritten yet"),
        )
    return trained


def _finished_dirs(cfg: Any) -> list[Path]:
    return [folder for _, spec in distillation_specs(cfg) if (folder := spec.finished_dir)]


def _named(folders: Sequence[Path]) -> str:
    return ", ".join(folder.name for folder in folders)


def _seed_dir_if_there(cfg: Any) -> Path | None:
    try:
        return seed_dir_of(cfg)
    except CheckpointError as err:
        LOG.warning("%s", err)
        return None


def _checked_blocks(cfg: Any) -> Blocks:
    blocks = read_blocks(cfg)
    check_plugin(cfg, blocks)
    check_overrides(cfg)
    check_rules(cfg, blocks, other_trainers={})
    return blocks
