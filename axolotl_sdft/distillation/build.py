"""Builds the distilled dataset from the answers: rows after the checks, provenance columns, summary."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from axolotl_sdft.artifacts import atomic_folder, checkpoint_fingerprint, package_versions, read_json, write_json
from axolotl_sdft.distillation.interfaces import Answer, Backend, Target
from axolotl_sdft.distillation.journal import Key
from axolotl_sdft.distillation.verdicts import REASONS_COLUMN, SOURCE_COLUMN, Tally, judge_row
from axolotl_sdft.errors import DatasetError
from axolotl_sdft.sampling import evenly_spaced

if TYPE_CHECKING:
    from datasets import Dataset

    from axolotl_sdft.distillation.transform import DistillationTask

LOG = logging.getLogger(__name__)

SUMMARY_FILE = "summary.json"


def build_dataset(task: "DistillationTask", backend: Backend, answers: Mapping[Key, Answer], seconds: float) -> None:
    """Write the dataset folder: rows after the checks, provenance columns, ``summary.json``."""
    from datasets import Sequence as SequenceFeature
    from datasets import Value

    tally, dropped = Tally(), set()

    def judged_columns(row: dict, index: int) -> dict:
        verdict = judge_row(row, index, answers, task.row_format, task.checks)
        is_dropped = verdict.is_rejected and task.config.on_reject == "drop"
        if is_dropped:
            dropped.add(index)
        tally.add(verdict, is_dropped)
        return verdict.columns()

    with atomic_folder(task.dataset_dir) as folder, TemporaryDirectory(dir=task.root) as scratch, _quiet_datasets():
        features = task.dataset.features.copy()
        features[SOURCE_COLUMN], features[REASONS_COLUMN] = Value("string"), SequenceFeature(Value("string"))
        distilled = task.dataset.map(
            judged_columns,
            with_indices=True,
            features=features,
            cache_file_name=f"{scratch}/rows.arrow",
            new_fingerprint=task.dataset_dir.name,
        )
        if len(dropped) == len(distilled):
            raise DatasetError(
                f"{task.where}: all {len(distilled)} rows were rejected ({_shown(tally.rejections)}) and "
                "self_distillation.on_reject is drop; set on_reject: original, other checks, or another template"
            )
        kept = [index for index in range(len(distilled)) if index not in dropped]
        distilled.select(kept).save_to_disk(folder)
        summary = {
            **tally.to_json(),
            **_generation_figures(answers, seconds),
            "gap": _gap(task, backend, distilled, kept),
        }
        write_json(folder / SUMMARY_FILE, {**summary, "provenance": _provenance(task)})
    LOG.info(
        "%s: %d of %d answers rewritten (%.0f %%), rejected: %s -> %s",
        *(task.where, tally.turns_distilled, tally.turns, 100 * tally.acceptance),
        *(_shown(tally.rejections) or "none", task.dataset_dir),
    )


def _gap(
    task: "DistillationTask", backend: Backend, distilled: "Dataset", kept: Sequence[int]
) -> dict[str, Any] | None:
    """Return the distribution gap: nats per token of the trained answers under the seed model, before and after."""
    sample = [kept[place] for place in evenly_spaced(len(kept), task.config.gap_samples)]
    if not sample:
        return None
    LOG.info("%s: measuring the distribution gap on %d rows", task.where, len(sample))
    before = backend.answer_nll(_answers_in_place(task, [task.dataset[index] for index in sample]))
    after = backend.answer_nll(_answers_in_place(task, [distilled[index] for index in sample]))
    return {
        "answers": len(before),
        "nats_per_token_before": round(sum(before) / len(before), 4),
        "nats_per_token_after": round(sum(after) / len(after), 4),
    }


def _answers_in_place(task: "DistillationTask", rows: Sequence[dict]) -> list[tuple[Target, str]]:
    targets = [task.row_format.target(row, turn) for row in rows for turn in range(task.row_format.num_targets(row))]
    return [(target, target.reference) for target in targets]


def _generation_figures(answers: Mapping[Key, Answer], seconds: float) -> dict[str, Any]:
    tokens = sum(answer.num_tokens for answer in answers.values())
    return {
        "generated_tokens": tokens,
        "generation_seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
    }


def _provenance(task: "DistillationTask") -> dict[str, Any]:
    return {
        "method": "self-distilled dataset (SDFT, arXiv 2402.13669)",
        "seed_model": task.seed_name,
        "seed_model_fingerprint": checkpoint_fingerprint(task.seed_dir),
        "settings": task.config.model_dump(mode="json"),
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
