"""Looks answers up in the journal and has each judged once: a verdict is stored beside its answer.

A verdict belongs to the answer, to what it was compared with and to the check as it is. So a judge that wavers gives
the same dataset after a restart and on every rank, and another list of checks asks only those that are new.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from axolotl_sdft.distillation.checks.guarded import GuardedCheck, first_finding, named_rejection
from axolotl_sdft.distillation.generation.journal import JournalWriter
from axolotl_sdft.distillation.generation.journal_files import AnswerIndex, StoredVerdict
from axolotl_sdft.distillation.generation.selection import (
    Judged,
    Rejection,
    SelectionPolicy,
    rejection_by_calls,
    rejection_by_form,
    rejection_by_length,
    without_thinking,
)
from axolotl_sdft.distillation.interfaces import AnswerCheck, RowFormat, RowLimit, Template
from axolotl_sdft.inference.interfaces import Answer, Message, Prompt, Sampling, Target, question_digest

if TYPE_CHECKING:
    from axolotl_sdft.distillation.spec import DistillationSpec

_FLUSHED_VERDICTS = 64

Known: TypeAlias = Callable[[bytes], Mapping[str, StoredVerdict]]
"""Returns what is known of an answer, by the identity of the check."""


class StoredAnswers(Protocol):
    """Where answers and verdicts are looked up."""

    def __getitem__(self, key: bytes) -> Answer:
        """Return an answer by the key of its question, or raise :class:`KeyError`."""
        ...

    def verdicts(self, key: bytes) -> Mapping[str, StoredVerdict]:
        """Return what is known of an answer, by the identity of the check."""
        ...


def answer_key(answer: Answer, target: Target) -> bytes:
    """Return the 16 bytes under which verdicts on an answer to a target are stored."""
    said = [answer.text, answer.finish_reason, answer.num_tokens, answer.mean_logprob]
    return hashlib.sha256(json.dumps([said, target.context, target.reference]).encode()).digest()[:16]


class Judge:
    """Judges answers by the checks of a dataset, as far as that was not done before."""

    def __init__(self, checks: Sequence[tuple[str, AnswerCheck]], known: Known = lambda key: {}) -> None:
        self._checks = [GuardedCheck(name, check) for name, check in checks]
        self._known = known

    def verdicts(self, answer: Answer, target: Target) -> tuple[list[StoredVerdict], list[StoredVerdict]]:
        """Return the verdicts on an answer up to the first rejection, and those of them that are new."""
        key = answer_key(answer, target)
        known = self._known(key)
        told: list[StoredVerdict] = []
        new: list[StoredVerdict] = []
        for check in self._checks:
            verdict = known.get(check.identity)
            if verdict is None:
                found = first_finding(answer, target, [check])
                rejection = None if found is None else named_rejection(*found)
                verdict = StoredVerdict(key, check.identity, rejection, found is not None and found[1].is_outage)
                new.append(verdict)
            told.append(verdict)
            if verdict.rejection is not None:
                break
        return told, new


class Judging:
    """The attempts at the targets of one dataset, with the verdicts on them.

    Args:
        templates: Make the questions of a target, in the order in which they are tried.
        policy: Tells which template an attempt uses.
        sampling: How answers are sampled.
        checks: Names and functions of the checks, in order.
        answers: Where answers and verdicts are.
        writer: Stores new verdicts; without one they are kept in memory.
        row_format: Where the answers of a row are.
        row_limit: How long a row may be; None: as long as it is.
    """

    def __init__(
        self,
        templates: Sequence[Template],
        policy: SelectionPolicy,
        sampling: Sampling,
        checks: Sequence[tuple[str, AnswerCheck]],
        answers: StoredAnswers,
        writer: JournalWriter | None = None,
        *,
        row_format: RowFormat,
        row_limit: RowLimit | None = None,
    ) -> None:
        self._templates, self._policy, self._sampling = templates, policy, sampling
        self._answers, self._writer = answers, writer
        self._row_format, self._row_limit = row_format, row_limit
        self._judge = Judge(checks, self._known)
        self._unwritten: dict[bytes, list[StoredVerdict]] = {}
        self._last: tuple[Target, int, tuple[Message, ...], bytes] | None = None
        self._counted = AnswerIndex()
        self.num_tokens, self.seconds = 0, 0.0
        """What the answers that were looked up took to generate, each counted once."""
        self.num_failed = self.num_outages = 0
        """Answers that failed but may succeed yet, and those that a check could not judge for now."""

    @classmethod
    def of(cls, spec: "DistillationSpec", answers: StoredAnswers, writer: JournalWriter | None = None) -> "Judging":
        """Return what a dataset asks for."""
        asked = spec.templates, spec.policy, spec.sampling
        return cls(*asked, spec.checks, answers, writer, row_format=spec.row_format, row_limit=spec.row_limit)

    def question(self, target: Target, attempt: int) -> tuple[tuple[Message, ...], bytes]:
        """Return the chat that asks for a target in an attempt, and its digest."""
        template = self._policy.place(attempt)[0]
        if self._last is None or self._last[0] is not target or self._last[1] != template:
            messages = tuple(self._templates[template](target))
            self._last = target, template, messages, question_digest(messages)
        return self._last[2], self._last[3]

    def prompt(self, key: tuple[int, int], target: Target, attempt: int) -> Prompt:
        """Return what the backend is asked for an attempt, under a key of the caller."""
        return Prompt(key, self.question(target, attempt)[0], self._policy.place(attempt)[1])

    def key(self, target: Target, attempt: int) -> bytes:
        """Return the key of an attempt."""
        return self._sampling.key(self.question(target, attempt)[1], self._policy.place(attempt)[1])

    def answer(self, target: Target, attempt: int) -> Answer:
        """Return an attempt without its thinking part; :class:`KeyError` where it is not there."""
        return without_thinking(self._answers[self.key(target, attempt)])

    def in_row(self, row: dict[str, Any], turn: int) -> Judged:
        """Return :meth:`judged` for one answer of a row, which also rejects what makes the row too long to be trained.

        Args:
            row: With the answers before this one as they will be trained.
            turn: Which answer.
        """
        limit = self._row_limit
        if limit is None:
            return self.judged

        def judged(target: Target, attempt: int) -> tuple[Answer, Rejection | None]:
            answer, rejection = self.judged(target, attempt)
            if rejection is None:
                rejection = rejection_by_length(self._row_format.with_answer(row, turn, answer.text), limit)
            return answer, rejection

        return judged

    def judged(self, target: Target, attempt: int) -> tuple[Answer, Rejection | None]:
        """Return an attempt without its thinking part, and its rejection.

        Raises:
            KeyError: It is not there.
        """
        key = self.key(target, attempt)
        answer = self._answers[key]
        rejection, is_outage = self.judge(answer, target)
        if key not in self._counted:
            self._counted.add(key, 0, 0)
            self.num_tokens += answer.num_tokens
            self.seconds += answer.seconds
            self.num_failed += answer.finish_reason == "error" and not answer.is_final
            self.num_outages += is_outage
        return without_thinking(answer), rejection

    def judge(self, answer: Answer, target: Target) -> tuple[Rejection | None, bool]:
        """Return why an answer is rejected, or None, and whether for now only, since a check is out of order."""
        by_form = rejection_by_form(answer)
        if by_form is not None:
            return by_form, False
        alone = without_thinking(answer)
        told, new = self._judge.verdicts(alone, target)
        if new:
            self._unwritten.setdefault(new[0].key, []).extend(new)
            if len(self._unwritten) >= _FLUSHED_VERDICTS:
                self.flush()
        if told and told[-1].rejection is not None:
            return told[-1].rejection, told[-1].is_outage
        return rejection_by_calls(alone, target), False

    def flush(self) -> None:
        """Store the verdicts that are new."""
        if self._writer is not None and self._unwritten:
            unwritten, self._unwritten = self._unwritten, {}
            self._writer.add_verdicts(list(unwritten.values()))

    def _known(self, key: bytes) -> Mapping[str, StoredVerdict]:
        known = self._answers.verdicts(key)
        return {**known} | {verdict.check: verdict for verdict in self._unwritten.get(key, [])}
