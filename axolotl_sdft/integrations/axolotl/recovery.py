"""What a configuration has to compare: its models, its held-out rows, and the recovery report of them."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import RecoveryReportConfig, RowsConfig
from axolotl_sdft.core.cards import public_name
from axolotl_sdft.core.errors import DatasetError, SdftError, UnknownNameError
from axolotl_sdft.core.model_folder import ADAPTER_CONFIG, holds_model, is_adapter_beside_weights
from axolotl_sdft.core.terminal import tells_what_is_kept
from axolotl_sdft.core.texts import evenly_spaced
from axolotl_sdft.core.trained_on import pruning_marker
from axolotl_sdft.core.training_record import RECORD_FILE, recorded_held_out
from axolotl_sdft.distillation.digest import encoded, slices
from axolotl_sdft.distillation.rows.formats import resolve_row_format
from axolotl_sdft.distillation.rows.preferences import chats_of_preferences, without_undesirable
from axolotl_sdft.distillation.rows.validation import TOKENIZED, require_text, shown_features, stored_rows
from axolotl_sdft.evaluation.report.headline import PRUNED, SEED, TRAINED
from axolotl_sdft.evaluation.spec import ReportedModel, named_model
from axolotl_sdft.inference.interfaces import Target
from axolotl_sdft.integrations.axolotl.blocks import missing_chat_template, read_blocks, seed_dir_of, seed_of
from axolotl_sdft.integrations.axolotl.calibration_text import known_entry
from axolotl_sdft.integrations.axolotl.commands import find_artifacts
from axolotl_sdft.integrations.axolotl.datasets import dataset_entries, load_rows
from axolotl_sdft.integrations.axolotl.held_out import is_split, rows_name, split_off
from axolotl_sdft.integrations.axolotl.pruned_base import output_dir_of
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
_DRAWN_ANEW = (
    "they are drawn anew, and the trained model may have been trained on some of them; train again with seed set, or "
    f"set {HELD_OUT_KEY}.path"
)
_OTHER_SPLIT = (
    "held-out rows: those that the training set aside; val_set_size, seed or datasets have changed since and would "
    "split off others, some of which were trained on"
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
    seed_dir = artifacts.seed_dir or seed_dir_of(cfg)
    models, notes = [ReportedModel(SEED, seed_dir)], []
    if pruning_marker(seed_dir) is not None:
        notes.append(
            f"{SEED}: {artifacts.seed_name} was pruned before, and nothing beside it names the unpruned model; all is "
            "measured against it as it is"
        )
    if artifacts.pruned_dir is not None:
        models.append(ReportedModel(PRUNED, artifacts.pruned_dir))
    elif cfg.get("layer_pruning") is not None:
        notes.append(f"{PRUNED}: there is no pruned checkpoint yet; run axolotl prune-layers or axolotl train")
    models += [named_model(name, folder, f"recovery_report.models.{name}") for name, folder in config.models.items()]
    if holds_model(artifacts.output_dir):
        models.append(ReportedModel(TRAINED, artifacts.output_dir))
        if is_adapter_beside_weights(artifacts.output_dir):
            notes.append(
                f"{TRAINED}: {artifacts.output_dir} holds an adapter, which is measured, beside the weights of a whole "
                f"model; if those were trained last, delete {ADAPTER_CONFIG} there and start again"
            )
    else:
        notes.append(f"{TRAINED}: {artifacts.output_dir} holds no model yet; run axolotl train")
    return models, notes


def report_dir(cfg: Any, config: RecoveryReportConfig) -> Path:
    """Return the folder of the report."""
    if config.output_dir is not None:
        return Path(config.output_dir).expanduser().absolute()
    return (Path(cfg.get("output_dir") or "./model-out") / _DEFAULT_FOLDER).absolute()


def held_out(cfg: Any, config: RowsConfig) -> HeldOut:
    """Return the held-out answers of a configuration: those of ``path``, of ``test_datasets``, or of ``val_set_size``.

    Of the last, they are those that the training in ``output_dir`` recorded, whatever the configuration says by now.
    Of a row with several answers the last one counts, so that rows are independent of each other.

    Raises:
        DatasetError: A dataset can't be loaded, or ``path`` holds no prompts with answers.
    """
    if config.path is not None:
        entry = config.model_dump(include={"path", "name", "split", "type"}, exclude_none=True)
        return _sampled(cfg, [(HELD_OUT_KEY, *_loaded(cfg, entry, HELD_OUT_KEY))], config, f"{HELD_OUT_KEY}.path")
    is_named = bool(cfg.get("test_datasets"))
    named, notes = ([*_test_sets(cfg)], []) if is_named else _set_aside(cfg)
    if not named:
        return HeldOut(notes=(_NO_ROWS, *notes))
    try:
        rows = _sampled(cfg, named, config, "test_datasets" if is_named else "val_set_size", is_split_off=not is_named)
    except (DatasetError, UnknownNameError) as err:
        LOG.debug("held-out rows", exc_info=True)
        return HeldOut(notes=(f"held-out rows: {err}. Or set {HELD_OUT_KEY}.path to other rows",))
    return replace(rows, notes=(*notes, *rows.notes))


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


def _set_aside(cfg: Any) -> "tuple[list[tuple[str, Any, Dataset]], list[str]]":
    """Return the rows that were split off ``datasets`` when the model was trained, and what is said of them."""
    folder = output_dir_of(cfg)
    is_trained = holds_model(folder)
    recorded = recorded_held_out(folder) if is_trained else ()
    gone = [entry["path"] for entry in recorded if not Path(entry["path"]).is_dir()]
    if recorded and not gone:
        where = f"held_out of {folder / RECORD_FILE}"
        named = [(where, *_loaded(cfg, entry, where)) for entry in recorded]
        return named, [] if _is_as_recorded(cfg, recorded) else [_OTHER_SPLIT]
    drawn = [*split_off(cfg)] if is_split(cfg) else []
    if gone:
        return drawn, [f"held-out rows: {gone[0]}, which the training set aside, is gone; {_DRAWN_ANEW}"]
    if drawn and is_trained and cfg.get("seed") is None:
        return drawn, [f"held-out rows: seed is not set and the training recorded none; {_DRAWN_ANEW}"]
    return drawn, []


def _is_as_recorded(cfg: Any, recorded: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a training would set the same rows aside again."""
    try:
        now = [rows_name(rows, "held-out") for *_, rows in split_off(cfg)] if is_split(cfg) else []
    except SdftError:  # the data is gone
        return True
    return now == [Path(entry["path"]).name for entry in recorded]


def _sampled(
    cfg: Any, named: "list[tuple[str, Any, Dataset]]", config: RowsConfig, source: str, is_split_off: bool = False
) -> HeldOut:
    """Return the answers of up to ``num_samples`` rows, spread evenly over all datasets that hold answers.

    Raises:
        DatasetError: None of them does; the message says why the first doesn't.
    """
    found = [(where, entry, stored_rows(rows, where)) for where, entry, rows in named]
    stored = [(where, entry, without_undesirable(rows, entry)) for where, entry, rows in found]
    faults = [_fault_of(entry, where, rows) for where, entry, rows in stored]
    answered = [each for each, fault in zip(stored, faults, strict=True) if fault is None]
    if not answered and faults[0] is not None:
        raise faults[0]
    total = sum(len(rows) for *_, rows in answered)
    chosen = evenly_spaced(total, config.num_samples)
    targets, start = [], 0
    for where, entry, rows in answered:
        picked = [rows[place - start] for place in chosen if start <= place < start + len(rows)]
        targets += _last_targets(picked, entry, where, shown_features(rows))
        start += len(rows)
    if not targets:
        raise DatasetError(f"{answered[0][0]} holds no row with a prompt and an answer; check its path, split and type")
    notes = [
        f"held-out rows: the {len(rows):,} of {where} are left out: {fault}"
        for (where, _, rows), fault in zip(stored, faults, strict=True)
        if fault is not None
    ]
    notes += [
        f"held-out rows: {len(rows) - len(kept):,} of {len(rows):,} of {where} are left out: their completions are "
        "labelled undesirable"
        for (where, _, rows), (*_, kept) in zip(found, stored, strict=True)
        if len(kept) < len(rows)
    ]
    left_out = len(chosen) - len(targets)
    notes += [f"held-out rows: {left_out} of {len(chosen)} hold no prompt with an answer"] if left_out else []
    notes += _notes_of_trained(cfg, targets, answered if is_split_off else None)
    return HeldOut(tuple(targets), f"{source}, {len(targets)} of {total} rows", tuple(notes))


def _fault_of(entry: Any, where: str, rows: "Dataset") -> DatasetError | UnknownNameError | None:
    """Return why a dataset holds no questions with answers, as running text doesn't; None where it does."""
    try:
        _last_targets([rows[0]] if len(rows) else [], entry, where, shown_features(rows))
    except (DatasetError, UnknownNameError) as err:
        return err
    return None


def _notes_of_trained(
    cfg: Any, targets: list[Target], split_off: "list[tuple[str, Any, Dataset]] | None"
) -> Iterator[str]:
    """Say how many held-out answers stand in ``datasets`` as well; each that was split off does so once."""
    if split_off is not None and cfg.get("dataset_exact_deduplication"):
        return
    try:
        counts = _counted((where, entry, load_rows(cfg, entry, where)) for where, entry in dataset_entries(cfg))
    except SdftError as err:
        yield f"held-out rows: whether they are in datasets as well can't be told ({err})"
        return
    counts.subtract(_counted(split_off or ()))
    num_trained = sum(counts[_digest(target)] > 0 for target in targets)
    if num_trained:
        way_out = (
            "take them out there" if split_off is None else "set dataset_exact_deduplication: true and train again"
        )
        yield (
            f"held-out rows: {num_trained} of {len(targets)} are in datasets as well, where they are trained on; "
            f"{way_out}, or set {HELD_OUT_KEY}.path to other rows"
        )


def _counted(named: "Iterable[tuple[str, Any, Dataset]]") -> "Counter[bytes]":
    """Count equal questions with equal answers; a dataset of no such rows counts for nothing."""
    counts: Counter[bytes] = Counter()
    for where, entry, rows in named:
        with suppress(DatasetError, UnknownNameError):
            features = shown_features(rows)
            for picked in slices(stored_rows(rows, where)):
                counts.update(map(_digest, _last_targets(picked, entry, where, features)))
    return counts


def _digest(target: Target) -> bytes:
    # The words that one type puts before the same question are no other question.
    said = [message for message in target.context if message["role"] != "system"]
    return hashlib.sha256(encoded([said, target.reference])).digest()


def _last_targets(rows: list[dict[str, Any]], entry: Any, where: str, features: Any) -> list[Target]:
    if not rows:
        return []
    if set(rows[0]) >= TOKENIZED:
        raise DatasetError(
            f"{where} holds rows that are tokenized already, of which no question and answer can be told"
        )
    preferred = chats_of_preferences(rows, entry)
    if preferred is not None:
        rows, entry = preferred
        features = None
    known = known_entry(rows, entry, where)
    row_format = resolve_row_format(known, where)
    missing = row_format.missing_columns(list(rows[0]))
    if missing:
        raise DatasetError(
            f"{where} has no column {missing[0]!r}, which its type {known.get('type')!r} needs; its columns are "
            f"{', '.join(rows[0])}; set {where}.type to that of the rows"
        )
    require_text(features or {}, row_format, known.get("type"), where)
    counts = [row_format.num_targets(row) for row in rows]
    return [row_format.target(row, count - 1) for row, count in zip(rows, counts, strict=True) if count]
