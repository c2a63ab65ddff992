"""The scores of layers as pictures, from which a person can choose how many layers to remove."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.artifacts import replacing
from axolotl_sdft.core.errors import MissingExtraError
from axolotl_sdft.pruning.planning.plan import PruningPlan, best_plans, cost_text, is_measured
from axolotl_sdft.pruning.scoring.scores import LayerScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AXIS_LABELS = {
    "angular_distance": "angular distance (0: no change, 1: reversed)",
    "block_influence": "block influence (1 less the cosine)",
    "divergence": "KL to the seed model, nats per held-out token",
    "perplexity": "perplexity of the calibration text without these layers",
}
_CHOSEN_COLOUR = "#d55e00"  # vermilion: told apart from blue and yellow by every kind of colour vision
_CURVE_COLOUR = "#0072b2"
_DPI = 144
_LOG_SCALE_FROM = 50.0
"""Where the highest cost is so many times the lowest one, a linear scale would show only the highest."""


def write_plots(
    model_name: str, plan: PruningPlan, scores: LayerScores, config: LayerPruningConfig, folder: Path
) -> list[Path]:
    """Draw the scores with the chosen layers marked, and return the PNG files; none for scores that compare nothing.

    A curve shows the least cost for each number of layers. Beside it a heat map shows every block, or bars show every
    layer where the metric chooses them one by one. The files of another choice stay.

    Args:
        model_name: What the user calls the seed model.
        plan: The removed layers.
        scores: What chose them.
        config: For the protected layers.
        folder: Made where it is missing.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ArtifactError: The disk refuses.
    """
    if not is_measured(scores):
        return []
    try:
        import matplotlib.figure as _  # noqa: F401
    except ImportError as err:
        raise MissingExtraError("pictures of the scores need matplotlib; install 'axolotl-sdft[plots]'") from err
    name = model_name.rstrip("/").rpartition("/")[2]
    choice = f"drop{len(plan.drop_layers)}" + _protection(config)
    figures = {f"least_cost-{choice}.png": _curve(name, plan, scores, config)}
    if scores.block_costs and scores.contiguous and not scores.divergences:  # else they only led to what was tried
        figures[f"heat_map-{choice}.png"] = _heat_map(name, plan, scores, config)
    elif scores.block_costs and not scores.contiguous:  # longer blocks play no part, and need not be there
        figures[f"layers-{choice}.png"] = _bars(name, plan, scores)
    for file, figure in figures.items():
        with replacing(folder / file) as picture:
            figure.savefig(picture, dpi=_DPI)
    return sorted(folder / file for file in figures)


def _protection(config: LayerPruningConfig) -> str:
    if config.protect_first == config.protect_last == 0:
        return ""
    return f"-protect{config.protect_first}-{config.protect_last}"


def _new_figure(title: str, size: tuple[float, float]) -> "tuple[Figure, Axes]":
    # A figure of its own, not pyplot's: it needs no display and changes no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    return figure, axes


def _heat_map(name: str, plan: PruningPlan, scores: LayerScores, config: LayerPruningConfig) -> "Figure":
    """Draw the cost of each block: its first layer to the right, its length upwards."""
    from matplotlib.patches import Rectangle

    size = scores.num_layers
    figure, axes = _new_figure(f"{name}: {_shown(scores.metric)} of every block of layers", (7.6, 5.8))
    costs = [[_cost(scores, start, start + length) for start in range(size)] for length in range(1, size + 1)]
    image = axes.imshow(costs, origin="lower", cmap="cividis", extent=(-0.5, size - 0.5, 0.5, size + 0.5))
    cheapest = [(choice.drop_layers[0], len(choice.drop_layers)) for choice in best_plans(scores, config)]
    axes.plot(*zip(*cheapest, strict=True), "o", color="white", markersize=3)
    corner = (plan.drop_layers[0] - 0.5, len(plan.drop_layers) - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=_CHOSEN_COLOUR, linewidth=2))
    axes.set_xlabel("first layer of the block, counted from 0")
    axes.set_ylabel("layers in the block")
    _whole_numbers(axes.xaxis, axes.yaxis)
    figure.colorbar(image, ax=axes, label=_axis_label(scores.metric), shrink=0.85)
    chosen = f"chosen: layers {_chosen_layers(plan)}\n{_shown(scores.metric)} {cost_text(plan.cost)}"
    axes.text(0.97, 0.96, chosen, transform=axes.transAxes, ha="right", va="top", color=_CHOSEN_COLOUR)
    dots = "white dots: the cheapest block\nof each length"
    axes.text(0.97, 0.84, dots, transform=axes.transAxes, ha="right", va="top", fontsize=9)
    return figure


def _cost(scores: LayerScores, start: int, end: int) -> float:
    return scores.block_costs[start][end] if end <= scores.num_layers else float("nan")


def _bars(name: str, plan: PruningPlan, scores: LayerScores) -> "Figure":
    """Draw the cost of each layer alone."""
    figure, axes = _new_figure(f"{name}: {_shown(scores.metric)} of each layer", (7.6, 4.6))
    kept = [layer for layer in range(scores.num_layers) if layer not in plan.drop_layers]
    for layers, colour, label in ((kept, _CURVE_COLOUR, "stays"), (plan.drop_layers, _CHOSEN_COLOUR, "goes")):
        axes.bar(layers, [scores.block_costs[layer][layer + 1] for layer in layers], color=colour, label=label)
    axes.set_xlabel("layer, counted from 0")
    axes.set_ylabel(_axis_label(scores.metric))
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    _whole_numbers(axes.xaxis)
    return figure


def _curve(name: str, plan: PruningPlan, scores: LayerScores, config: LayerPruningConfig) -> "Figure":
    """Draw the least cost over the number of removed layers."""
    plans = best_plans(scores, config)
    counts, costs = zip(*((len(choice.drop_layers), choice.cost or 0.0) for choice in plans), strict=True)
    figure, axes = _new_figure(f"{name}: least {_shown(scores.metric)} for each number of layers", (7.6, 4.6))
    axes.plot(counts, costs, "o-", markersize=4, color=_CURVE_COLOUR)
    axes.plot(
        [len(plan.drop_layers)], [plan.cost or 0.0], "o", markersize=11, markerfacecolor="none", color=_CHOSEN_COLOUR
    )
    if scores.divergences:
        _add_bare_curve(axes, scores)
    for choice, layer in zip(plans, scores.removal_order, strict=False):
        _note(axes, choice, str(layer), (0, 9), ha="center", fontsize=7)
    # The curve rises: there is room below it to the right, and above it to the left.
    is_left = len(plan.drop_layers) <= len(plans) / 2
    text = f"chosen: {_chosen_text(plan, scores)}\n{cost_text(plan.cost)}"
    place: dict[str, Any] = {"ha": "left", "va": "top"} if is_left else {"ha": "right", "va": "bottom"}
    _note(axes, plan, text, (10, -10) if is_left else (-10, 12), color=_CHOSEN_COLOUR, **place)
    axes.set_xlabel("removed layers" + (" (at each point: the one that goes there)" if scores.removal_order else ""))
    axes.set_ylabel(_axis_label(scores.metric))
    if min(costs) > 0 and max(costs) / min(costs) > _LOG_SCALE_FROM:
        axes.set_yscale("log")
    axes.margins(x=0.08, y=0.18)
    axes.grid(alpha=0.3)
    _whole_numbers(axes.xaxis)
    return figure


def _add_bare_curve(axes: "Axes", scores: LayerScores) -> None:
    """Draw the least divergence of a bare cut beside that of what the stage would give."""
    least: dict[int, float] = {}
    for block in scores.divergences:
        count = block.end - block.start
        least[count] = min(block.bare, least.get(count, block.bare))
    counts = sorted(least)
    axes.plot(counts, [least[count] for count in counts], "s--", markersize=4, color="#767676", label="bare cut")
    axes.legend()


def _note(axes: "Axes", choice: PruningPlan, text: str, shift: tuple[int, int], **style: Any) -> None:
    """Write beside a point of the curve, ``shift`` printer's points away from it."""
    point = (len(choice.drop_layers), choice.cost or 0.0)
    axes.annotate(text, point, xytext=shift, textcoords="offset points", **style)


def _chosen_text(plan: PruningPlan, scores: LayerScores) -> str:
    if scores.contiguous and not scores.removal_order:
        return f"layers {_chosen_layers(plan)}"
    return f"{len(plan.drop_layers)} layers"


def _chosen_layers(plan: PruningPlan) -> str:
    first, last = plan.drop_layers[0], plan.drop_layers[-1]
    return f"{first} to {last}" if last > first else str(first)


def _whole_numbers(*axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _shown(metric: str) -> str:
    return metric.replace("_", " ")


def _axis_label(metric: str) -> str:
    return _AXIS_LABELS.get(metric, _shown(metric))
