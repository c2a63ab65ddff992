"""The recovery report as one call, without Axolotl and its configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import RecoveryReportConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.core.model_folder import seed_dir_of_call
from axolotl_sdft.core.texts import evenly_spaced
from axolotl_sdft.distillation.rows.formats import resolve_row_format
from axolotl_sdft.distillation.rows.recognition import recognised_config
from axolotl_sdft.distillation.rows.validation import require_text, require_whole_dataset, shown_features, stored_rows
from axolotl_sdft.evaluation.figures import RecoveryReport
from axolotl_sdft.evaluation.pipeline import check_report, run_report, write_report
from axolotl_sdft.evaluation.report.headline import SEED
from axolotl_sdft.evaluation.spec import RecoverySpec, ReportedModel, named_model
from axolotl_sdft.inference.interfaces import Target

if TYPE_CHECKING:
    from datasets import Dataset


def measure_recovery(
    seed_model: str | Path,
    models: Mapping[str, str | Path],
    held_out: "Dataset | None" = None,
    config: RecoveryReportConfig | None = None,
    *,
    output_dir: str | Path | None = None,
    dataset_config: Mapping[str, Any] | None = None,
    revision: str | None = None,
) -> RecoveryReport:
    """Return what pruning took from a model and training gave back, and write the report into a folder.

    What was measured before, with the same models, settings and rows, is found again.

    Args:
        seed_model: Folder or Hub id of the model that the others are compared with.
        models: Folders of the others by name, such as ``pruned`` and ``trained``; checkpoints or LoRA adapters. Those
            that ``config`` names come after them.
        held_out: Rows that no model was trained on; without them, only general prompts are measured.
        config: What is measured; the defaults when unset.
        output_dir: Gets ``report.html``, ``report.json`` and a section for the model card. Unset: that of ``config``,
            else ``recovery_report``.
        dataset_config: The row format, as for :func:`~axolotl_sdft.distill_dataset`.
        revision: Revision of the seed model on the Hub.

    Raises:
        SdftError: A setting can't work, a model is missing, or the seed model can't be measured.

    Example:
        >>> report = measure_recovery("Qwen/Qwen3-8B", {"pruned": pruned_dir, "trained": "outputs/merged"}, rows)
        >>> report
    """
    settings = config or RecoveryReportConfig()
    _refuse_dataset_by_name(settings)
    seed = ReportedModel(SEED, seed_dir_of_call(seed_model, revision))
    others = _others(models, settings)
    targets = () if held_out is None else _targets(held_out, settings.held_out.num_samples, dataset_config)
    spec = RecoverySpec(
        models=(seed, *others),
        config=settings,
        output_dir=Path(output_dir or settings.output_dir or "recovery_report").expanduser().absolute(),
        held_out=targets,
        provenance={"seed_model": str(seed_model), "held_out_rows": f"{len(targets)} rows"},
        template_arguments=settings.chat_template_kwargs or {},
    )
    check_report(spec)
    report = run_report(spec)
    write_report(report, spec.output_dir)
    return report


def _refuse_dataset_by_name(config: RecoveryReportConfig) -> None:
    named = sorted({"path", "name", "split", "type"} & config.held_out.model_fields_set)
    if named:
        raise ConfigError(
            f"held_out.{named[0]} is {getattr(config.held_out, named[0])!r}, but measure_recovery reads no dataset "
            "itself; pass its rows as held_out, their type as dataset_config, and remove the setting"
        )


def _others(models: Mapping[str, str | Path], config: RecoveryReportConfig) -> tuple[ReportedModel, ...]:
    taken = sorted({SEED, *config.models} & set(models))
    if taken:
        whose = "is what the report calls seed_model" if taken[0] == SEED else "stands in config.models too"
        raise ConfigError(f"models names one {taken[0]!r}, which {whose}; choose another name")
    return tuple(named_model(name, folder, f"models[{name!r}]") for name, folder in {**models, **config.models}.items())


def _targets(rows: "Dataset", num_samples: int, dataset_config: Mapping[str, Any] | None) -> tuple[Target, ...]:
    """Return the last answer of up to so many rows, spread evenly."""
    require_whole_dataset(rows, "held_out")
    features = shown_features(rows)
    entry = dataset_config or recognised_config(features, "held_out")
    row_format = resolve_row_format(entry, "held_out")
    require_text(features, row_format, entry.get("type"), "held_out")
    stored = stored_rows(rows, "held_out")
    picked = [stored[place] for place in evenly_spaced(len(stored), num_samples)]
    counts = [row_format.num_targets(row) for row in picked]
    return tuple(row_format.target(row, count - 1) for row, count in zip(picked, counts, strict=True) if count)
