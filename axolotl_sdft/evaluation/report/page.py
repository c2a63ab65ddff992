"""Renders ``report.html``: one self-contained page with pictures that a person judges a recovery by.

Values that are not finite are left out: a broken model must not take the picture of the others with it.

No script, no network, no picture files. All of it goes through escaping, whatever names, paths or settings hold.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from axolotl_sdft.core.texts import page_template, shortened
from axolotl_sdft.evaluation.figures import Estimate, ModelFigures, RecoveryReport
from axolotl_sdft.evaluation.report.table import SEED, SOURCES, digits, headline, percent_cell, plain_cell, sections
from axolotl_sdft.evaluation.report.vllm_settings import vllm_lines_of

WIDTH = 420.0
_BAR_LEFT, _BAR_RIGHT, _BAR_TOP, _BAR_STEP, _BAR_HEIGHT = 8.0, 404.0, 6.0, 44.0, 14.0
_AXIS_ROOM = 24.0
_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 44.0, 404.0, 16.0, 204.0, 244.0
_MOST_TICKS = 6
_LARGEST, _SMALLEST = 1e100, 1e-100
_LETTER, _LINE, _NAME_ROOM = 6.6, 14.0, 120.0
"""About as wide is a letter of a name, as high a line, and as wide a name."""


@dataclass(frozen=True)
class Point:
    """A value with its interval, to be drawn."""

    name: str
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


@dataclass(frozen=True)
class Mark:
    """A place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Drawn:
    """A point in the units of the picture. In bars the value is ``x``, in a scatter plot ``y``."""

    name: str
    label: str
    is_seed: bool
    x: float
    y: float
    low: float | None
    high: float | None
    anchor: str = "start"
    """Whether the name of a spot starts or ends beside it."""
    name_y: float = 0.0
    """Where the name of a spot stands, clear of the others."""


@dataclass(frozen=True)
class Bars:
    """Horizontal bars from 0 on, one below the other, with intervals as whiskers."""

    bars: tuple[Drawn, ...]
    ticks: tuple[Mark, ...]
    left: float
    bottom: float
    height: float
    bar_height: float = _BAR_HEIGHT
    width: float = WIDTH


@dataclass(frozen=True)
class Scatter:
    """Points in a plane, with intervals of the vertical value as whiskers."""

    points: tuple[Drawn, ...]
    x_ticks: tuple[Mark, ...]
    y_ticks: tuple[Mark, ...]
    left: float = _LEFT
    right: float = _RIGHT
    top: float = _TOP
    bottom: float = _BOTTOM
    width: float = WIDTH
    height: float = _HEIGHT


def bars(points: Sequence[Point], unit: str = "") -> Bars | None:
    """Return bars in the order of the points; None where nothing can be drawn.

    Args:
        points: Values that are not negative.
        unit: Written behind each value.
    """
    kept = [point for point in points if point.is_drawable]
    if not kept:
        return None
    highest = max(point.value if point.high is None else max(point.value, point.high) for point in kept)
    steps = ticks(0.0, highest if highest > _SMALLEST else 1.0)
    span = (0.0, steps[-1])
    drawn = tuple(_bar(place, point, span, unit) for place, point in enumerate(kept))
    bottom = _BAR_TOP + _BAR_STEP * len(kept)
    marks = tuple(Mark(_across(step, span, _BAR_LEFT, _BAR_RIGHT), f"{step:g}") for step in steps)
    return Bars(drawn, marks, _BAR_LEFT, bottom, bottom + _AXIS_ROOM)


def scatter(points: Sequence[Point]) -> Scatter | None:
    """Return a scatter plot; None with fewer than two points that can be drawn."""
    kept = [point for point in points if point.is_drawable]
    if len(kept) < 2:
        return None
    values = [number for point in kept for number in (point.value, point.low, point.high) if number is not None]
    x_steps = ticks(min(point.x for point in kept), max(point.x for point in kept))
    y_steps = ticks(min(values), max(values))
    x_span, y_span = (x_steps[0], x_steps[-1]), (y_steps[0], y_steps[-1])
    return Scatter(
        tuple(_with_clear_names([_spot(point, x_span, y_span) for point in kept])),
        tuple(Mark(_across(step, x_span, _LEFT, _RIGHT), f"{step:g}") for step in x_steps),
        tuple(Mark(_across(step, y_span, _BOTTOM, _TOP), f"{step:g}") for step in y_steps),
    )


def ticks(low: float, high: float) -> list[float]:
    """Return up to 7 round numbers at equal steps, the first at most ``low`` and the last at least ``high``."""
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, _SMALLEST):
        room = size / 2 if size > _SMALLEST else 0.5
        low, high = low - room, high + room
    rough = (high - low) / (_MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{place * step:.10g}") for place in range(first, last + 1)]


def _bar(place: int, point: Point, span: tuple[float, float], unit: str) -> Drawn:
    low, high = (None if end is None else _across(end, span, _BAR_LEFT, _BAR_RIGHT) for end in (point.low, point.high))
    x, y = _across(point.value, span, _BAR_LEFT, _BAR_RIGHT), _BAR_TOP + _BAR_STEP * place
    return Drawn(point.name, value_text(point, unit), point.is_seed, x, y, low, high)


def _spot(point: Point, x_span: tuple[float, float], y_span: tuple[float, float]) -> Drawn:
    low, high = (None if end is None else _across(end, y_span, _BOTTOM, _TOP) for end in (point.low, point.high))
    x, y = _across(point.x, x_span, _LEFT, _RIGHT), _across(point.value, y_span, _BOTTOM, _TOP)
    anchor = "end" if x + 8 + _LETTER * len(point.name) > WIDTH else "start"
    return Drawn(point.name, f"{point.x:g}, {value_text(point)}", point.is_seed, x, y, low, high, anchor, y + 4)


def _with_clear_names(spots: Sequence[Drawn]) -> list[Drawn]:
    """Return the spots from top to bottom, each name moved down where it would lie on one above it."""
    placed: list[Drawn] = []
    for spot in sorted(spots, key=lambda spot: spot.y):
        near = [other.name_y for other in placed if abs(other.x - spot.x) < _NAME_ROOM]
        placed.append(replace(spot, name_y=round(max([spot.name_y, *(y + _LINE for y in near)]), 2)))
    return placed


def value_text(point: Point, unit: str = "") -> str:
    """Return a value with its interval: ``97.3 % (96.1 to 98.4)``."""
    ends = "" if point.low is None or point.high is None else f" ({digits(point.low, 3)} to {digits(point.high, 3)})"
    return f"{digits(point.value, 4)}{unit}{ends}"


def _across(value: float, span: tuple[float, float], start: float, end: float) -> float:
    low, high = span
    return round(start + (end - start) * (value - low) / (high - low), 2)


_TEMPLATE_FILE = "recovery_report.html.jinja"
_NAME_CHARS = 28


def render_page(report: RecoveryReport) -> str:
    """Return the page."""
    top = headline(report)
    source = top.source if top else None
    measured = [name for name in SOURCES if any(name in model.quality_kept for model in report.models)]
    return page_template(__package__, _TEMPLATE_FILE).render(
        report=report,
        top=top,
        quality=percent_cell(top.quality if top else None),
        forgetting=plain_cell(top.forgetting if top else None),
        drafts={name: "\n".join(lines) for name, lines in vllm_lines_of(report).items()},
        sources={name: SOURCES[name] for name in measured},
        sections=sections(report),
        settings=yaml.safe_dump(dict(report.settings), sort_keys=False, allow_unicode=True),
        provenance=_flat(report.provenance),
        quality_chart=_quality_chart(report, source),
        size_chart=_size_chart(report, source),
        forgetting_chart=_forgetting_chart(report),
        speed_chart=_speed_chart(report),
    )


def _quality_chart(report: RecoveryReport, source: str | None) -> Bars | None:
    return bars(_points(report, lambda model: model.quality_kept.get(source or "")), " %") if source else None


def _forgetting_chart(report: RecoveryReport) -> Bars | None:
    others = [model for model in report.models if model.name != SEED]  # the seed's own is 0 by definition
    return bars([_point(model, model.general.kl_to_seed) for model in others if model.general])


def _speed_chart(report: RecoveryReport) -> Bars | None:
    return bars([_named(model, model.speed.tokens_per_second) for model in report.models if model.speed])


def _size_chart(report: RecoveryReport, source: str | None) -> Scatter | None:
    return scatter(
        [
            _point(model, model.quality_kept[source], model.footprint.parameters / 1e6)
            for model in report.models
            if source is not None and source in model.quality_kept and model.footprint
        ]
    )


def _points(report: RecoveryReport, figure: Callable[[ModelFigures], Estimate | None]) -> list[Point]:
    return [_point(model, found) for model in report.models if (found := figure(model)) is not None]


def _point(model: ModelFigures, figure: Estimate, x: float = 0.0) -> Point:
    # The seed beside itself has an interval without width, which is nothing to draw.
    low, high = (figure.low, figure.high) if figure.low != figure.high else (None, None)
    return _named(model, figure.value, low, high, x)


def _named(
    model: ModelFigures, value: float, low: float | None = None, high: float | None = None, x: float = 0.0
) -> Point:
    return Point(shortened(model.name, _NAME_CHARS), model.name == SEED, value, low, high, x)


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    """Return provenance as texts; a mapping in it becomes one text."""
    return {
        name.replace("_", " "): ", ".join(f"{key} {item}" for key, item in value.items())
        if isinstance(value, Mapping)
        else str(value)
        for name, value in values.items()
    }
