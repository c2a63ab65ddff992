"""Decides what becomes of each generated answer, and counts it. Pure functions: no model, no disk."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from axolotl_sdft.distillation.checks import first_rejection
from axolotl_sdft.distillation.interfaces import Answer, AnswerCheck, RowFormat
from axolotl_sdft.distillation.journal import Key

SOURCE_COLUMN = "sdft_source"
REASONS_COLUMN = "sdft_reasons"


@dataclass(frozen=True)
class RowVerdict:
    """What became of a row."""

    row: dict[str, Any]
    """The row with its accepted answers in place."""

    reasons: tuple[str, ...]
    """One for each trained turn: why it keeps its original answer, or an empty text when it was rewritten."""

    @property
    def source(self) -> str:
        """``distilled`` when at least one answer was rewritten, else ``original``."""
        return "distilled" if "" in self.reasons else "original"

    @property
    def is_rejected(self) -> bool:
        """Whether any answer failed a check."""
        return any(self.reasons)

    def columns(self) -> dict[str, Any]:
        """Return the row with its provenance columns."""
        return {**self.row, SOURCE_COLUMN: self.source, REASONS_COLUMN: list(self.reasons)}


def judge_row(
    row: dict[str, Any],
    index: int,
    answers: Mapping[Key, Answer],
    row_format: RowFormat,
    checks: Sequence[tuple[str, AnswerCheck]],
    num_turns: int | None = None,
) -> RowVerdict:
    """Return a row with its first ``num_turns`` trained answers judged, each after those before it were put in place.

    Raises:
        KeyError: An answer is missing.
    """
    reasons = []
    for turn in range(row_format.num_targets(row) if num_turns is None else num_turns):
        answer = answers[index, turn]
        rejection = first_rejection(answer, row_format.target(row, turn), checks)
        if rejection is None:
            row = row_format.with_answer(row, turn, answer.text)
        reasons.append("" if rejection is None else f"{rejection[0]}: {rejection[1]}")
    return RowVerdict(row, tuple(reasons))


@dataclass
class Tally:
    """Counts of a distilled dataset, for its summary."""

    rows: int = 0
    rows_distilled: int = 0
    rows_dropped: int = 0
    turns: int = 0
    turns_distilled: int = 0
    rejections: Counter[str] = field(default_factory=Counter)
    """Rejected turns by the name of the check."""

    def add(self, verdict: RowVerdict, is_dropped: bool) -> None:
        """Count a row."""
        self.rows += 1
        self.rows_dropped += is_dropped
        self.rows_distilled += verdict.source == "distilled" and not is_dropped
        self.turns += len(verdict.reasons)
        self.turns_distilled += verdict.reasons.count("")
        self.rejections.update(reason.split(":", 1)[0] for reason in verdict.reasons if reason)

    @property
    def acceptance(self) -> float:
        """Share of the rewritten answers that passed all checks."""
        return self.turns_distilled / self.turns if self.turns else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the counts for ``summary.json``; rejections most frequent first."""
        return {
            "rows": self.rows,
            "rows_distilled": self.rows_distilled,
            "rows_original": self.rows - self.rows_distilled - self.rows_dropped,
            "rows_dropped": self.rows_dropped,
            "turns": self.turns,
            "turns_distilled": self.turns_distilled,
            "acceptance": round(self.acceptance, 4),
            "rejections": dict(self.rejections.most_common()),
        }
