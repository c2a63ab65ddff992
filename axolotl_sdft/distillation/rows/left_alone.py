"""Trained answers that are never asked about: why, how many, and what the user can do about it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from axolotl_sdft.core.texts import printable, shortened
from axolotl_sdft.inference.call_markup import call_marks
from axolotl_sdft.inference.reasoning import framed, is_unfinished_thought

_MOST_NAMED = 8  # reasons in one sentence


class LeftAlone(NamedTuple):
    """Why an answer of a row is left as it is, without asking the seed model about it."""

    reason: str
    """Such as ``role 'observation'``."""

    way_out: str = ""
    """What would have it rewritten, such as ``map it with roles``."""

    is_trained: bool = True
    """False where nothing is trained that could be rewritten."""


CALLS = LeftAlone("calls a function")
CALLS_AS_TEXT = LeftAlone(
    "calls a function, written as text",
    "with the check function_call such answers are rewritten, and keep their markup",
)
NO_ANSWER = LeftAlone("no answer in it that its type trains", "check the type and the field names", is_trained=False)
UNFINISHED = LeftAlone("its thinking part has no end")
NO_TEXT = LeftAlone("no text in it")
TOO_LONG_ROW = LeftAlone("its row has more tokens than sequence_len", "raise sequence_len to train such rows")
_AS_THEY_SHOULD_BE = frozenset({CALLS.reason, CALLS_AS_TEXT.reason})


def left_alone_for(answer: str, leaves_calls: bool) -> LeftAlone | None:
    """Return why the text of an original answer is left as it is, or None.

    No rewritten answer is of this kind where its original is not, so the places of the targets in a row stay.

    Args:
        answer: The whole of it, with its thinking part.
        leaves_calls: Whether this goes for answers that call functions as well.
    """
    if call_marks(framed(answer).text):
        return CALLS_AS_TEXT if leaves_calls else None
    return UNFINISHED if is_unfinished_thought(answer) else None


def targets_of(row_format: Any, row: dict[str, Any]) -> tuple[int, Sequence[LeftAlone]]:
    """Return how many answers of a row are targets, and why others are left alone, one entry for each of those.

    A row without any answer has an entry as well. Row formats of plugins may not tell why.
    """
    count = getattr(row_format, "count_targets", None)
    if count is not None:
        num_targets, told = count(row)
    else:
        tell = getattr(row_format, "left_alone", None)
        num_targets, told = row_format.num_targets(row), list(tell(row)) if tell else []
    return num_targets, told or ([] if num_targets else [NO_ANSWER])


@dataclass
class LeftAloneCounts:
    """Counts answers that are left alone, by reason."""

    answers: Counter[LeftAlone] = field(default_factory=Counter)
    rows: Counter[LeftAlone] = field(default_factory=Counter)

    def add(self, reasons: Sequence[LeftAlone]) -> None:
        """Count what is left alone of one row."""
        if reasons:
            self.answers.update(reasons)
            self.rows.update(set(reasons))

    @property
    def num_trained(self) -> int:
        """How many of the answers are trained."""
        return sum(count for why, count in self.answers.items() if why.is_trained)

    @property
    def is_meant(self) -> bool:
        """Whether there are such answers, and all of them are left alone for what they are: calls of functions."""
        return bool(self.answers) and all(why.reason in _AS_THEY_SHOULD_BE for why in self.answers)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return the counts of trained answers for ``summary.json``, most frequent reason first."""
        return {
            _shown(why): {"answers": count, "rows": self.rows[why], "way_out": why.way_out}
            for why, count in self.answers.most_common()
            if why.is_trained
        }

    def named(self) -> str:
        """Return all reasons with their numbers of rows, and the ways out, in one sentence; trained or not."""
        return reasons_named(
            {_shown(why): {"rows": self.rows[why], "way_out": why.way_out} for why, _ in self.answers.most_common()}
        )


def reasons_named(reasons: Mapping[str, Mapping[str, Any]]) -> str:
    """Return reasons as they stand in ``summary.json`` in one sentence.

    ``role 'observation' (1 row), role 'developer' (2 rows); map them with roles``
    """
    parts = [f"{reason} ({_rows(counts['rows'])})" for reason, counts in list(reasons.items())[:_MOST_NAMED]]
    if len(reasons) > _MOST_NAMED:
        parts.append(f"{len(reasons) - _MOST_NAMED} more reasons")
    ways_out = dict.fromkeys(str(counts["way_out"]) for counts in reasons.values() if counts["way_out"])
    return "; ".join([", ".join(parts), *ways_out])


def rewritten_of(summary: Mapping[str, Any]) -> str:
    """Return how many trained answers were rewritten, and which were left alone and why, in one sentence."""
    trained = summary["turns"] + summary["turns_left_alone"]
    told = f"{summary['turns_distilled']:,} of {trained:,} trained answers rewritten"
    if not summary["turns_left_alone"]:
        return told
    return f"{told}, {summary['turns_left_alone']:,} left alone: {reasons_named(summary['left_alone'])}"


def _shown(why: LeftAlone) -> str:
    return printable(shortened(why.reason, 200))


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"
