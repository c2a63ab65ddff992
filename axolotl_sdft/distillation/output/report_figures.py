"""Collects what the report of a distilled dataset shows, while its rows stream by. Memory does not grow with them."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Literal

from axolotl_sdft.core.texts import evenly_spaced, words
from axolotl_sdft.distillation.generation.selection import RowVerdict, Selection
from axolotl_sdft.inference.interfaces import Target

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
    """

    def __init__(self, num_answers: int) -> None:
        self._sampled = frozenset(evenly_spaced(num_answers, NUM_PAIRS))
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
            is_sampled = self._seen in self._sampled
            self._seen += 1
            others = self.examples.setdefault(settlement.rejections[-1][0], []) if settlement.answer is None else None
            if is_sampled or (others is not None and len(others) < EXAMPLES_PER_CHECK):
                pair = _pair(row, turn, verdict, is_dropped)
                if is_sampled:
                    self.pairs.append(pair)
                if others is not None and len(others) < EXAMPLES_PER_CHECK:
                    others.append(pair)

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
