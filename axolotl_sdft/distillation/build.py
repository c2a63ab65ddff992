"""Builds the distilled dataset from the answers: rows after the checks, provenance columns, summary."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from axolotl_sdft.artifacts import atomic_folder, package_versions, read_json, write_json
from axolotl_sdft.distillation.card import write_card
from axolotl_sdft.distillation.checks.form import empty
from axolotl_sdft.distillation.content import as_rows
from axolotl_sdft.distillation.gap import measure_gap
from axolotl_sdft.distillation.interfaces import Backend
from axolotl_sdft.distillation.journal import Journal
from axolotl_sdft.distillation.left_alone import rewritten_of
from axolotl_sdft.distillation.report import REPORT_FILE, lengths, write_report
from axolotl_sdft.distillation.report_figures import ReportFigures
from axolotl_sdft.distillation.verdicts import FAILED, REASONS_COLUMN, SOURCE_COLUMN, Tally, judge_row
from axolotl_sdft.errors import DatasetError
from axolotl_sdft.safe_output import masked

if TYPE_CHECKING:
    from datasets import Dataset

    from axolotl_sdft.distillation.transform import DistillationTask

LOG = logging.getLogger(__name__)

SUMMARY_FILE = "summary.json"
UNANSWERED_FILE = "unanswered.json"

_NO_ANSWER = frozenset({FAILED, empty.__name__})


def build_dataset(task: "DistillationTask", backend: Backend, journal: Journal) -> None:
    """Write the dataset folder: rows after the checks with provenance columns, ``summary.json``, the report, the card.

    Rows stream through. Where the seed model gave no answer at all, the folder holds ``unanswered.json`` in place of
    the summary: for a person to look at, and for no one to train on. The next start makes it anew.

    Raises:
        DatasetError: All requests failed or brought no text, or all rows are dropped; the message says why.
    """
    if (task.dataset_dir / UNANSWERED_FILE).exists():
        shutil.rmtree(task.dataset_dir)
    tally, is_kept = Tally(), np.ones(len(task.dataset), np.bool_)
    figures = ReportFigures(int(task.content.num_targets.sum()))
    # Inside the unfinished folder, so that what a kill leaves goes with it.
    with atomic_folder(task.dataset_dir) as folder, TemporaryDirectory(dir=folder) as scratch, _quiet_datasets():
        distilled = _judged(task, journal, tally, figures, is_kept, f"{scratch}/rows.arrow")
        distilled.save_to_disk(folder)
        gap = measure_gap(task, backend, distilled, np.flatnonzero(is_kept))
        summary = {
            **tally.to_json(),
            **_generation_figures(journal),
            "lengths": lengths(figures),
            "gap": gap.to_json(),
            "provenance": _provenance(task),
        }
        write_json(folder / (SUMMARY_FILE if _is_answered(tally) else UNANSWERED_FILE), summary)
        write_report(folder, task.dataset_dir, summary, figures, gap)
        write_card(folder, task.dataset_dir, summary)
    if not _is_answered(tally):
        raise DatasetError(f"{_unanswered(task, tally)}. {task.dataset_dir / REPORT_FILE} shows them")
    LOG.log(
        logging.INFO if tally.turns_distilled or not tally.turns else logging.WARNING,
        "%s: %s; rejected: %s -> %s",
        *(task.where, rewritten_of(summary), _shown(tally.rejections) or "none", task.dataset_dir),
    )


def _judged(
    task: "DistillationTask",
    journal: Journal,
    tally: Tally,
    figures: ReportFigures,
    is_kept: NDArray[np.bool_],
    cache_file: str,
) -> "Dataset":
    """Return the rows after the checks, with provenance columns; count them, and mark those that are dropped."""
    from datasets import Sequence as SequenceFeature
    from datasets import Value

    features = task.features.copy()
    features[SOURCE_COLUMN], features[REASONS_COLUMN] = Value("string"), SequenceFeature(Value("string"))

    def judged_columns(columns: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        kept = []
        for index, row in zip(indices, as_rows(columns), strict=True):
            verdict = judge_row(row, index, journal, task.row_format, task.policy)
            is_kept[index] = not (verdict.is_rejected and task.config.on_reject == "drop")
            tally.add(verdict, is_dropped=not is_kept[index])
            figures.add(index, verdict, journal, is_dropped=not is_kept[index])
            if is_kept[index]:
                kept.append(verdict.columns())
        if index == len(is_kept) - 1 and not is_kept.any():
            raise DatasetError(_all_dropped(task, tally) if _is_answered(tally) else _unanswered(task, tally))
        return {name: [row[name] for row in kept] for name in features}

    return task.dataset.map(
        judged_columns,
        with_indices=True,
        batched=True,
        features=features,
        cache_file_name=cache_file,
        new_fingerprint=task.dataset_dir.name,
    )


def _is_answered(tally: Tally) -> bool:
    """Whether the seed model gave an answer to any prompt, be it one that was rejected; also without any prompt."""
    return bool(tally.turns_distilled or not tally.rejections or tally.rejections.keys() - _NO_ANSWER)


def _all_dropped(task: "DistillationTask", tally: Tally) -> str:
    return (
        f"{task.where}: all {tally.rows} rows were rejected ({_shown(tally.rejections)}) and "
        "self_distillation.on_reject is drop; set on_reject: original, other checks, or another template"
    )


def _unanswered(task: "DistillationTask", tally: Tally) -> str:
    """Return what to say about a dataset for which the seed model gave no answer at all."""
    told = "; ".join(
        f"{name} {count} (such as: {tally.first_reasons[name]})" for name, count in tally.rejections.most_common()
    )
    return (
        f"{task.where}: the seed model answered none of {tally.turns} prompts: {told}. Correct what this names, such "
        f"as self_distillation.generation, the server or the rows, and start again; {task.answers_dir} keeps the "
        "answers as they came, delete it to have empty ones made anew. To train these rows as they are, set "
        "self_distillation: {enabled: false} in their entry of datasets"
    )


def _generation_figures(journal: Journal) -> dict[str, Any]:
    tokens, seconds = journal.num_tokens(), journal.seconds()
    return {
        "generated_tokens": tokens,
        "generation_seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
    }


def _provenance(task: "DistillationTask") -> dict[str, Any]:
    return {
        "method": "self-distilled dataset (SDFT, arXiv 2402.13669)",
        "dataset": task.where,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "seed_model": task.seed_name,
        "seed_model_fingerprint": task.seed_fingerprint,
        "settings": masked(task.config.model_dump(mode="json")),
        "answers": task.answers_dir.name,
        "package_versions": package_versions("transformers", "torch", "datasets"),
    }


def _shown(rejections: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(rejections.items(), key=lambda item: -item[1]))


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Keep the datasets library's own bars off the screen: this stage shows one of its own."""
    import datasets

    was_enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_enabled:
            datasets.enable_progress_bars()


def read_summary(dataset_dir: Path) -> dict[str, Any]:
    """Return the counts of a distilled dataset."""
    return read_json(dataset_dir / SUMMARY_FILE)
