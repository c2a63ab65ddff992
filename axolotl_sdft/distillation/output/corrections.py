"""Conversations in which the model corrects an attempt of its own, made of the attempts that the checks rejected.

They teach self-correction: the question, the wrong attempt, the request to look at it again, and the right answer,
which alone is trained. With the template ``unaided`` the attempts are what the model says when nobody helps it.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.core.artifacts import replacing
from axolotl_sdft.core.errors import ArtifactError
from axolotl_sdft.core.texts import is_blank, well_formed
from axolotl_sdft.distillation.checks.guarded import CHECK_FAILED
from axolotl_sdft.distillation.checks.options import NOTHING_TO_COMPARE
from axolotl_sdft.distillation.digest import as_rows
from axolotl_sdft.distillation.generation.journal import Journal
from axolotl_sdft.distillation.generation.judging import Judging
from axolotl_sdft.distillation.generation.selection import (
    FAILED,
    TOO_LONG,
    Judged,
    Rejection,
    RowVerdict,
    Selection,
    judge_row,
)
from axolotl_sdft.inference.interfaces import Answer, Target

if TYPE_CHECKING:
    from axolotl_sdft.distillation.spec import DistillationSpec

TRAIN_FIELD = "train"
"""Says of each message whether it is trained: ``message_field_training: train`` in the entry of ``datasets``."""

REQUEST = "Something in this answer is not right. Go through it again and give the corrected answer."

_ABOUT_FORM = frozenset(
    {FAILED, TOO_LONG, "empty", "truncated", "leak", "repetition", "refusal", "language", "length_ratio"}
)
"""Checks that say nothing about whether an answer is right: correcting such an attempt would teach nothing."""

_ROWS_AT_ONCE = 256


def correction_rows(spec: "DistillationSpec", request: str = REQUEST) -> Iterator[dict[str, Any]]:
    """Yield one conversation for each trained answer that the seed model got wrong at least once.

    The first attempt that a check of content rejected is corrected by the answer as it will be trained: the attempt
    that was taken, else the original answer. Each row holds ``messages`` with ``role``, ``content`` and ``train``.

    Args:
        spec: Its answers must be there: run it first.
        request: What the user says after the wrong attempt.
    """
    for verdict, judging in _verdicts(spec):
        for settlement in verdict.settlements:
            wrong = _wrong_attempt(settlement)
            if wrong is None:
                continue
            said = judging.answer(settlement.target, wrong).text
            if not is_blank(said) and not is_blank(_right(settlement)):
                yield {"messages": _messages(settlement, said, request)}


def rejected_attempts(spec: "DistillationSpec") -> Iterator[list[dict[str, Any]]]:
    """Yield, for each row of the distilled dataset, the attempts that were rejected.

    Each holds ``answer`` (which trained answer of the row, from 0), ``attempt`` (from 0), ``text`` without its thinking
    part (empty where a request failed), ``check`` and ``reason``.

    Args:
        spec: Its answers must be there: run it first.
    """
    for verdict, judging in _verdicts(spec):
        if verdict.is_rejected and spec.config.on_reject == "drop":
            continue
        row = []
        for number, settlement in enumerate(verdict.settlements):
            for attempt, (check, reason) in _rejected(settlement):
                text = _judged(judging.judged, settlement.target, attempt)[0].text
                row.append({"answer": number, "attempt": attempt, "text": text, "check": check, "reason": reason})
        yield row


def _verdicts(spec: "DistillationSpec") -> "Iterator[tuple[RowVerdict, Judging]]":
    """Yield what became of each row, in order, from the answers that are on disk."""
    journal = Journal(spec.answers_dir)
    journal.refresh()
    judging = Judging.of(spec, journal)
    try:
        for start in range(0, len(spec.dataset), _ROWS_AT_ONCE):
            for index, row in enumerate(as_rows(spec.dataset[start : start + _ROWS_AT_ONCE]), start):
                not_asked = spec.why_not_asked(index)
                yield judge_row(row, spec.row_format, spec.policy, partial(_judged_in, judging), not_asked), judging
    finally:
        journal.close()


def _judged_in(judging: Judging, row: dict[str, Any], turn: int) -> Judged:
    return partial(_judged, judging.in_row(row, turn))


def _judged(judged: Judged, target: Target, attempt: int) -> tuple[Answer, Rejection | None]:
    """Return an attempt with its rejection; what the journal lacks has failed."""
    try:
        return judged(target, attempt)
    except KeyError:
        return Answer("", "error", 0), (FAILED, "no answer")


def write_corrections(spec: "DistillationSpec", path: Path) -> int:
    """Write the conversations as JSON lines and return how many there are; the file is there whole or not at all.

    Raises:
        ArtifactError: The file exists already, or can't be written.
    """
    refuse_existing(path)
    count = 0
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for row in correction_rows(spec):
            file.write(well_formed(json.dumps(row, ensure_ascii=False)) + "\n")
            count += 1
    return count


def refuse_existing(path: Path) -> None:
    """Raise :class:`ArtifactError` where there is a file already: it may be somebody's data."""
    if path.exists():
        raise ArtifactError(f"{path} exists already; delete it or name another file")


def _wrong_attempt(settlement: Selection) -> int | None:
    """Return the first attempt that was rejected for what it says; None where there is none."""
    for attempt, (name, reason) in _rejected(settlement):
        is_about_form = name in _ABOUT_FORM or name.startswith(CHECK_FAILED)
        if not is_about_form and not reason.startswith(NOTHING_TO_COMPARE):
            return attempt
    return None


def _rejected(settlement: Selection) -> Iterator[tuple[int, Rejection]]:
    """Yield each attempt that was rejected, with the check and its reason."""
    attempts = (attempt for attempt in settlement.made if attempt not in settlement.passed)
    return zip(attempts, settlement.rejections, strict=True)


def _right(settlement: Selection) -> str:
    """Return the answer as it will be trained."""
    return settlement.target.reference if settlement.answer is None else settlement.answer.text


def _messages(settlement: Selection, wrong: str, request: str) -> list[dict[str, Any]]:
    shown = [
        *settlement.target.context,
        {"role": "assistant", "content": wrong},
        {"role": "user", "content": request},
    ]
    untrained = [{"role": turn["role"], "content": turn["content"], TRAIN_FIELD: False} for turn in shown]
    return [*untrained, {"role": "assistant", "content": _right(settlement), TRAIN_FIELD: True}]
