"""Fills the journal with this rank's share of the answers."""

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from axolotl_sdft.distillation.interfaces import Backend, Message, Prompt
from axolotl_sdft.distillation.journal import Journal, JournalWriter, Key
from axolotl_sdft.distillation.verdicts import judge_row
from axolotl_sdft.runtime import Progress, progress, rank, world_size

if TYPE_CHECKING:
    from axolotl_sdft.distillation.transform import DistillationTask

LOG = logging.getLogger(__name__)

_WINDOW_ROWS = 1024  # rows whose prompts are planned together; the same for any number of ranks
_POLL_S = 0.5


class Generation:
    """Goes through the rows window by window and turn by turn.

    The batches of a turn are planned over the whole window, whatever is done already and however many ranks there are,
    and dealt out to the ranks in order. So neither a restart nor another number of ranks changes what a batch holds.
    """

    def __init__(self, task: "DistillationTask", backend: Backend, journal: Journal) -> None:
        self._task, self._backend, self._journal = task, backend, journal
        self._answers = journal.answers()

    def run(self, writer: JournalWriter) -> None:
        """Generate every answer of this rank's share that the journal lacks."""
        task = self._task
        todo = sum(1 for key in task.answer_keys() if key not in self._answers)
        if len(self._answers) and todo:
            LOG.info("%s: %d answers are in the journal already, %d to go", task.where, len(self._answers), todo)
        with progress(f"{task.where}: rewriting", todo, "answers", LOG) as shown:
            for start in range(0, len(task.dataset), _WINDOW_ROWS):
                window = range(start, min(start + _WINDOW_ROWS, len(task.dataset)))
                rows = {index: task.dataset[index] for index in window}
                for turn in range(max(task.row_format.num_targets(row) for row in rows.values())):
                    self._generate_turn(rows, turn, writer, shown)

    def _generate_turn(self, rows: dict[int, dict], turn: int, writer: JournalWriter, shown: Progress) -> None:
        """Generate the turn-th answer of every row that has one, after the turns before it as they will be trained."""
        active = {index: row for index, row in rows.items() if self._task.row_format.num_targets(row) > turn}
        if turn > 0:
            self._wait_for((index, turn - 1) for index in active)
        prompts = [Prompt((index, turn), self._messages(row, index, turn)) for index, row in active.items()]
        batches = self._backend.batches(prompts)
        mine = [
            [prompt for prompt in batch if prompt.key not in self._answers]
            for number, batch in enumerate(batches)
            if number % world_size() == rank()
        ]
        mine = [batch for batch in mine if batch]
        started = time.monotonic()
        for batch, answers in self._backend.generate(mine):
            writer.append(batch, answers, time.monotonic() - started)
            self._answers |= {prompt.key: answer for prompt, answer in zip(batch, answers, strict=True)}
            shown.advance(len(batch) * min(world_size(), len(batches)))
            started = time.monotonic()

    def _messages(self, row: dict, index: int, turn: int) -> tuple[Message, ...]:
        judged = judge_row(row, index, self._answers, self._task.row_format, self._task.checks, num_turns=turn)
        return tuple(self._task.template(self._task.row_format.target(judged.row, turn)))

    def _wait_for(self, keys: Iterable[Key]) -> None:
        """Wait until other ranks have written these answers."""
        missing = {key for key in keys if key not in self._answers}
        while missing:
            self._answers = self._journal.answers()
            missing -= self._answers.keys()
            if missing:
                time.sleep(_POLL_S)
