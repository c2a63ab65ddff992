"""Builds the distilled dataset from the answers: rows after the checks, provenance columns, summary."""

import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from axolotl_sdft.core.artifacts import atomic_folder, package_versions, read_json, write_json
from axolotl_sdft.core.callables import callable_name
from axolotl_sdft.core.cards import public_name
from axolotl_sdft.core.errors import ArtifactError, DatasetError, SdftError, first_line
from axolotl_sdft.core.safe_output import masked
from axolotl_sdft.core.terminal import quiet_datasets
from axolotl_sdft.core.texts import shortened
from axolotl_sdft.distillation.checks.form import empty
from axolotl_sdft.distillation.checks.guarded import CHECK_FAILED
from axolotl_sdft.distillation.digest import as_rows
from axolotl_sdft.distillation.generation.judging import Judging
from axolotl_sdft.distillation.generation.selection import (
    FAILED,
    REASONS_COLUMN,
    SOURCE_COLUMN,
    DatasetStats,
    judge_row,
)
from axolotl_sdft.distillation.output.card import write_card
from axolotl_sdft.distillation.output.gap import ReportFigures, measure_gap
from axolotl_sdft.distillation.output.report import REJECTED_FILE, REPORT_FILE, advice_for, lengths, write_report
from axolotl_sdft.distillation.rows.left_alone import rewritten_of
from axolotl_sdft.distillation.rows.validation import storable
from axolotl_sdft.distillation.spec import INCOMPLETE, SUMMARY_FILE, DistillationSpec
from axolotl_sdft.inference.interfaces import Backend

if TYPE_CHECKING:
    from datasets import Dataset


LOG = logging.getLogger(__name__)

UNANSWERED_FILE = "unanswered.json"

_NO_ANSWER = (FAILED, empty.__name__, CHECK_FAILED)


class _NothingNewError(Exception):
    """What lacks is what lacked before."""


def build_dataset(spec: DistillationSpec, backend: Backend, judging: Judging, found: Path | None = None) -> Path:
    """Write the dataset folder: rows after the checks with provenance columns, ``summary.json``, the report, the card.

    Rows stream through. Where the seed model gave no answer at all, the folder holds ``unanswered.json`` in place of
    the summary: for a person to look at, and for no one to train on. The next start makes it anew. A dataset with
    answers that failed gets a folder of its own, named by the time of its making, so that whoever trained on it can
    tell it from the one that follows.

    Args:
        spec: What is built.
        backend: Tells the distribution gap.
        judging: Knows the answers and the verdicts.
        found: The folder of such a dataset that is there already; it is returned where nothing has become better.

    Raises:
        DatasetError: All requests failed or brought no text, or all rows are dropped; the message says why.
    """
    if (spec.dataset_dir / UNANSWERED_FILE).exists():
        shutil.rmtree(spec.dataset_dir)
    tally, is_kept = DatasetStats(), np.ones(len(spec.dataset), np.bool_)
    target = spec.dataset_dir
    with suppress(_NothingNewError), ExitStack() as stack:
        stack.enter_context(quiet_datasets())
        folder = stack.enter_context(atomic_folder(spec.dataset_dir, lambda: target))
        # Inside the unfinished folder, so that what a kill leaves goes with it.
        scratch = stack.enter_context(TemporaryDirectory(dir=folder))
        with (folder / REJECTED_FILE).open("w", encoding="utf-8") as rejected:
            num_asked = int(spec.content.num_targets[~spec.too_long].sum())
            figures = ReportFigures(num_asked, rejected, dict(spec.checks))
            distilled = _judged(spec, judging, tally, figures, is_kept, f"{scratch}/rows.arrow")
        if not tally.rejections:
            (folder / REJECTED_FILE).unlink()
        lacking = {"failed": judging.num_failed, "not_judged": judging.num_outages}
        if any(lacking.values()) and _is_answered(tally):
            target = spec.root / f"{spec.dataset_dir.name}{INCOMPLETE}{datetime.now(timezone.utc):%Y%m%dT%H%M%S%f}"
        if found is not None and lacking == read_summary(found)["to_try_again"]:
            LOG.warning("%s: nothing of it could be had this time either; using %s as it is", spec.where, found)
            raise _NothingNewError
        distilled.save_to_disk(folder)
        gap = measure_gap(spec, backend, distilled, np.flatnonzero(is_kept))
        summary = {
            **tally.to_json(),
            "accepted_by_template": tally.accepted_by(_template_names(spec), spec.config.max_attempts),
            "to_try_again": lacking,
            **_generation_figures(judging),
            "lengths": lengths(figures),
            "unchecked_results": figures.unchecked.to_json(),
            "gap": gap.to_json(),
            "provenance": _provenance(spec),
        }
        summary["advice"] = advice_for(summary)
        write_json(folder / (SUMMARY_FILE if _is_answered(tally) else UNANSWERED_FILE), summary)
        for what, write in (
            ("report", lambda: write_report(folder, target, summary, figures, gap)),
            ("dataset card", lambda: write_card(folder, target, summary)),
        ):
            _write_for_people(what, spec.where, write)
    if not target.exists():
        assert found is not None
        return found
    if not _is_answered(tally):
        raise DatasetError(f"{_unanswered(spec, tally)}. {spec.dataset_dir / REPORT_FILE} shows them")
    LOG.log(
        logging.INFO if tally.turns_distilled or not tally.turns else logging.WARNING,
        "%s: %s; rejected: %s -> %s",
        *(spec.where, rewritten_of(summary), _shown(tally.rejections) or "none", target),
    )
    for sentence in summary["advice"]:
        LOG.warning("%s: %s", spec.where, sentence)
    if any(lacking.values()):
        LOG.warning(
            "%s: %d answers failed and %d could not be judged; their rows keep the original ones. Start again to have "
            "them tried again",
            *(spec.where, lacking["failed"], lacking["not_judged"]),
        )
    return target


def _write_for_people(what: str, where: str, write: Callable[[], None]) -> None:
    """Write a page; where some odd row makes that fail, say so: the dataset is whole without it."""
    try:
        write()
    except SdftError:
        raise
    except OSError:  # a full disk is a reason to stop
        raise
    except Exception as err:
        LOG.warning("%s: the %s could not be written (%s: %s)", where, what, type(err).__name__, first_line(err))


def _judged(
    spec: DistillationSpec,
    judging: Judging,
    tally: DatasetStats,
    figures: ReportFigures,
    is_kept: NDArray[np.bool_],
    cache_file: str,
) -> "Dataset":
    """Return the rows after the checks, with provenance columns; count them, and mark those that are dropped."""
    from datasets import Sequence as SequenceFeature
    from datasets import Value

    features = spec.features.copy()
    features[SOURCE_COLUMN], features[REASONS_COLUMN] = Value("string"), SequenceFeature(Value("string"))

    def judged_columns(columns: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        kept = []
        for index, row in zip(indices, as_rows(columns), strict=True):
            verdict = judge_row(row, spec.row_format, spec.policy, judging.in_row, spec.why_not_asked(index))
            is_kept[index] = not (verdict.is_rejected and spec.config.on_reject == "drop")
            tally.add(verdict, is_dropped=not is_kept[index])
            figures.add(index, verdict, is_dropped=not is_kept[index])
            if is_kept[index]:
                kept.append(verdict.columns())
        if index == len(is_kept) - 1 and not is_kept.any():
            raise DatasetError(_all_dropped(spec, tally) if _is_answered(tally) else _unanswered(spec, tally))
        return {name: storable([row[name] for row in kept], feature) for name, feature in features.items()}

    distilled = spec.dataset.map(
        judged_columns,
        with_indices=True,
        batched=True,
        features=features,
        cache_file_name=cache_file,
        new_fingerprint=spec.dataset_dir.name,
    )
    judging.flush()
    return distilled


def _is_answered(tally: DatasetStats) -> bool:
    """Whether the seed model gave an answer to any prompt, be it one that was rejected; also without any prompt."""
    return bool(tally.turns_distilled) or not all(name.startswith(_NO_ANSWER) for name in tally.rejections or ("none",))


def _all_dropped(spec: DistillationSpec, tally: DatasetStats) -> str:
    return f"{spec.where}: all {tally.rows} rows were rejected ({_shown(tally.rejections)}) and {spec.if_rejected}"


def _unanswered(spec: DistillationSpec, tally: DatasetStats) -> str:
    """Return what to say about a dataset for which the seed model gave no answer at all."""
    told = "; ".join(
        f"{name} {count} (such as: {tally.first_reasons[name]})" for name, count in tally.rejections.most_common()
    )
    return (
        f"{spec.where}: the seed model answered none of {tally.turns} prompts: {told}. Correct what this names, such "
        f"as self_distillation.generation, the server or the rows, and start again; {spec.answers_dir} keeps the "
        f"answers as they came, delete it to have empty ones made anew. {spec.if_unanswered}"
    )


def _generation_figures(judging: Judging) -> dict[str, Any]:
    tokens, seconds = judging.num_tokens, judging.seconds
    return {
        "generated_tokens": tokens,
        "generation_seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
    }


def _provenance(spec: DistillationSpec) -> dict[str, Any]:
    return {
        "method": "self-distilled dataset (SDFT, arXiv 2402.13669)",
        "dataset": spec.where,
        "source": public_name(str(spec.dataset_config.get("path") or spec.where)),
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "seed_model": spec.seed_name,
        "seed_model_fingerprint": spec.seed_fingerprint,
        "settings": masked(spec.config.model_dump(mode="json")),
        "answers": spec.answers_dir.name,
        "package_versions": package_versions("transformers", "torch", "datasets"),
    }


def _shown(rejections: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(rejections.items(), key=lambda item: -item[1]))


def _template_names(spec: DistillationSpec) -> list[str]:
    """Return a name for each template; texts that begin alike, and functions of one name, get their place behind it."""
    names = [shortened(callable_name(template)) for template in spec.config.templates]
    return [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names, start=1)]


def read_summary(dataset_dir: Path) -> dict[str, Any]:
    """Return the counts of a distilled dataset."""
    return read_json(dataset_dir / SUMMARY_FILE)


def refuse_damaged_rows(folder: Path, num_rows: int, way_out: str) -> None:
    """Refuse a folder of rows of which a file is missing or damaged. The rows are mapped into memory, and not read.

    Axolotl would end with an error that names no folder, or take whatever else lies there for the rows.

    Args:
        folder: Made before, and perhaps moved, copied in part or tidied up since.
        num_rows: So many rows were written.
        way_out: What the user can do, for the message.

    Raises:
        ArtifactError: The rows are not all there.
    """
    from datasets import load_from_disk

    try:
        found = len(load_from_disk(str(folder)))
    except Exception as err:  # of files that end somewhere, pyarrow raises errors of many kinds
        raise ArtifactError(f"{folder} is damaged ({type(err).__name__}: {first_line(err)}); {way_out}") from err
    if found != num_rows:
        raise ArtifactError(f"{folder} is damaged: it holds {found:,} of the {num_rows:,} rows; {way_out}")
