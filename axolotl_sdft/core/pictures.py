"""The pictures of HTML pages: charts by matplotlib, as SVG inside the page, in the colours of the reader.

Without matplotlib each chart is None, and :func:`note_on_pictures` says how to get it. Text stays text: a browser shows
it in the page's own font, in whatever script it is.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from axolotl_sdft.core.texts import one_line, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Counts = Mapping[int, int] | Mapping[float, int]
"""How often each value came: for the words of a million answers that is a short table."""

_WIDTH = 5.0  # inches of 72 units: at 390 pixels a unit is about a pixel, and the text has 10 of them
_COLOURS = {"ink": "#1c1e21", "soft": "#5b6270", "line": "#d9dce1", "before": "#c2560c", "after": "#1f66c9"}
"""The variables of ``page_head.html.jinja``; matplotlib knows only the values that they have on a light page."""
_LOOKS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "axolotl-sdft",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": _COLOURS["ink"],
    "axes.labelcolor": _COLOURS["soft"],
    "axes.edgecolor": _COLOURS["soft"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "grid.color": _COLOURS["line"],
    "xtick.color": _COLOURS["soft"],
    "ytick.color": _COLOURS["soft"],
}
_LARGEST, _SMALLEST = 1e100, 1e-100
_NAME_CHARS = 38
_MARKERS = "os^DvPX*<>"
_MOST_BINS = 24
_MOST_MARKS = 40
_TAIL = 99
_FAR = 1.5
"""Where the last hundredth of more than 100 values reaches this many times as far as the others, the last bin collects
them: one endless answer would squeeze all others together."""


@dataclass(frozen=True)
class Point:
    """A value with its interval, to be drawn."""

    name: str
    label: str
    """The value for a person, such as ``97.3 % (96.1 to 98.4)``."""
    is_seed: bool
    value: float
    low: float | None = None
    high: float | None = None
    x: float = 0.0
    """Where it stands on the horizontal axis of a scatter plot; bars do without."""

    @property
    def is_drawable(self) -> bool:
        """Whether all of its numbers are finite, and not so large that nothing beside them could be seen."""
        return all(abs(number) < _LARGEST for number in (self.value, self.low, self.high, self.x) if number is not None)

    @property
    def shown_name(self) -> str:
        """The name as far as a chart has room for it."""
        return _shown(self.name)

    @property
    def colour(self) -> str:
        """What sets the seed model apart from the others."""
        return _COLOURS["before" if self.is_seed else "after"]


def _shown(name: str) -> str:
    return shortened(one_line(name), _NAME_CHARS)


def _label(name: str) -> str:
    """Return a name for a legend, which leaves out those that begin with an underscore."""
    shown = _shown(name)
    return f"\N{WORD JOINER}{shown}" if shown.startswith("_") else shown


def note_on_pictures() -> str | None:
    """Return how to get the pictures; None where they are there."""
    if find_spec("matplotlib") is not None:
        return None
    return "The pictures of this page need matplotlib: pip install 'axolotl-sdft[plots]'"


def bar_chart(points: Sequence[Point], title: str, axis: str) -> Markup | None:
    """Return horizontal bars from 0 on, in the order of the points, with intervals as whiskers.

    Args:
        points: Values that are not negative; those that can't be drawn are left out.
        title: Read aloud with the names and values.
        axis: What the values are, with their unit.
    """
    kept = [point for point in points if point.is_drawable]
    if not kept or note_on_pictures():
        return None
    with _axes(0.9 + 0.58 * len(kept)) as (figure, axes):
        for place, point in enumerate(kept):
            axes.barh(place, point.value, height=0.35, color=point.colour, alpha=0.75)
            _draw_interval(axes, (point.low, point.high), (place, place))
            for x, align, text in ((0.01, "left", point.shown_name), (1.0, "right", point.label)):
                where = (x, place - 0.25)
                axes.text(*where, text, transform=axes.get_yaxis_transform(), ha=align, va="bottom")
        highest = max(max(point.value, point.high or 0.0) for point in kept)
        axes.set_xlim(0, 1.04 * highest if highest > _SMALLEST else 1.0)
        axes.set_ylim(len(kept) - 0.6, -0.75)
        axes.set_yticks([])
        axes.set_xlabel(axis)
        axes.grid(axis="x")
        return _svg(figure, f"{title}: {_told(kept)}")


def scatter_chart(points: Sequence[Point], title: str, axes_names: tuple[str, str]) -> Markup | None:
    """Return points in a plane, with intervals of the vertical value as whiskers; None with fewer than two points.

    Args:
        points: Those that can't be drawn are left out.
        title: Read aloud with the names and values.
        axes_names: What lies across and what up, with their units.
    """
    kept = [point for point in points if point.is_drawable]
    if len(kept) < 2 or note_on_pictures():
        return None
    with _axes(2.9 + 0.2 * len(kept)) as (figure, axes):
        for place, point in enumerate(kept):
            _draw_interval(axes, (point.x, point.x), (point.low, point.high))
            marker = _MARKERS[place % len(_MARKERS)]
            axes.plot(point.x, point.value, marker, color=point.colour, markersize=7, label=_label(point.name))
        axes.set_xlabel(axes_names[0])
        axes.set_ylabel(axes_names[1])
        axes.margins(0.08)
        axes.grid()
        figure.legend(loc="outside lower left", frameon=False)  # beside the points, names would lie on each other
        return _svg(figure, f"{title}: " + "; ".join(f"{p.name} {p.x:g}, {p.label}" for p in kept))


@dataclass(frozen=True)
class Line:
    """Values along an axis, to be drawn as a line."""

    name: str
    points: Sequence[tuple[float, float]]
    """What lies across and what up, in ascending order of the former."""

    is_first: bool = True
    """Whether it has the colour of what came first, and a broken line."""


def line_chart(lines: Sequence[Line], title: str, axes_names: tuple[str, str]) -> Markup | None:
    """Return lines over one axis, with a mark at each point where those are few; None where none has two points.

    Args:
        lines: Points that can't be drawn are left out. At most two.
        title: Read aloud with the names, and the first and last value of each.
        axes_names: What lies across and what up, with their units. Whole numbers across have whole ticks.
    """
    kept = [replace(line, points=[point for point in line.points if _is_small(point)]) for line in lines]
    kept = [line for line in kept if len(line.points) > 1]
    if not kept or note_on_pictures():
        return None
    from matplotlib.ticker import MaxNLocator

    with _axes(3.6) as (figure, axes):
        for line in kept:
            colour, style = _COLOURS["before" if line.is_first else "after"], "--" if line.is_first else "-"
            marker = "o" if len(line.points) <= _MOST_MARKS else ""
            across, up = zip(*line.points, strict=True)
            axes.plot(across, up, style, marker=marker, markersize=4, color=colour, label=_label(line.name))
        axes.set_xlabel(axes_names[0])
        axes.set_ylabel(axes_names[1])
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=all(x == int(x) for line in kept for x, _ in line.points)))
        axes.margins(y=0.08)
        axes.grid()
        figure.legend(loc="outside lower left", frameon=False, ncols=2)
        told = (f"{line.name} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in kept)
        return _svg(figure, f"{title}: {'; '.join(told)}")


def _is_small(point: tuple[float, float]) -> bool:
    return all(abs(number) < _LARGEST for number in point)


def histograms(before: Counts, after: Counts, middles: tuple[float, float], title: str, axis: str) -> Markup | None:
    """Return two distributions over the same bins and to the same scale, each with a line at its mean or median.

    Args:
        before: Not empty; whole numbers give bins of whole numbers.
        after: Not empty.
        middles: Mean or median of each.
        title: Read aloud with the two.
        axis: What the values are, with their unit.
    """
    if note_on_pictures():
        return None
    from matplotlib.ticker import MaxNLocator

    with _axes(2.4) as (figure, axes):
        edges, has_tail = _bins(before, after)
        looks = (("before", "--", 1.0), ("after", "-", 1.5))
        for (name, line, width), counts, middle in zip(looks, (before, after), middles, strict=True):
            values = np.minimum(np.fromiter(counts.keys(), float), edges[-1])
            shape: Any = {"histtype": "stepfilled", "alpha": 0.45, "edgecolor": _COLOURS[name], "linewidth": width}
            axes.hist(values, edges.tolist(), weights=list(counts.values()), color=_COLOURS[name], **shape)
            axes.axvline(min(middle, edges[-1]), color=_COLOURS[name], linestyle=line, linewidth=2)
        axes.set_xlabel(f"{axis}; the last bar holds all above as well" if has_tail else axis)
        axes.set_ylabel("answers")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure, f"{title}: {middles[0]:.4g} before, {middles[1]:.4g} after")


def expanded(counts: Counts) -> NDArray[np.float64]:
    """Return the values one by one, in ascending order."""
    values = np.repeat(np.fromiter(counts.keys(), float), list(counts.values()))
    return np.sort(values)


def _bins(before: Counts, after: Counts) -> tuple[NDArray[np.float64], bool]:
    """Return edges at round numbers, and whether values lie above the last one."""
    from matplotlib.ticker import MaxNLocator

    both = [expanded(counts) for counts in (before, after)]
    is_whole = all(isinstance(value, int) for counts in (before, after) for value in counts)
    low, highest = (float(choice(values[place] for values in both)) for choice, place in ((min, 0), (max, -1)))
    high = max(float(np.percentile(values, _TAIL, method="higher")) for values in both)
    has_tail = highest - low > _FAR * (high - low)
    end = (high if has_tail else highest) + (1 if is_whole else max(0.01, 1e-6 * abs(high)))
    edges = MaxNLocator(_MOST_BINS, steps=[1, 2, 2.5, 5, 10], integer=is_whole).tick_values(low, end)
    return np.asarray(edges), has_tail


def _draw_interval(axes: "Axes", across: tuple[Any, Any], up: tuple[Any, Any]) -> None:
    if None not in (*across, *up):
        marker = "|" if up[0] == up[1] else "_"
        axes.plot(across, up, marker=marker, color=_COLOURS["ink"], markersize=8, linewidth=1.5, clip_on=False)


def _told(points: Sequence[Point]) -> str:
    return "; ".join(f"{point.name} {point.label}" for point in points)


@contextmanager
def _axes(height: float) -> "Iterator[tuple[Figure, Axes]]":
    """Give axes on a figure so many inches high, in our looks; the global state comes back as it was."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_LOOKS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's browser has other fonts
        # A figure of its own, not pyplot's: it needs no display.
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        yield figure, figure.add_subplot()


def _svg(figure: "Figure", told: str) -> Markup:
    """Return a figure as an element of a page: without what repeats on a page, and with the page's colours."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    opening, body = re.split(r"(?<=>)", file.getvalue().partition("<svg")[2], maxsplit=1)
    body = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r'(?<=style=")[^"]*', lambda style: _with_variables(style[0]), body)
    (view,) = re.findall(r'viewBox="[^"]*"', opening)
    return Markup('<svg {} role="img" aria-label="{}">{}').format(Markup(view), one_line(told), Markup(body))


def _with_variables(style: str) -> str:
    style = re.sub(r"font-family: [^;]*; ?", "", style)  # the page's own
    for name, colour in _COLOURS.items():
        style = style.replace(colour, f"var(--{name})")
    return style
