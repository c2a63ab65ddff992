"""Decides what becomes of each generated answer, and counts it. Pure functions: no model, no disk."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

from axolotl_sdft.config import SelfDistillationConfig
from axolotl_sdft.core.texts import is_blank, one_line, printable
from axolotl_sdft.distillation.checks import first_rejection
from axolotl_sdft.distillation.checks.form import empty, truncated
from axolotl_sdft.distillation.checks.function_calls import function_call
from axolotl_sdft.distillation.interfaces import AnswerCheck, RowFormat, RowLimit
from axolotl_sdft.distillation.rows.left_alone import LeftAlone, LeftAloneCounts, targets_of
from axolotl_sdft.inference.call_markup import markup_fault
from axolotl_sdft.inference.interfaces import Answer, Target
from axolotl_sdft.inference.reasoning import answer_alone, is_unfinished_thought

SOURCE_COLUMN = "sdft_source"
REASONS_COLUMN = "sdft_reasons"
FAILED = "failed"
"""What stands for the name of a check where a request failed."""
TOO_LONG = "too_long"
"""What stands for it where an answer makes its row longer than training takes."""

_ROOM_TO_ANSWER = (
    "raise generation.max_new_tokens, or turn thinking off where the chat template can: "
    "generation.chat_template_kwargs: {enable_thinking: false}"
)

Checks: TypeAlias = Sequence[tuple[str, AnswerCheck]]
"""Names and functions of checks, in order."""

Rejection: TypeAlias = tuple[str, str]
"""Name of the check that rejects an answer, and why."""

Judged: TypeAlias = Callable[[Target, int], tuple[Answer, Rejection | None]]
"""Returns an attempt at a target, without its thinking part, and its rejection."""

JudgedIn: TypeAlias = Callable[[dict[str, Any], int], Judged]
"""Returns what judges the attempts at one answer of a row, those before which are as they will be trained."""


def rejection_by_form(answer: Answer) -> Rejection | None:
    """Return why an answer is rejected before any check sees it, or None.

    One that could not be had is rejected as ``failed``, one that ends within its thinking part as ``truncated``, and
    one without text as ``empty``.
    """
    if answer.finish_reason == "error":
        return FAILED, one_line(answer.error or "no answer")
    if is_unfinished_thought(answer.text):
        return truncated.__name__, f"its thinking part has no end after {answer.num_tokens} tokens; {_ROOM_TO_ANSWER}"
    if is_blank(without_thinking(answer).text):
        was_cut_off = answer.finish_reason == "length"  # such as in a thought that a server keeps to itself
        return empty.__name__, f"cut off before any text; {_ROOM_TO_ANSWER}" if was_cut_off else "no text"
    return None


def rejection_by_calls(answer: Answer, target: Target) -> Rejection | None:
    """Return why an answer that passes all checks is rejected all the same, or None.

    One that lost the markup of the original's function calls, or makes calls where the original makes none, is rejected
    as ``function_call``.
    """
    fault = markup_fault(answer.text, target.reference)
    return None if fault is None else (function_call.__name__, one_line(fault))


def rejection_by_length(row: dict[str, Any], limit: RowLimit) -> Rejection | None:
    """Return why an answer is rejected that makes its row what it is, or None: training would leave the row out."""
    if limit.count_tokens(row) <= limit.max_tokens:
        return None
    return TOO_LONG, f"it makes the row longer than sequence_len, which is {limit.max_tokens} tokens"


def rejection_of(answer: Answer, target: Target, checks: Checks) -> Rejection | None:
    """Return the name of the first check that rejects an answer, with its reason, or None when all pass.

    The checks see it without its thinking part.
    """
    by_form = rejection_by_form(answer)
    if by_form is not None:
        return by_form
    alone = without_thinking(answer)
    return first_rejection(alone, target, checks) or rejection_by_calls(alone, target)


def without_thinking(answer: Answer) -> Answer:
    """Return an answer as it is judged and trained: without its thinking part, which the journal keeps."""
    return replace(answer, text=answer_alone(answer.text))


@dataclass(frozen=True)
class SelectionPolicy:
    """How often an answer is asked for: the most likely one that passes is taken, of equal ones the first."""

    max_attempts: int = 1
    """With all templates together."""

    min_attempts: int = 1
    """Attempts that are made whatever becomes of them; further ones only while none has passed."""

    each: int | None = None
    """Attempts with one template before the next one; None: there is one template."""

    @classmethod
    def of(cls, config: SelfDistillationConfig) -> "SelectionPolicy":
        """Return what settings ask for."""
        max_attempts = config.max_attempts * len(config.templates)
        if config.selection == "first":
            return cls(max_attempts, each=config.max_attempts)
        return cls(max_attempts, config.min_attempts or config.max_attempts, each=config.max_attempts)

    @property
    def compares(self) -> bool:
        """Whether several answers can pass, so that the most likely one is taken."""
        return self.min_attempts > 1

    def is_always_asked(self, attempt: int) -> bool:
        """Whether an attempt is made whatever became of those before it."""
        return attempt < self.min_attempts

    def wants(self, made: "Selection", attempt: int) -> bool:
        """Say whether an attempt is to be made, after a selection from those before it.

        One that asks the same question as a request that failed for good is not: it would fail in the same way.
        """
        is_settled = made.attempt is not None and not self.is_always_asked(attempt)
        return not is_settled and self.place(attempt)[0] not in made.refused_templates

    def place(self, attempt: int) -> tuple[int, int]:
        """Return the number of an attempt's template, and of the attempt with that one, both from 0 on."""
        return divmod(attempt, self.each or self.max_attempts)

    def select(self, judged: Judged, target: Target, num_attempts: int | None = None) -> "Selection":
        """Take one of the attempts at an answer, looking at them in order and as far as needed.

        Once a request has failed for good, further attempts with its template are passed over.

        Args:
            judged: What was generated, and what the checks say of it.
            target: The original answer with its context.
            num_attempts: Look at this many of the first attempts; by default at all.

        Raises:
            KeyError: An attempt that is needed is missing.
        """
        most = self.max_attempts if num_attempts is None else num_attempts
        rejections: list[Rejection] = []
        answer: Answer | None = None
        passing: list[tuple[int, Answer]] = []
        made: list[int] = []
        refused: set[int] = set()
        for attempt in range(most):
            if passing and not self.is_always_asked(attempt):
                break
            if self.place(attempt)[0] in refused:
                continue
            answer, rejection = judged(target, attempt)
            made.append(attempt)
            if answer.finish_reason == "error" and answer.is_final:
                refused.add(self.place(attempt)[0])
            if rejection is None:
                passing.append((attempt, answer))
            else:
                rejections.append(rejection)
        told = partial(
            Selection, target, rejections=tuple(rejections), made=tuple(made), refused_templates=frozenset(refused)
        )
        if not passing:
            return told(attempt=None, answer=None, shown_answer=answer)
        attempt, answer = max(passing, key=lambda pair: _likelihood(pair[1]))  # of equal ones the first
        passed = frozenset(number for number, _ in passing)
        return told(attempt=attempt, answer=answer, passed=passed, shown_answer=answer)


def _likelihood(answer: Answer) -> float:
    return float("-inf") if answer.mean_logprob is None else answer.mean_logprob


@dataclass(frozen=True)
class Selection:
    """What became of one trained answer."""

    target: Target
    """The original answer, after those before it as they will be trained."""

    attempt: int | None
    """The attempt that is taken; None leaves the original answer."""

    answer: Answer | None
    rejections: tuple[tuple[str, str], ...]
    """Check and reason of each attempt that was rejected, in order."""

    made: tuple[int, ...]
    """The attempts that were judged, in order: one for each that passed or was rejected."""

    passed: frozenset[int] = frozenset()
    """The attempts that passed all checks."""

    shown_answer: Answer | None = None
    """The answer of ``shown_attempt``."""

    refused_templates: frozenset[int] = frozenset()
    """The templates, by number, whose question failed for good."""

    @property
    def shown_attempt(self) -> int:
        """The attempt that is taken, or the last one where all were rejected."""
        return self.made[-1] if self.attempt is None else self.attempt

    @property
    def num_judged(self) -> int:
        """How many attempts were judged."""
        return len(self.made)

    @property
    def reason(self) -> str:
        """Why the original answer stays, by the last attempt; an empty text when it was rewritten."""
        return "" if self.attempt is not None else printable(": ".join(self.rejections[-1]))


@dataclass(frozen=True)
class RowVerdict:
    """What became of a row."""

    row: dict[str, Any]
    """The row with its accepted answers in place."""

    settlements: tuple[Selection, ...]
    """One for each trained turn that the seed model was asked about."""

    left_alone: tuple[LeftAlone, ...] = ()
    """One for each trained turn that it was not asked about."""

    @property
    def reasons(self) -> list[str]:
        """One for each trained turn: why it keeps its original answer, or an empty text when it was rewritten.

        Turns that were left alone come last.
        """
        untouched = [f"left alone: {printable(why.reason)}" for why in self.left_alone]
        return [*(settlement.reason for settlement in self.settlements), *untouched]

    @property
    def source(self) -> str:
        """``distilled`` when at least one answer was rewritten, else ``original``."""
        return "distilled" if any(settlement.attempt is not None for settlement in self.settlements) else "original"

    @property
    def is_rejected(self) -> bool:
        """Whether any trained answer stays as it was."""
        return any(settlement.attempt is None for settlement in self.settlements)

    def columns(self) -> dict[str, Any]:
        """Return the row with its provenance columns."""
        return {**self.row, SOURCE_COLUMN: self.source, REASONS_COLUMN: self.reasons}


def judge_row(
    row: dict[str, Any],
    row_format: RowFormat,
    policy: SelectionPolicy,
    judged_in: JudgedIn,
    not_asked: LeftAlone | None = None,
) -> RowVerdict:
    """Return a row with its trained answers settled, each after those before it were put in place.

    Args:
        row: As it is stored.
        row_format: Where its answers are.
        policy: Which attempt is taken.
        judged_in: Knows the attempts.
        not_asked: Why the seed model was asked about none of its answers; None where it was.

    Raises:
        KeyError: An answer is missing.
    """
    settlements = []
    num_targets, reasons = targets_of(row_format, row)
    left_alone = tuple(why for why in reasons if why.is_trained)
    if not_asked is not None:
        return RowVerdict(row, (), (*[not_asked] * num_targets, *left_alone))
    for turn in range(num_targets):
        settlement = policy.select(judged_in(row, turn), row_format.target(row, turn))
        if settlement.answer is not None:
            row = row_format.with_answer(row, turn, settlement.answer.text)
        settlements.append(settlement)
    return RowVerdict(row, tuple(settlements), left_alone)


@dataclass
class DatasetStats:
    """Counts of a distilled dataset, for its summary."""

    rows: int = 0
    rows_distilled: int = 0
    rows_dropped: int = 0
    turns: int = 0
    turns_distilled: int = 0
    rejections: Counter[str] = field(default_factory=Counter)
    """Turns that keep their original answer, by the check that rejected the last attempt."""

    left_alone: LeftAloneCounts = field(default_factory=LeftAloneCounts)
    """Trained answers that the seed model was not asked about."""

    first_reasons: dict[str, str] = field(default_factory=dict)
    """The first reason that each check gave for such a turn."""

    attempts: int = 0
    """Answers that were judged."""

    rejected_attempts: Counter[str] = field(default_factory=Counter)
    """Answers that were rejected, by the name of the check."""

    accepted_attempts: Counter[int] = field(default_factory=Counter)
    """Answers that were taken, by the number of the attempt, from 0 on."""

    def add(self, verdict: RowVerdict, is_dropped: bool) -> None:
        """Count a row."""
        self.rows += 1
        self.rows_dropped += is_dropped
        self.rows_distilled += verdict.source == "distilled" and not is_dropped
        self.turns += len(verdict.settlements)
        self.left_alone.add(verdict.left_alone)
        for settlement in verdict.settlements:
            names = [name for name, _ in settlement.rejections]
            self.rejected_attempts.update(names)
            self.attempts += settlement.num_judged
            if settlement.attempt is None:
                self.rejections.update(names[-1:])
                self.first_reasons.setdefault(names[-1], printable(settlement.rejections[-1][1]))
            else:
                self.turns_distilled += 1
                self.accepted_attempts[settlement.attempt] += 1

    @property
    def acceptance(self) -> float:
        """Share of the trained answers that were rewritten."""
        return self.turns_distilled / self.turns if self.turns else 0.0

    def accepted_by(self, names: Sequence[str], each: int) -> dict[str, int]:
        """Return how many answers were taken of those that each template asked for, so many attempts each."""
        counts = Counter(dict.fromkeys(names, 0))
        for attempt, count in self.accepted_attempts.items():
            counts[names[attempt // each]] += count
        return dict(counts)

    def to_json(self) -> dict[str, Any]:
        """Return the counts for ``summary.json``; rejections most frequent first."""
        return {
            "rows": self.rows,
            "rows_distilled": self.rows_distilled,
            "rows_original": self.rows - self.rows_distilled - self.rows_dropped,
            "rows_dropped": self.rows_dropped,
            "turns": self.turns,
            "turns_distilled": self.turns_distilled,
            "turns_left_alone": self.left_alone.num_trained,
            "left_alone": self.left_alone.to_json(),
            "acceptance": round(self.acceptance, 4),
            "rejections": dict(self.rejections.most_common()),
            "attempts": self.attempts,
            "rejected_attempts": dict(self.rejected_attempts.most_common()),
        }
