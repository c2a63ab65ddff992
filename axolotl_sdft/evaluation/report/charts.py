"""The pictures of a recovery report. Values that are not finite are left out: one broken model must not take the others
with it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from axolotl_sdft.core.pictures import Line, Point, bar_chart, line_chart, scatter_chart
from axolotl_sdft.evaluation.figures import Curve, Estimate, ModelFigures, RecoveryReport
from axolotl_sdft.evaluation.report.headline import SEED, SOURCES, Headline, Tile
from axolotl_sdft.evaluation.report.table import digits, speed_cell

_PERCENT = "percent of the seed model"
_CURVES = {"loss": "training loss", "eval_loss": "evaluation loss"}


@dataclass(frozen=True)
class Chart:
    """A picture with its title and a remark."""

    title: str
    picture: Markup
    note: str = ""


def charts(report: RecoveryReport, top: Headline | None) -> list[Chart]:
    """Return the pictures that there is something to draw for; none without matplotlib."""
    drawn = [
        *(_tile_charts(report, (top.task, top.everything_else)) if top else ()),
        *(_size_and_speed(report, top.task if top else None)),
        *_removal_chart(report),
        *_training_charts(report),
    ]
    return [Chart(title, picture, note) for title, picture, note in drawn if picture is not None]


_Drawn = tuple[str, Markup | None, str]


def _tile_charts(report: RecoveryReport, tiles: Sequence[Tile]) -> Iterator[_Drawn]:
    for tile in tiles:
        if tile.source is not None:
            source, what = tile.source, SOURCES[tile.source][0]
            points = _points(report.models, lambda model, source=source: model.relative_to_seed.get(source), " %")  # type: ignore[misc]
            yield f"{tile.title}: {what}", bar_chart(points, tile.title, f"{what} ({_PERCENT})"), ""


def _size_and_speed(report: RecoveryReport, task: Tile | None) -> Iterator[_Drawn]:
    if task is not None and task.source is not None:
        source = task.source
        sized = [model for model in report.models if model.footprint]
        spots = _points(sized, lambda model: model.relative_to_seed.get(source), " %")
        axes = ("parameters (millions)", "the task (% of the seed model)")
        yield "Size and the task", scatter_chart(spots, "Size and the task", axes), ""
    others = [
        model for model in report.models if model.name != SEED
    ]  # the seed model's own divergence is 0 by definition
    forgotten = _points(others, lambda model: model.general.kl_to_seed if model.general else None)
    axis = "KL divergence from the seed model (nats per token)"
    yield "Forgetting, on general prompts", bar_chart(forgotten, "Forgetting", axis), "less is better"
    axis = "speed of one sequence (tokens per second)"
    note = "models of one shape share one speed; whiskers: the slowest and the fastest round"
    yield "Speed", bar_chart(_speed_points(report.models), "Speed", axis), note


def _speed_points(models: Sequence[ModelFigures]) -> list[Point]:
    """Return one speed for all models that share it."""
    points = []
    timed = [model for model in models if model.speed]
    for speed in dict.fromkeys(model.speed for model in timed if model.speed):
        sharing = [model for model in timed if model.speed == speed]
        cell = speed_cell(sharing[0])
        label = f"{cell.text} ({cell.interval})" if cell.interval else cell.text
        ends = (min(speed.speeds), max(speed.speeds)) if cell.interval else (None, None)
        names = ", ".join(model.name for model in sharing)
        points.append(Point(names, label, sharing[0].name == SEED, speed.tokens_per_second, *ends))
    return points


def _removal_chart(report: RecoveryReport) -> Iterator[_Drawn]:
    bare = [(float(removal.num_layers), removal.bare) for removal in report.removals]
    patched = [(float(r.num_layers), r.patched) for r in report.removals if r.patched is not None]
    lines = [Line("bare cut", bare), Line("patched", patched, is_first=False)]
    axes = ("layers removed", report.removal_measure)
    note = "the best of the blocks that pruning tried, on its calibration text, before any training; less is better"
    yield "How many layers to remove", line_chart(lines, "How many layers to remove", axes), note


def _training_charts(report: RecoveryReport) -> Iterator[_Drawn]:
    for name in dict.fromkeys(curve.model for curve in report.curves):
        title = f"Training: {name}"
        lines = [_line(curve) for curve in report.curves if curve.model == name]
        yield title, line_chart(lines, title, ("optimizer steps", "loss (nats per token)")), ""


def _line(curve: Curve) -> Line:
    points = [(float(step), value) for step, value in zip(curve.steps, curve.values, strict=True)]
    return Line(_CURVES.get(curve.key, curve.key), points, is_first=curve.key == "loss")


def _points(
    models: Iterable[ModelFigures], figure: Callable[[ModelFigures], Estimate | None], unit: str = ""
) -> list[Point]:
    """Return a figure of each model that has it; across stands its size."""
    points = []
    for model in models:
        found = figure(model)
        if found is not None:
            # The seed model beside itself has an interval without width, which is nothing to draw.
            ends = (found.low, found.high) if found.low != found.high else (None, None)
            points.append(_point(model, found.value, *ends, unit))
    return points


def _point(
    model: ModelFigures, value: float, low: float | None = None, high: float | None = None, unit: str = ""
) -> Point:
    ends = "" if low is None or high is None else f" ({digits(low)} to {digits(high)})"
    label = f"{digits(value)}{unit}{ends}"
    size = model.footprint.parameters / 1e6 if model.footprint else 0.0
    return Point(model.name, label, model.name == SEED, value, low, high, size)
