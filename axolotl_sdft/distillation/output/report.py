"""Writes ``report.html``: one self-contained page that says what became of a dataset, for a person to judge it.

A distribution is given as counts, how often each value came: for the words of a million answers that is a short table.

No script, no network, no picture files. All of it goes through escaping, whatever rows, answers or settings hold.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from axolotl_sdft.core.texts import page_template
from axolotl_sdft.distillation.output.card import publish_commands
from axolotl_sdft.distillation.output.gap import Gap
from axolotl_sdft.distillation.output.report_figures import ReportFigures
from axolotl_sdft.distillation.rows.left_alone import rewritten_of

WIDTH, HEIGHT = 420.0, 190.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 8.0, 412.0, 22.0, 164.0
_MOST_BINS, _MOST_TICKS = 24, 7
_TAIL = 0.99
_FAR = 1.5
"""Where the last hundredth of more than 100 values reaches this many times as far as the others, the last bin collects
them: one endless answer would squeeze all others together."""

Counts = Mapping[int, int] | Mapping[float, int]


@dataclass(frozen=True)
class Bar:
    """A rectangle in the units of the picture."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A place on the horizontal axis."""

    x: float
    label: str


@dataclass(frozen=True)
class Chart:
    """Two histograms over the same bins."""

    before: tuple[Bar, ...]
    after: tuple[Bar, ...]
    ticks: tuple[Mark, ...]
    middle_before: Mark
    middle_after: Mark
    highest: int
    """Count of the highest bar."""

    has_tail: bool
    """Whether the last bin also holds all that lies above it."""

    top: float = _TOP
    bottom: float = _BOTTOM
    left: float = _LEFT
    right: float = _RIGHT
    width: float = WIDTH
    height: float = HEIGHT


def mean(counts: Counts) -> float:
    """Return the mean of a distribution that is not empty."""
    values, weights = _arrays(counts)
    return float(values @ weights / weights.sum())


def median(counts: Counts) -> float:
    """Return the median of a distribution that is not empty."""
    values, weights = _arrays(counts)
    total = int(weights.sum())
    lower, upper = (_at(values, weights, place) for place in ((total - 1) // 2, total // 2))
    return (lower + upper) / 2


def overlaid_histograms(
    before: Counts, after: Counts, middle_before: float, middle_after: float, least_step: float
) -> Chart:
    """Return two histograms over the same bins and to the same scale.

    Args:
        before: Not empty.
        after: Not empty.
        middle_before: Mean or median, to be marked.
        middle_after: The same of the other.
        least_step: Narrowest bin; 1 for whole numbers.
    """
    first, step, num_bins, has_tail = _bins(before, after, least_step)
    edges = np.round(np.arange(first, first + num_bins + 1) * step, 9)
    heights = []
    for counts in (before, after):
        values, weights = _arrays(counts)
        places = np.clip(np.floor(np.round(values / step, 9)) - first, 0, num_bins - 1).astype(int)
        heights.append(np.bincount(places, weights, num_bins).astype(int))
    highest = max(int(counts.max()) for counts in heights)
    every = next(count for count in (1, 2, 4, 5, 10) if count * _MOST_TICKS > num_bins)
    span = (float(edges[0]), float(edges[-1]))
    return Chart(
        before=_bars(heights[0], edges, highest, has_tail),
        after=_bars(heights[1], edges, highest, has_tail),
        ticks=tuple(Mark(_x(edge, *span), f"{edge:g}") for edge in edges[::every].tolist()),
        middle_before=Mark(_x(middle_before, *span), f"{middle_before:.4g}"),
        middle_after=Mark(_x(middle_after, *span), f"{middle_after:.4g}"),
        highest=highest,
        has_tail=has_tail,
    )


def _arrays(counts: Counts) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the values, ascending, and how often each came."""
    values = np.fromiter(counts.keys(), np.float64, len(counts))
    weights = np.fromiter(counts.values(), np.int64, len(counts))
    order = values.argsort()
    return values[order], weights[order]


def _at(values: NDArray[np.float64], weights: NDArray[np.int64], place: int) -> float:
    """Return the value at a place of the sorted list that the counts stand for."""
    return float(values[weights.cumsum().searchsorted(place, side="right")])


def _bins(before: Counts, after: Counts, least_step: float) -> tuple[int, float, int, bool]:
    """Return the first bin, counted in steps from 0; the step; how many bins; and whether some values lie above."""
    pairs = [_arrays(counts) for counts in (before, after)]
    low = min(float(values[0]) for values, _ in pairs)
    high = max(_at(values, weights, int(_TAIL * weights.sum())) for values, weights in pairs)
    highest = max(float(values[-1]) for values, _ in pairs)
    if highest - low <= _FAR * (high - low):
        high = highest
    step = _round_step(max(least_step, (high - low) / (_MOST_BINS - 1)), least_step)
    first = math.floor(round(low / step, 9))
    num_bins = math.floor(round(high / step, 9)) - first + 1
    return first, step, num_bins, math.floor(round(highest / step, 9)) - first >= num_bins


def _round_step(step: float, unit: float) -> float:
    """Return the next of 1, 2, 2.5, 5, 10, 20, ... or 0.5, 0.25, ... that is no less and a multiple of the unit."""
    power = 10.0 ** math.floor(math.log10(step))
    round_ones = (factor * power for factor in (1, 2, 2.5, 5, 10))
    return next(one for one in round_ones if one >= step * (1 - 1e-9) and abs(one / unit - round(one / unit)) < 1e-6)


def _bars(heights: NDArray[np.int64], edges: NDArray[np.float64], highest: int, has_tail: bool) -> tuple[Bar, ...]:
    width = (_RIGHT - _LEFT) / len(heights)
    bars = []
    for place, count in enumerate(heights.tolist()):
        if count == 0:
            continue
        height = (_BOTTOM - _TOP) * count / highest
        is_tail = has_tail and place == len(heights) - 1
        span = f"from {edges[place]:g}" if is_tail else f"{edges[place]:g} to {edges[place + 1]:g}"
        bars.append(
            Bar(
                round(_LEFT + place * width, 2),
                round(_BOTTOM - height, 2),
                round(width, 2),
                round(height, 2),
                f"{span}: {count:,}",
            )
        )
    return tuple(bars)


def _x(value: float, low: float, high: float) -> float:
    """Return where a value stands, at most at the end of the axis."""
    return round(_LEFT + (_RIGHT - _LEFT) * min(1.0, max(0.0, (value - low) / (high - low))), 2)


REPORT_FILE = "report.html"

_TEMPLATE_FILE = "report.html.jinja"
_SHOWN_CHARS = 1600


def write_report(folder: Path, dataset_dir: Path, summary: dict[str, Any], figures: ReportFigures, gap: Gap) -> None:
    """Write the page into a folder.

    Args:
        folder: Where it is written.
        dataset_dir: Where the dataset will be, as the page names it.
        summary: What ``summary.json`` holds.
        figures: What was collected from the rows.
        gap: The distribution gap.
    """
    page = render_report(dataset_dir, summary, figures, gap)
    (folder / REPORT_FILE).write_text(page, encoding="utf-8")


def render_report(dataset_dir: Path, summary: dict[str, Any], figures: ReportFigures, gap: Gap) -> str:
    """Return the page."""
    return page_template(__package__, _TEMPLATE_FILE).render(
        dataset_dir=str(dataset_dir),
        name=dataset_dir.name,
        summary=summary,
        rewritten=rewritten_of(summary),
        provenance=summary["provenance"],
        settings=yaml.safe_dump(summary["provenance"]["settings"], sort_keys=False, allow_unicode=True),
        figures=figures,
        gap=gap,
        gap_chart=_gap_chart(gap) if gap.answers else None,
        lengths_chart=_lengths_chart(figures) if figures.words_before else None,
        publish_commands=publish_commands(dataset_dir),
        shown_chars=_SHOWN_CHARS,
    )


def lengths(figures: ReportFigures) -> dict[str, float] | None:
    """Return the median words of the trained answers for ``summary.json``; None where no row that is kept has one."""
    if not figures.words_before:
        return None
    return {
        "median_words_before": median(figures.words_before),
        "median_words_after": median(figures.words_after),
    }


def _lengths_chart(figures: ReportFigures) -> Any:
    before, after = figures.words_before, figures.words_after
    return overlaid_histograms(before, after, median(before), median(after), least_step=1)


def _gap_chart(gap: Gap) -> Any:
    before = Counter(round(answer.before, 4) for answer in gap.answers)
    after = Counter(round(answer.after, 4) for answer in gap.answers)
    return overlaid_histograms(before, after, mean(before), mean(after), least_step=0.01)
