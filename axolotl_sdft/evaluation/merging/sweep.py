"""Which of several merges to take: what was measured of each ratio, the choice, and the table. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from axolotl_sdft.core.terminal import table_lines
from axolotl_sdft.evaluation.figures import Estimate, LikelihoodFigures
from axolotl_sdft.evaluation.report.table import plain_cell

_COLUMNS = ("ratio", "held-out perplexity", "KL to the seed model", "")


@dataclass(frozen=True)
class Candidate:
    """A merge at one ratio, and what was measured of it; None where that could not be."""

    ratio: float
    folder: Path
    held_out: LikelihoodFigures | None
    """On the reference answers of held-out rows: how well it does the task."""
    general: LikelihoodFigures | None
    """On the seed model's own answers to general prompts: its divergence is what was forgotten."""


@dataclass(frozen=True)
class Choice:
    """What a sweep recommends."""

    best: Candidate
    """The one with the least held-out perplexity."""
    taken: Candidate
    """The knee: the one that has forgotten least of those whose perplexity can't be told from the best one's."""


def choose(candidates: Sequence[Candidate]) -> Choice | None:
    """Return which candidate is best at the task, and which to take; None where no held-out rows were measured.

    Perplexities can't be told apart where their confidence intervals overlap; without intervals, where they are equal.
    """
    measured = [(candidate, candidate.held_out.perplexity) for candidate in candidates if candidate.held_out]
    if not measured:
        return None
    best, least = min(measured, key=lambda pair: pair[1].value)
    as_good = [
        (candidate, candidate.general.kl_to_seed.value)
        for candidate, perplexity in measured
        if candidate.general and _overlap(perplexity, least)
    ]
    taken = min(as_good, key=lambda pair: pair[1])[0] if as_good else best
    return Choice(best, taken)


def sweep_lines(candidates: Sequence[Candidate], choice: Choice | None) -> Iterator[str]:
    """Yield the table of all candidates, with the best and the one to take marked, and where each lies."""
    rows = []
    for candidate in candidates:
        marks = ", ".join(
            mark
            for mark, chosen in (("best", choice and choice.best), ("take", choice and choice.taken))
            if chosen == candidate
        )
        perplexity = candidate.held_out.perplexity if candidate.held_out else None
        divergence = candidate.general.kl_to_seed if candidate.general else None
        rows.append((f"{candidate.ratio:g}", _text(perplexity), _text(divergence), marks))
    yield from table_lines(_COLUMNS, rows, "llll")
    yield ""
    yield from (f"{candidate.ratio:g}: {candidate.folder}" for candidate in candidates)


def choice_lines(choice: Choice | None) -> Iterator[str]:
    """Yield which candidate to take and why."""
    if choice is None:
        yield "no ratio is marked: without held-out rows nothing says how well a merge does the task"
    elif choice.best == choice.taken:
        yield f"take ratio {choice.best.ratio:g}: it predicts held-out answers best, and none as good forgot less"
    else:
        yield (
            f"take ratio {choice.taken.ratio:g}: its held-out perplexity can't be told from that of the best, "
            f"{choice.best.ratio:g}, and of such ratios it has forgotten least"
        )


def _overlap(first: Estimate, second: Estimate) -> bool:
    return _low(first) <= _high(second) and _low(second) <= _high(first)


def _low(figure: Estimate) -> float:
    return figure.value if figure.low is None else figure.low


def _high(figure: Estimate) -> float:
    return figure.value if figure.high is None else figure.high


def _text(figure: Estimate | None) -> str:
    cell = plain_cell(figure)
    return f"{cell.text} ({cell.interval})" if cell.interval else cell.text
