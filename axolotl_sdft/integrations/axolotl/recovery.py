"""What a configuration has to compare: its models, its held-out rows, and the recovery report of them."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import RecoveryReportConfig, RowsConfig
from axolotl_sdft.core.cards import public_name
from axolotl_sdft.core.errors import ConfigError, DatasetError, UnknownNameError
from axolotl_sdft.core.model_folder import holds_model
from axolotl_sdft.core.terminal import tells_what_is_kept
from axolotl_sdft.core.texts import evenly_spaced
from axolotl_sdft.distillation.rows.formats import resolve_row_format
from axolotl_sdft.distillation.rows.validation import TOKENIZED, require_text, stored_rows
from axolotl_sdft.evaluation.report.headline import PRUNED, SEED, TRAINED
from axolotl_sdft.evaluation.spec import ReportedModel
from axolotl_sdft.inference.interfaces import Target
from axolotl_sdft.integrations.axolotl.blocks import missing_chat_template, read_blocks, seed_dir_of, seed_of
from axolotl_sdft.integrations.axolotl.calibration_text import known_entry
from axolotl_sdft.integrations.axolotl.commands import find_artifacts
from axolotl_sdft.integrations.axolotl.datasets import dataset_entries, load_rows
from axolotl_sdft.integrations.axolotl.held_out import is_split, parts_of
from axolotl_sdft.integrations.axolotl.trackers import report_figures, send_figures

if TYPE_CHECKING:
    from datasets import Dataset

    from axolotl_sdft.evaluation.figures import RecoveryReport
    from axolotl_sdft.evaluation.spec import RecoverySpec

LOG = logging.getLogger(__name__)

HELD_OUT_KEY = "recovery_report.held_out"
_DEFAULT_FOLDER = "recovery_report"
_NO_ROWS = (
    f"held-out rows: none, so only general prompts are measured; set {HELD_OUT_KEY}.path, test_datasets or val_set_size"
)


@dataclass(frozen=True)
class HeldOut:
    """Answers that no model was trained on."""

    targets: tuple[Target, ...] = ()
    source: str = "none"
    """Where they come from, for a person."""

    notes: tuple[str, ...] = ()
    """What is missing, and which key to set."""


def report_alone(cfg: Any) -> Iterator[str]:
    """Measure the models of a configuration, write the report, and yield its text and the paths.

    Raises:
        SdftError: A setting can't work, a named model is missing, or the seed model can't be measured.
    """
    from axolotl_sdft.evaluation.report.page import vllm_lines_of
    from axolotl_sdft.evaluation.report.table import text_lines

    report, paths, trackers = _written(cfg)
    yield from text_lines(report)
    for name, lines in vllm_lines_of(report).items():
        yield ""
        yield f"{name} as draft of the seed model in vLLM:"
        yield from lines
    yield ""
    yield from (f"{name}: {path}" for name, path in paths.items())
    if trackers:
        yield f"figures sent to: {', '.join(trackers)}"


def report_record(cfg: Any) -> dict[str, Any]:
    """Measure and write as :func:`report_alone` does, and return figures and paths as JSON values."""
    from axolotl_sdft.evaluation.pipeline import finite

    report, paths, trackers = _written(cfg)
    files = {name: str(path) for name, path in paths.items()}
    return {**finite(report.to_json()), "files": files, "trackers": trackers}


def _written(cfg: Any) -> "tuple[RecoveryReport, dict[str, Path], list[str]]":
    from axolotl_sdft.evaluation.pipeline import run_report, write_report

    spec = recovery_spec(cfg)
    kept = f"the figures that were measured are kept in {spec.output_dir}; to go on, start the same command again"
    with tells_what_is_kept(lambda: kept, LOG):
        report = run_report(spec)
    paths = write_report(report, spec.output_dir)
    return report, paths, send_figures(cfg, report_figures(report.to_json()), "recovery report")


def recovery_spec(cfg: Any) -> "RecoverySpec":
    """Return the measuring that a raw configuration asks for; its settings, models and rows are checked.

    No block is required: without ``recovery_report`` all of it is at its defaults.

    Raises:
        SdftError: A setting can't work, or a model that the block names is missing.
    """
    from axolotl_sdft.evaluation.pipeline import check_report
    from axolotl_sdft.evaluation.spec import RecoverySpec

    config = read_blocks(cfg).recovery_report or RecoveryReportConfig()
    models, missing = reported_models(cfg, config)
    rows = held_out(cfg, config.held_out)
    spec = RecoverySpec(
        models=tuple(models),
        config=config,
        output_dir=report_dir(cfg, config),
        held_out=rows.targets,
        notes=(*missing, *rows.notes),
        provenance={"seed_model": seed_of(cfg)[0], "data": data_name(cfg, config), "held_out_rows": rows.source},
        trust_remote_code=bool(cfg.get("trust_remote_code")),
        template_arguments=template_arguments(cfg, config),
        chat_template=missing_chat_template(cfg, seed_dir_of(cfg)),
    )
    check_report(spec)
    return spec


def data_name(cfg: Any, config: RecoveryReportConfig) -> str:
    """Return what the data of a configuration is called in a title: Hub ids, and of local paths the last part."""
    trained = [entry.get("path") for entry in cfg.get("datasets") or () if isinstance(entry, Mapping)]
    names = [public_name(str(path)) for path in trained or [config.held_out.path] if path]
    return ", ".join(dict.fromkeys(names))


def template_arguments(cfg: Any, config: RecoveryReportConfig) -> Mapping[str, Any]:
    """Return what the chat template is given besides: a seed model that must not think aloud there must not here."""
    if config.chat_template_kwargs is not None:
        return config.chat_template_kwargs
    distillation = read_blocks(cfg).self_distillation
    return distillation.generation.template_arguments if distillation is not None else {}


def reported_models(cfg: Any, config: RecoveryReportConfig) -> tuple[list[ReportedModel], list[str]]:
    """Return the models that are there, the seed model first, and what is said of those that are not.

    Raises:
        ConfigError: A folder that ``recovery_report.models`` names holds no model.
    """
    artifacts = find_artifacts(cfg)
    # All is measured against the seed model: where it is gone, this says so.
    models, notes = [ReportedModel(SEED, artifacts.seed_dir or seed_dir_of(cfg))], []
    if artifacts.pruned_dir is not None:
        models.append(ReportedModel(PRUNED, artifacts.pruned_dir))
    elif cfg.get("layer_pruning") is not None:
        notes.append(f"{PRUNED}: there is no pruned checkpoint yet; run axolotl prune-layers or axolotl train")
    models += [_named_model(name, folder) for name, folder in config.models.items()]
    if holds_model(artifacts.output_dir):
        models.append(ReportedModel(TRAINED, artifacts.output_dir))
    else:
        notes.append(f"{TRAINED}: {artifacts.output_dir} holds no model yet; run axolotl train")
    return models, notes


def _named_model(name: str, folder: str) -> ReportedModel:
    path = Path(folder).expanduser()
    if not holds_model(path):
        what = "holds neither config.json nor adapter_config.json" if path.is_dir() else "is not a folder"
        raise ConfigError(
            f"recovery_report.models.{name} is {folder!r}, which {what}; name a folder with a checkpoint or a LoRA "
            "adapter, or remove the entry"
        )
    return ReportedModel(name, path)


def report_dir(cfg: Any, config: RecoveryReportConfig) -> Path:
    """Return the folder of the report."""
    if config.output_dir is not None:
        return Path(config.output_dir).expanduser().absolute()
    return (Path(cfg.get("output_dir") or "./model-out") / _DEFAULT_FOLDER).absolute()


def held_out(cfg: Any, config: RowsConfig) -> HeldOut:
    """Return the held-out answers of a configuration: those of ``path``, of ``test_datasets``, or of ``val_set_size``.

    Of a row with several answers the last one counts, so that rows are independent of each other.

    Raises:
        DatasetError: A dataset can't be loaded, or ``path`` holds no prompts with answers.
    """
    if config.path is not None:
        entry = config.model_dump(include={"path", "name", "split", "type"}, exclude_none=True)
        return _sampled([(HELD_OUT_KEY, *_loaded(cfg, entry, HELD_OUT_KEY))], config, f"{HELD_OUT_KEY}.path")
    named = [*_test_sets(cfg)] if cfg.get("test_datasets") else [*_split_off(cfg)] if is_split(cfg) else []
    if not named:
        return HeldOut(notes=(_NO_ROWS,))
    try:
        return _sampled(named, config, "test_datasets" if cfg.get("test_datasets") else "val_set_size")
    except (DatasetError, UnknownNameError) as err:
        LOG.debug("held-out rows", exc_info=True)
        return HeldOut(notes=(f"held-out rows: {err}. Or set {HELD_OUT_KEY}.path to other rows",))


def _loaded(cfg: Any, entry: Any, where: str) -> "tuple[Any, Dataset]":
    from axolotl.utils.dict import DictDefault

    entry = DictDefault(entry)
    return entry, load_rows(cfg, entry, where)


def _test_sets(cfg: Any) -> "Iterator[tuple[str, Any, Dataset]]":
    from axolotl.utils.dict import DictDefault

    for where, entry in dataset_entries(DictDefault(datasets=cfg.test_datasets)):
        named = f"test_{where}"
        # As Axolotl does: without a split, those of a test set are its test split.
        yield named, *_loaded(cfg, {**entry, "split": entry.get("split") or "test"}, named)


def _split_off(cfg: Any) -> "Iterator[tuple[str, Any, Dataset]]":
    sources = [(where, entry, load_rows(cfg, entry, where)) for where, entry in dataset_entries(cfg)]
    for (where, entry, _), part in zip(sources, parts_of(cfg, sources), strict=True):
        if part.held_out is not None:
            yield where, entry, part.held_out


def _sampled(named: "list[tuple[str, Any, Dataset]]", config: RowsConfig, source: str) -> HeldOut:
    """Return the answers of up to ``num_samples`` rows, spread evenly over all datasets."""
    named = [(where, entry, stored_rows(rows, where)) for where, entry, rows in named]
    total = sum(len(rows) for *_, rows in named)
    chosen = evenly_spaced(total, config.num_samples)
    targets, start = [], 0
    for where, entry, rows in named:
        picked = [rows[place - start] for place in chosen if start <= place < start + len(rows)]
        targets += _last_targets(picked, entry, where, rows.features)
        start += len(rows)
    if not targets:
        raise DatasetError(f"{named[0][0]} holds no row with a prompt and an answer; check its path, split and type")
    left_out = len(chosen) - len(targets)
    notes = (f"held-out rows: {left_out} of {len(chosen)} hold no prompt with an answer",) if left_out else ()
    return HeldOut(tuple(targets), f"{source}, {len(targets)} of {total} rows", notes)


def _last_targets(rows: list[dict[str, Any]], entry: Any, where: str, features: Any) -> list[Target]:
    if not rows:
        return []
    if set(rows[0]) >= TOKENIZED:
        raise DatasetError(
            f"{where} holds rows that are tokenized already, of which no question and answer can be told"
        )
    known = known_entry(rows, entry, where)
    row_format = resolve_row_format(known, where)
    missing = row_format.missing_columns(list(rows[0]))
    if missing:
        raise DatasetError(
            f"{where} has no column {missing[0]!r}, which its type {known.get('type')!r} needs; its columns are "
            f"{', '.join(rows[0])}; set {where}.type to that of the rows"
        )
    require_text(features, row_format, known.get("type"), where)
    counts = [row_format.num_targets(row) for row in rows]
    return [row_format.target(row, count - 1) for row, count in zip(rows, counts, strict=True) if count]
