"""What the report of a distilled dataset shows: the distribution gap (SDFT, arXiv 2402.13669), samples, rejections.

The gap of an answer is its mean negative log-likelihood under the seed model, in nats per token: how much the answer
surprises the model that is to be trained on it.
"""

import heapq
import json
import logging
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from axolotl_sdft.core.errors import PluginError, SdftError, first_line
from axolotl_sdft.core.texts import evenly_spaced, words
from axolotl_sdft.distillation.digest import as_rows
from axolotl_sdft.distillation.generation.selection import REASONS_COLUMN, RowVerdict, Selection
from axolotl_sdft.distillation.output.unchecked import UncheckedResults
from axolotl_sdft.inference.interfaces import Backend, Target

if TYPE_CHECKING:
    from datasets import Dataset

    from axolotl_sdft.distillation.spec import DistillationSpec

LOG = logging.getLogger(__name__)

_ROWS_AT_ONCE = 256
_NUM_WIDEST = 10
_MOST_COMPARED = 400
NUM_PAIRS = 20
EXAMPLES_PER_CHECK = 2


@dataclass(frozen=True)
class Pair:
    """One trained answer, before and after."""

    row: int
    """Row of the dataset as it was before rewriting, counted from 0."""

    turn: int
    """Which trained answer of the row, counted from 0."""

    num_turns: int
    """Trained answers of the row."""

    target: Target
    """The original answer with its context."""

    answer: str | None
    """What the seed model wrote; None where that was not looked up."""

    fate: Literal["taken", "rejected", "dropped"]
    """Whether the answer takes the place of the original one, fails a check, or goes with its row for another one's."""

    verdict: str
    """The same for a person, with the reason."""


class ReportFigures:
    """Word counts of all trained answers, evenly spaced sample pairs, and the first rejections of each check.

    Args:
        num_answers: How many trained answers all rows together hold.
        rejected: Takes each rejected answer as a line of JSON, whether it is shown or not.
        checks: Names of the checks of the run.
    """

    def __init__(self, num_answers: int, rejected: IO[str] | None = None, checks: Collection[str] = ()) -> None:
        self._sampled = frozenset(evenly_spaced(num_answers, NUM_PAIRS))
        self._compared = frozenset(evenly_spaced(num_answers, _MOST_COMPARED))
        self.unchecked = UncheckedResults(checks)
        """What the checks of the run did not look at, of evenly spaced answers that are trained."""
        self._rejected = rejected
        self._seen = 0
        self.pairs: list[Pair] = []
        self.examples: dict[str, list[Pair]] = {}
        """Rejected answers by the name of the check."""
        self.words_before: Counter[int] = Counter()
        """How many original answers have so many words; of rows that are kept."""
        self.words_after: Counter[int] = Counter()
        """The same of the answers as they will be trained."""

    def add(self, row: int, verdict: RowVerdict, is_dropped: bool) -> None:
        """Take in a row. All rows must come, in order."""
        for turn, settlement in enumerate(verdict.settlements):
            if not is_dropped:
                self._count_words(settlement)
                if self._seen in self._compared and settlement.answer is not None:
                    self.unchecked.add(settlement.answer, settlement.target)
            is_sampled = self._seen in self._sampled
            self._seen += 1
            others = self.examples.setdefault(settlement.rejections[-1][0], []) if settlement.answer is None else None
            if not is_sampled and (others is None or (self._rejected is None and len(others) >= EXAMPLES_PER_CHECK)):
                continue
            pair = _pair(row, turn, verdict, is_dropped)
            if is_sampled:
                self.pairs.append(pair)
            if others is not None and len(others) < EXAMPLES_PER_CHECK:
                others.append(pair)
            if others is not None and self._rejected is not None:
                self._rejected.write(f"{json.dumps(_as_line(pair, settlement))}\n")

    def _count_words(self, settlement: Selection) -> None:
        before = len(words(settlement.target.reference))
        self.words_before[before] += 1
        self.words_after[before if settlement.answer is None else len(words(settlement.answer.text))] += 1


def _pair(row: int, turn: int, verdict: RowVerdict, is_dropped: bool) -> Pair:
    settlement = verdict.settlements[turn]
    text = "" if settlement.shown_answer is None else settlement.shown_answer.text
    pair = partial(Pair, row, turn, len(verdict.settlements), settlement.target, text)
    if settlement.attempt is None:
        return pair("rejected", f"{'row dropped' if is_dropped else 'original kept'}: {settlement.reason}")
    if is_dropped:
        return pair("dropped", "row dropped for another answer of it")
    return pair("taken", f"rewritten, attempt {settlement.attempt + 1}" if settlement.attempt else "rewritten")


def _as_line(pair: Pair, settlement: Selection) -> dict[str, Any]:
    """Return a rejected answer as the file of all of them holds it."""
    check, reason = settlement.rejections[-1]
    return {
        "row": pair.row,
        "answer": pair.turn,
        "check": check,
        "reason": reason,
        "prompt": pair.target.instruction,
        "original": pair.target.reference,
        "rejected": pair.answer,
    }


def is_pure_sample(generation: Mapping[str, Any]) -> bool:
    """Say whether answers are drawn from all that the seed model might say.

    They carry all of its own uncertainty, so their distribution gap need not fall, and does not tell what they protect.
    """
    return generation["temperature"] >= 1.0 and generation["top_p"] == 1.0 and generation["top_k"] is None


def gap_text(before: float, after: float, is_pure: bool) -> str:
    """Return both figures as tables show them, and of a pure sample that they tell little."""
    need_not_fall = "; of answers drawn at temperature 1 or above it need not fall" if is_pure else ""
    return f"{before:.2f} nats per token before, {after:.2f} after{need_not_fall}"


@dataclass(frozen=True)
class MeasuredAnswer:
    """The gap of one trained answer, in nats per token."""

    row: int
    """Row of the dataset as it was before rewriting, counted from 0."""

    turn: int
    before: float
    after: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures, rounded, for ``summary.json``."""
        return {"row": self.row, "turn": self.turn, "before": round(self.before, 4), "after": round(self.after, 4)}


@dataclass(frozen=True)
class Gap:
    """The gap of the sampled rows, or why it is not known."""

    answers: tuple[MeasuredAnswer, ...] = ()

    widest: tuple[tuple[MeasuredAnswer, Pair], ...] = ()
    """Those with the widest gap after rewriting, widest first, with their texts."""

    why_unknown: str = ""

    @property
    def before(self) -> float:
        """Mean over the original answers. Some must have been measured."""
        return fmean(answer.before for answer in self.answers)

    @property
    def after(self) -> float:
        """Mean over the answers as they will be trained. Some must have been measured."""
        return fmean(answer.after for answer in self.answers)

    @property
    def closed_share(self) -> float:
        """Share of the answers whose gap is narrower than before. Some must have been measured."""
        return fmean(answer.after < answer.before for answer in self.answers)

    def to_json(self) -> dict[str, Any] | None:
        """Return the gap for ``summary.json``; None where it is not known."""
        if not self.answers:
            return None
        return {
            "answers": len(self.answers),
            "nats_per_token_before": round(self.before, 4),
            "nats_per_token_after": round(self.after, 4),
            "closed_share": round(self.closed_share, 4),
            "rows": [answer.to_json() for answer in self.answers],
        }


def measure_gap(spec: "DistillationSpec", backend: Backend, distilled: "Dataset", kept: NDArray[np.int64]) -> Gap:
    """Return the gap of up to ``gap_samples`` rows that are spread evenly over the distilled dataset.

    Args:
        spec: Knows the rows as they were.
        backend: Tells the likelihoods.
        distilled: The rows as they will be trained.
        kept: For each distilled row, its place among the rows as they were.
    """
    places = evenly_spaced(len(kept), spec.config.gap_samples)
    if not places:
        return Gap(why_unknown="self_distillation.gap_samples is 0")
    LOG.info("%s: measuring the distribution gap on %d rows", spec.where, len(places))
    measured: list[MeasuredAnswer] = []
    widest: list[tuple[MeasuredAnswer, Pair]] = []
    for start in range(0, len(places), _ROWS_AT_ONCE):
        pairs = list(_pairs(spec, distilled, kept, places[start : start + _ROWS_AT_ONCE]))
        level, why = (
            logging.INFO,
            f"backend {spec.config.generation.backend_name} can't tell how likely a given answer is",
        )
        try:
            figures = measure_answers(backend, [(pair.target, after) for pair, after in pairs])
        except SdftError:
            raise
        except Exception as err:  # some odd text, which is not a reason to lose the dataset
            figures, level, why = None, logging.WARNING, f"{type(err).__name__}: {first_line(err)}"
        if figures is None:
            LOG.log(level, "%s: the distribution gap was not measured: %s", spec.where, why)
            return Gap(why_unknown=why)
        told = [
            (MeasuredAnswer(pair.row, pair.turn, *both), pair)
            for (pair, _), both in zip(pairs, figures, strict=True)
            if all(map(math.isfinite, both))
        ]
        measured += [answer for answer, _ in told]
        widest = heapq.nlargest(_NUM_WIDEST, widest + told, key=lambda entry: entry[0].after)
    if not measured:
        return Gap(why_unknown="none of the sampled rows holds a trained answer with a finite likelihood")
    return Gap(tuple(measured), tuple(widest))


def measure_answers(backend: Backend, answers: Sequence[tuple[Target, Target]]) -> list[tuple[float, float]] | None:
    """Return the gap of each answer as it was and as it will be trained, or None when the backend can't tell.

    An answer that stays as it was, after a context that stays as it was, is measured once: measured in two batches of
    different shape it would seem to have moved.

    Raises:
        PluginError: The backend tells of more or fewer answers than it was asked about.
    """
    is_changed = [before != after for before, after in answers]
    asked = [before for before, _ in answers]
    asked += [after for (_, after), changed in zip(answers, is_changed, strict=True) if changed]
    if not asked:
        return []
    told = backend.answer_nll([(target, target.reference) for target in asked])
    if told is None:
        return None
    if len(told) != len(asked):
        raise PluginError(
            f"answer_nll() of the backend {type(backend).__name__} was asked about {len(asked)} answers and told of "
            f"{len(told)}; it must return one number for each, or None"
        )
    later = iter(told[len(answers) :])
    return [(told[place], next(later) if changed else told[place]) for place, changed in enumerate(is_changed)]


def _pairs(
    spec: "DistillationSpec", distilled: "Dataset", kept: NDArray[np.int64], places: Sequence[int]
) -> Iterator[tuple[Pair, Target]]:
    """Yield each trained answer of some rows, with what it will be trained as."""
    originals = as_rows(spec.dataset[kept[places].tolist()])
    for place, original, row in zip(places, originals, as_rows(distilled[list(places)]), strict=True):
        num_turns = spec.row_format.num_targets(original)
        for turn in range(num_turns):
            before, after = spec.row_format.target(original, turn), spec.row_format.target(row, turn)
            pair = partial(Pair, int(kept[place]), turn, num_turns, before)
            reason = row[REASONS_COLUMN][turn]
            if reason:
                yield pair(None, "rejected", f"original kept: {reason}"), after
            else:
                yield pair(after.reference, "taken", "rewritten"), after
