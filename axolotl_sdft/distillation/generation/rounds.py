"""Fills the journal with this rank's share of the answers, round after round."""

import logging
import time
import unicodedata
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from axolotl_sdft.core.errors import ArtifactError, PluginError
from axolotl_sdft.core.ranks import RankGroup
from axolotl_sdft.core.terminal import progress
from axolotl_sdft.core.texts import shortened
from axolotl_sdft.distillation.digest import rows_between
from axolotl_sdft.distillation.generation.journal import Journal, JournalWriter
from axolotl_sdft.distillation.generation.journal_files import AnswerIndex, Keys, keys_array
from axolotl_sdft.distillation.generation.judging import Judging
from axolotl_sdft.distillation.generation.selection import Rejection
from axolotl_sdft.inference.interfaces import Answer, Backend, Prompt, Target

if TYPE_CHECKING:
    from axolotl_sdft.distillation.spec import DistillationSpec

LOG = logging.getLogger(__name__)


class RoundStats:
    """Measures one round."""

    def __init__(self) -> None:
        self.expected: dict[tuple[int, int], Any] = {}
        """What is still to come, by the key of its prompt."""
        self._started = time.monotonic()
        self.has_likelihoods = False
        self._tokens = self._answers = self._passed = self._skipped = 0

    def skip(self) -> None:
        """Count an answer that need not be asked for."""
        self._skipped += 1

    def newly_settled(self) -> int:
        """Return how many answers were skipped since the last call."""
        skipped, self._skipped = self._skipped, 0
        return skipped

    def figures(self, answers: Sequence[Answer], rejections: Sequence[Rejection | None]) -> dict[str, str]:
        """Take in a batch and return what is shown now."""
        for answer, rejection in zip(answers, rejections, strict=True):
            self._tokens += answer.num_tokens
            self.has_likelihoods |= answer.mean_logprob is not None
            self._passed += rejection is None
            self._answers += 1
        elapsed = max(time.monotonic() - self._started, 1e-9)
        passed = f"{100 * self._passed / self._answers:.0f} %"
        return {"asked": str(self._answers), "tokens/s": f"{self._tokens / elapsed:.0f}", "pass": passed}


_UNKNOWN, _ORIGINAL = -1, -2


class SelectionCache:
    """Two bytes for each trained answer of a dataset. Nothing is known at first."""

    def __init__(self, num_targets: NDArray[np.int32]) -> None:
        self._first = np.concatenate([[0], num_targets.cumsum(dtype=np.int64)])
        self._taken = np.full(self._first[-1], _UNKNOWN, np.int16)

    def is_known(self, row: int, turn: int) -> bool:
        """Whether an answer has been settled."""
        return bool(self._taken[self._first[row] + turn] != _UNKNOWN)

    def taken(self, row: int, turn: int) -> int | None:
        """Return the attempt that was taken for a settled answer, or None where the original one stays."""
        attempt = int(self._taken[self._first[row] + turn])
        return None if attempt == _ORIGINAL else attempt

    def select(self, row: int, turn: int, attempt: int | None) -> None:
        """Remember which attempt was taken for an answer; None: the original one stays."""
        self._taken[self._first[row] + turn] = _ORIGINAL if attempt is None else attempt

    def unknown_rows(self, rows: NDArray[np.int64], turn: int) -> NDArray[np.int64]:
        """Return those of the rows whose turn-th answer is not settled. All of them must have one."""
        return rows[self._taken[self._first[rows] + turn] == _UNKNOWN]


def _letters(text: str) -> str:
    """Return a text without what tokenizers write in other ways: spaces, accents on their own, capitals."""
    return "".join(character for character in unicodedata.normalize("NFKC", text).casefold() if character.isalnum())


_WINDOW_ROWS = 1024  # rows whose prompts are planned together; the same for any number of ranks

Batch = list[Prompt]


@dataclass(frozen=True)
class _Asked:
    """A question of this round."""

    prompt: Prompt
    target: Target
    key: bytes


class Generation:
    """Goes through all rows once for each turn and attempt, which together are a round.

    A round is one stream of batches, so that a backend with many requests in flight never runs dry between windows. The
    batches are planned window by window over all questions of the round, whatever is done already and however many
    ranks there are, and dealt out to the ranks in order. So neither a restart nor another number of ranks changes what
    a batch holds. What several rows ask is asked once. A round starts when every rank has finished the one before, on
    which its questions depend; for the same reason an answer is judged by the rank that brought it, or whose window it
    is in, and all others read the verdict.
    """

    def __init__(
        self, spec: "DistillationSpec", backend: Backend, journal: Journal, judging: Judging, group: RankGroup
    ) -> None:
        self._spec, self._backend, self._journal = spec, backend, journal
        self._judging, self._group = judging, group
        self._num_askers = 1 if getattr(backend, "serves_all_ranks", False) else group.world_size
        self._outcomes = SelectionCache(spec.content.num_targets)
        self._planned = AnswerIndex()

    def run(self, writer: JournalWriter) -> None:
        """Generate every answer of this rank's share that the journal lacks, and wait for those of other ranks."""
        for turn in range(self._spec.content.most_targets):
            for attempt in range(self._spec.policy.max_attempts):
                if self._group.world_size > 1 and (turn or attempt):
                    self._judge_share(turn, attempt)
                    self._meet(f"judged before answer {turn}, attempt {attempt}", writer)
                self._planned = AnswerIndex()
                self._run_round(turn, attempt, writer)
                self._meet(f"generated answer {turn}, attempt {attempt}", writer)

    def _meet(self, point: str, writer: JournalWriter) -> None:
        """Wait until all ranks are here, and read what they have written."""
        self._judging.flush()
        if self._group.world_size > 1:
            writer.sync()
            self._group.reach(point)
            self._journal.refresh()

    def _judge_share(self, turn: int, attempt: int) -> None:
        """Judge, in this rank's windows, the answers on which a round depends: those of other datasets have none."""
        for number, window in enumerate(self._windows()):
            if number % self._group.world_size == self._group.rank:
                for _ in self._open_targets(turn, attempt, window, RoundStats()):
                    pass

    def _run_round(self, turn: int, attempt: int, writer: JournalWriter) -> None:
        meter = RoundStats()
        num_open = self._num_open(turn, attempt)
        batches = self._own_batches(turn, attempt, meter)
        first = next(batches, None)
        if first is None:
            return
        load = getattr(self._backend, "load", None)
        if load is not None:  # before the clock starts, from which rate and time left are told
            load()
        unit = "answers gone through" if attempt else "answers"  # those that were accepted before are among them
        with progress(self._described(turn, attempt), num_open, unit, LOG) as shown:
            stream = self._backend.generate(chain([first], batches))
            started = time.monotonic()
            try:
                for batch, answers in stream:
                    figures = self._take_in(batch, answers, time.monotonic() - started, meter, writer)
                    shown.advance(len(batch) * self._num_askers + meter.newly_settled(), **figures)
                    started = time.monotonic()
            finally:
                if isinstance(stream, Generator):  # ends requests in flight now rather than at some later time
                    stream.close()
        self._check(meter, attempt)

    def _take_in(
        self, batch: Batch, answers: Sequence[Answer], seconds: float, meter: RoundStats, writer: JournalWriter
    ) -> dict[str, str]:
        """Store a batch with its verdicts and return what the progress shows."""
        if len(answers) != len(batch):
            raise PluginError(
                f"backend {self._spec.config.generation.backend_name!r} gave {len(answers)} answers to a batch of "
                f"{len(batch)}; generate() must yield one for each prompt"
            )
        for prompt, answer in zip(batch, answers, strict=True):
            self._require_prefix(prompt, answer)
        asked = [meter.expected.pop(prompt.key) for prompt in batch]
        stored = writer.append([one.key for one in asked], answers, seconds)
        rejections = [self._judging.judge(answer, one.target)[0] for one, answer in zip(asked, stored, strict=True)]
        self._judging.flush()
        return meter.figures(stored, rejections)

    def _require_prefix(self, prompt: Prompt, answer: Answer) -> None:
        """Refuse a backend that leaves out how the answer begins: half an answer would be trained."""
        if not prompt.answer_prefix or answer.finish_reason == "error":
            return
        if not _letters(answer.text).startswith(_letters(prompt.answer_prefix)):
            raise PluginError(
                f"backend {self._spec.config.generation.backend_name!r} gave an answer without "
                f"self_distillation.answer_prefix before it: {shortened(answer.text)!r}; its text must hold both"
            )

    def _check(self, meter: RoundStats, attempt: int) -> None:
        """Refuse a backend that left answers out, and say when likelihoods that were asked for are not there."""
        if meter.expected:
            raise PluginError(
                f"backend {self._spec.config.generation.backend_name!r} ended without {len(meter.expected)} of the "
                "answers it was asked for; generate() must yield every batch that it draws"
            )
        if attempt == 0 and self._spec.policy.compares and not meter.has_likelihoods:
            LOG.warning(
                "%s: self_distillation.selection is max_logprob, but backend %s gives no log-probabilities; "
                "taking the first answer that passes",
                *(self._spec.where, self._spec.config.generation.backend_name),
            )

    def _described(self, turn: int, attempt: int) -> str:
        details = [f"answer {turn + 1} of each row"] if self._spec.content.most_targets > 1 else []
        template, number = self._spec.policy.place(attempt)
        details += [f"template {template + 1}"] if len(self._spec.templates) > 1 else []
        details += [f"attempt {number + 1}"] if self._spec.config.max_attempts > 1 else []
        return f"{self._spec.where}: rewriting" + (f" ({', '.join(details)})" if details else "")

    def _num_open(self, turn: int, attempt: int) -> int:
        """Return how many answers a round may have to make, over all ranks."""
        num_rows = num_held = 0
        for window in self._windows():
            rows = self._rows_of_round(turn, attempt, window)
            num_rows += len(rows)
            if turn == 0 and self._spec.policy.place(attempt)[0] == 0:
                num_held += int(self._journal.holds(self._first_keys(rows, attempt)).sum())
        if num_held and num_held < num_rows and attempt == 0:
            LOG.info(
                "%s: %d answers are in the journal already, %d to go", self._spec.where, num_held, num_rows - num_held
            )
        return num_rows - num_held

    def _windows(self) -> Iterator[range]:
        num_rows = len(self._spec.dataset)
        for start in range(0, num_rows, _WINDOW_ROWS):
            yield range(start, min(start + _WINDOW_ROWS, num_rows))

    def _first_keys(self, rows: NDArray[np.int64], attempt: int) -> Keys:
        """Return the keys of what is asked for the first trained answer of some rows."""
        digests = self._spec.content.first_questions[rows]
        return keys_array(self._spec.sampling.key(digest.tobytes(), attempt) for digest in digests)

    def _rows_of_round(self, turn: int, attempt: int, window: range) -> NDArray[np.int64]:
        """Return the rows of a window that a round may ask about: those not settled so far, as far as known."""
        part = slice(window.start, window.stop)
        is_asked = (self._spec.content.num_targets[part] > turn) & ~self._spec.too_long[part]
        rows = window.start + np.flatnonzero(is_asked)
        return rows if self._spec.policy.is_always_asked(attempt) else self._outcomes.unknown_rows(rows, turn)

    def _own_batches(self, turn: int, attempt: int, meter: RoundStats) -> Iterator[Batch]:
        """Yield this rank's batches of a round that the journal lacks, planning one window at a time."""
        for number, window in enumerate(self._windows()):
            asked = self._questions(turn, attempt, window, meter)
            if not asked:
                continue
            by_place = {one.prompt.key: one for one in asked}
            # Counting on from the window's number keeps windows of few batches from all loading the first rank.
            for place, batch in enumerate(self._backend.batches([one.prompt for one in asked]), start=number):
                lacking = [prompt for prompt in batch if by_place[prompt.key].key not in self._journal]
                if lacking and place % self._num_askers == self._group.rank:
                    meter.expected.update((prompt.key, by_place[prompt.key]) for prompt in lacking)
                    yield lacking

    def _questions(self, turn: int, attempt: int, window: range, meter: RoundStats) -> list[_Asked]:
        """Return what a round asks in a window and has not asked before; nothing where all answers are there."""
        if turn == 0 and self._spec.policy.place(attempt)[0] == 0:
            keys = self._first_keys(self._rows_of_round(turn, attempt, window), attempt)
            if self._journal.holds(keys).all():
                self._plan(keys)
                return []
        asked = []
        for index, target in self._open_targets(turn, attempt, window, meter):
            key = self._judging.key(target, attempt)
            if key in self._planned:
                meter.skip()
                continue
            self._planned.add(key, 0, 0)
            if turn and key in self._journal:
                meter.skip()
            asked.append(_Asked(self._judging.prompt((index, turn), target, attempt), target, key))
        return asked

    def _plan(self, keys: Keys) -> None:
        for key in {key.tobytes(): None for key in keys.astype(">u8")}:
            if key not in self._planned:
                self._planned.add(key, 0, 0)

    def _open_targets(self, turn: int, attempt: int, window: range, meter: RoundStats) -> Iterator[tuple[int, Target]]:
        """Yield the rows of a window that a round asks about, with their targets."""
        wanted = set(self._rows_of_round(turn, attempt, window).tolist())
        if not wanted:
            return
        for index, row in enumerate(rows_between(self._spec.dataset, window.start, window.stop), window.start):
            if index not in wanted:
                continue
            row = self._with_earlier_answers(row, index, turn)
            target = self._spec.row_format.target(row, turn)
            if self._wants(row, target, index, turn, attempt):
                yield index, target
            else:
                meter.skip()

    def _wants(self, row: dict[str, Any], target: Target, index: int, turn: int, attempt: int) -> bool:
        """Say whether an attempt is to be made after those before it; where one of these is taken, remember which."""
        policy = self._spec.policy
        with self._naming_what_is_missing(index, turn):
            made = policy.select(self._judging.in_row(row, turn), target, attempt)
        if made.attempt is not None and not policy.is_always_asked(attempt):
            self._outcomes.select(index, turn, made.attempt)
        return policy.wants(made, attempt)

    def _with_earlier_answers(self, row: dict[str, Any], index: int, turn: int) -> dict[str, Any]:
        """Return a row with the answers before one as they will be trained. They are in the journal."""
        row_format = self._spec.row_format
        for earlier in range(turn):
            target = row_format.target(row, earlier)
            with self._naming_what_is_missing(index, earlier):
                if not self._outcomes.is_known(index, earlier):
                    settlement = self._spec.policy.select(self._judging.in_row(row, earlier), target)
                    self._outcomes.select(index, earlier, settlement.attempt)
                taken = self._outcomes.taken(index, earlier)
                if taken is not None:
                    text = self._judging.answer(target, taken).text
            if taken is not None:
                row = row_format.with_answer(row, earlier, text)
        return row

    @contextmanager
    def _naming_what_is_missing(self, index: int, turn: int) -> Iterator[None]:
        try:
            yield
        except KeyError as err:
            raise ArtifactError(
                f"{self._spec.where}: the journal {self._spec.answers_dir} lacks the answer to row {index}, turn "
                f"{turn}, which was generated; if files were removed there, start again to have it generated anew"
            ) from err
