"""Fills the journal with this rank's share of the answers."""

import logging
import time
from collections.abc import Generator, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from axolotl_sdft.distillation.answer_index import Keys, pack, pack_rows
from axolotl_sdft.distillation.content import rows_between
from axolotl_sdft.distillation.framing import answer_alone
from axolotl_sdft.distillation.interfaces import Backend, Prompt, Target
from axolotl_sdft.distillation.journal import Journal, JournalWriter
from axolotl_sdft.distillation.meter import Meter
from axolotl_sdft.distillation.outcomes import Outcomes
from axolotl_sdft.errors import PluginError
from axolotl_sdft.runtime import progress, rank, world_size

if TYPE_CHECKING:
    from axolotl_sdft.distillation.transform import DistillationTask

LOG = logging.getLogger(__name__)

_WINDOW_ROWS = 1024  # rows whose prompts are planned together; the same for any number of ranks
_POLL_S = 0.5
_REMIND_S = 60.0

Batch = list[Prompt]


class Generation:
    """Goes through all rows once for each turn and attempt, which together are a round.

    A round is one stream of batches, so that a backend with many requests in flight never runs dry between windows. The
    batches are planned window by window over all rows that the round asks about, whatever is done already and however
    many ranks there are, and dealt out to the ranks in order. So neither a restart nor another number of ranks changes
    what a batch holds. A round starts when every rank has finished the one before, on which its questions depend.
    """

    def __init__(self, task: "DistillationTask", backend: Backend, journal: Journal) -> None:
        self._task, self._backend, self._journal = task, backend, journal
        self._outcomes = Outcomes(task.content.num_targets)
        self._asked: list[Keys] = []  # what this round asks for, over all ranks, and had not when it was planned

    def run(self, writer: JournalWriter) -> None:
        """Generate every answer of this rank's share that the journal lacks, and wait for those of other ranks."""
        for turn in range(self._task.content.most_targets):
            for attempt in range(self._task.policy.num_attempts):
                self._asked = []
                self._run_round(turn, attempt, writer)
                self._wait_for_others()

    def _run_round(self, turn: int, attempt: int, writer: JournalWriter) -> None:
        meter = Meter(self._task.policy)
        with progress(self._described(turn, attempt), self._num_open(turn, attempt), "answers", LOG) as shown:
            batches = self._own_batches(turn, attempt, meter)
            first = next(batches, None)
            if first is None:  # a backend may load its model before it draws the first batch
                return
            stream = self._backend.generate(chain([first], batches))
            started = time.monotonic()
            try:
                for batch, answers in stream:
                    figures = meter.figures(batch, answers)
                    writer.append(batch, answers, time.monotonic() - started)
                    shown.advance(len(batch) * world_size() + meter.newly_settled(), **figures)
                    started = time.monotonic()
            finally:
                if isinstance(stream, Generator):  # ends requests in flight now rather than at some later time
                    stream.close()
        self._check(meter, attempt)

    def _check(self, meter: Meter, attempt: int) -> None:
        """Refuse a backend that left answers out, and say when likelihoods that were asked for are not there."""
        if meter.num_expected:
            raise PluginError(
                f"backend {self._task.config.generation.backend!r} ended without {meter.num_expected} of the answers "
                "it was asked for; generate() must yield every batch that it draws"
            )
        if attempt == 0 and self._task.policy.choose == "likeliest" and not meter.has_likelihoods:
            LOG.warning(
                "%s: self_distillation.choose is likeliest, but backend %s gives no log-probabilities; "
                "taking the first candidate that passes",
                *(self._task.where, self._task.config.generation.backend),
            )

    def _described(self, turn: int, attempt: int) -> str:
        details = [f"answer {turn + 1} of each row"] if self._task.content.most_targets > 1 else []
        details += [f"attempt {attempt + 1}"] if self._task.policy.num_attempts > 1 else []
        return f"{self._task.where}: rewriting" + (f" ({', '.join(details)})" if details else "")

    def _num_open(self, turn: int, attempt: int) -> int:
        """Return how many answers a round may have to make, over all ranks."""
        rows = self._rows_of_round(turn, attempt, range(len(self._task.dataset)))
        missing = int((~self._journal.holds(pack_rows(rows, turn, attempt))).sum())
        if missing < len(rows) and attempt == 0 and missing:
            LOG.info(
                "%s: %d answers are in the journal already, %d to go", self._task.where, len(rows) - missing, missing
            )
        return missing

    def _rows_of_round(self, turn: int, attempt: int, window: range) -> NDArray[np.int64]:
        """Return the rows of a window that a round may ask about: those not settled so far, as far as known."""
        rows = window.start + np.flatnonzero(self._task.content.num_targets[window.start : window.stop] > turn)
        return rows if self._task.policy.is_always_asked(attempt) else self._outcomes.unknown_rows(rows, turn)

    def _own_batches(self, turn: int, attempt: int, meter: Meter) -> Iterator[Batch]:
        """Yield this rank's batches of a round that the journal lacks, planning one window at a time."""
        template, num_rows = self._task.template, len(self._task.dataset)
        for number, start in enumerate(range(0, num_rows, _WINDOW_ROWS)):
            targets = self._window_targets(turn, attempt, range(start, min(start + _WINDOW_ROWS, num_rows)), meter)
            if not targets:
                continue
            prompts = [Prompt((row, turn), tuple(template(target)), attempt) for row, target in targets.items()]
            # Counting on from the window's number keeps windows of few batches from all loading the first rank.
            for place, batch in enumerate(self._backend.batches(prompts), start=number):
                lacking = [prompt for prompt in batch if (*prompt.key, attempt) not in self._journal]
                if lacking and place % world_size() == rank():
                    meter.expect((prompt.key, targets[prompt.key[0]]) for prompt in lacking)
                    yield lacking

    def _window_targets(self, turn: int, attempt: int, window: range, meter: Meter) -> dict[int, Target]:
        """Return what a round asks about in a window, by row; nothing where all of it is in the journal."""
        rows = self._rows_of_round(turn, attempt, window)
        if self._journal.holds(pack_rows(rows, turn, attempt)).all():
            return {}
        targets, wanted = {}, set(rows.tolist())
        for index, row in enumerate(rows_between(self._task.dataset, window.start, window.stop), window.start):
            if index not in wanted:
                continue
            target = self._target(row, index, turn)
            if self._task.policy.is_always_asked(attempt) or not self._passes(target, index, turn, attempt):
                targets[index] = target
            else:
                meter.skip()
        keys = np.array([pack(index, turn, attempt) for index in targets], np.int64)
        self._asked.append(keys[~self._journal.holds(keys)])
        return targets if len(self._asked[-1]) else {}

    def _passes(self, target: Target, index: int, turn: int, num_attempts: int) -> bool:
        """Say whether one of the first attempts is taken, so that no more are needed."""
        settlement = self._task.policy.settle(self._journal, index, turn, target, num_attempts)
        if settlement.attempt is not None:
            self._outcomes.settle(index, turn, settlement.attempt)
        return settlement.attempt is not None

    def _target(self, row: dict[str, Any], index: int, turn: int) -> Target:
        """Return a trained answer after those before it as they will be trained. They are in the journal."""
        row_format = self._task.row_format
        for earlier in range(turn):
            if not self._outcomes.is_known(index, earlier):
                target = row_format.target(row, earlier)
                settlement = self._task.policy.settle(self._journal, index, earlier, target)
                self._outcomes.settle(index, earlier, settlement.attempt)
            taken = self._outcomes.taken(index, earlier)
            if taken is not None:
                text = answer_alone(self._journal[index, earlier, taken].text)
                row = row_format.with_answer(row, earlier, text)
        return row_format.target(row, turn)

    def _wait_for_others(self) -> None:
        """Wait until the other ranks have written what this round needs."""
        missing = np.concatenate([np.empty(0, np.int64), *self._asked])
        reminded = time.monotonic()
        while len(missing := missing[~self._journal.holds(missing)]):
            if time.monotonic() - reminded > _REMIND_S:
                reminded = time.monotonic()
                LOG.info("%s: waiting for %d answers of other ranks", self._task.where, len(missing))
            time.sleep(_POLL_S)
            self._journal.refresh()
