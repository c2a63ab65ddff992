"""The pruning plan as lines of text and as pictures, from which a person can choose how many layers to remove."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.errors import MissingExtraError
from axolotl_sdft.pruning.planning.plan import (
    PruningPlan,
    avoided_lines,
    best_plans,
    cost_text,
    is_measured,
    ranked_blocks,
)
from axolotl_sdft.pruning.planning.savings import Footprint, Savings
from axolotl_sdft.pruning.scoring.scores import LayerScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_MORE = 4
"""So many more layers than chosen are looked at as well."""
_NUM_RUNNERS_UP = 3
_WIDTH = 100
_UNKNOWN = "unknown"


def report_lines(
    model_name: str, plan: PruningPlan, scores: LayerScores | None, savings: Savings, config: LayerPruningConfig
) -> Iterator[str]:
    """Yield which layers go, what that saves, and what else could go.

    Args:
        model_name: What the user calls the seed model.
        plan: The removed layers.
        scores: What chose them; None when the user named them.
        savings: Of this plan.
        config: For the protected layers.
    """
    yield f"{model_name}: {len(plan.drop_layers)} of {plan.num_layers} layers go"
    yield from _wrapped("layers, counted from 0: ", [str(layer) for layer in plan.drop_layers])
    if scores is not None and is_measured(scores):
        yield f"{plan.metric}: {cost_text(plan.cost)}, over {scores.num_tokens:,} tokens (lower: less is lost)"
    elif scores is not None:
        yield f"chosen by {plan.metric}, which measures nothing"
    for line in avoided_lines(plan):
        yield from textwrap.wrap(line, _WIDTH, subsequent_indent="  ")
    yield ""
    yield from savings_lines(savings)
    if scores is not None and is_measured(scores):
        yield ""
        yield from _alternative_lines(plan, scores, savings, config)


def savings_lines(savings: Savings) -> Iterator[str]:
    """Yield a table of what the model is before and after, and what is saved."""
    before, after = savings.before, savings.after
    yield f"{'':<24}{'before':>14}{'after':>14}{'saved':>14}"
    yield _row("layers", before.num_layers, after.num_layers, "")
    yield _row("parameters", before.parameters, after.parameters, "")
    yield _row("weights", before.weight_bytes, after.weight_bytes, "B")
    if before.cache_bytes is not None or savings.notes:  # an encoder keeps nothing
        yield from _memory_rows(before, after)
    yield _row("FLOPs per token", before.flops, after.flops, "")
    if before.flops is not None:
        yield "FLOPs: forward pass of one token without a context before it; a multiply-add counts as two"
    yield from savings.notes


def _memory_rows(before: Footprint, after: Footprint) -> Iterator[str]:
    """Yield the rows of what a model remembers of a text: a cache, a state, or both in a hybrid model."""
    if before.state_bytes:
        yield _row("state per sequence", before.state_bytes, after.state_bytes, "B")
    if before.cache_bytes or not before.state_bytes:
        yield _row("KV cache per token", before.cache_bytes, after.cache_bytes, "B")


def _row(name: str, before: int | None, after: int | None, unit: str) -> str:
    if before is None or after is None:
        return f"{name:<24}{_UNKNOWN:>14}{_UNKNOWN:>14}"
    percent = f"{100 * (before - after) / before:>8.1f} %" if before else ""
    saved = short_number(before - after, unit)
    return f"{name:<24}{short_number(before, unit):>14}{short_number(after, unit):>14}{saved:>14}{percent}"


def short_number(value: int, unit: str) -> str:
    """Return a number in four digits, with the prefix of its thousands: 134515008 is 134.5 M."""
    size, prefixes = float(value), iter(("", "k", "M", "G", "T", "P"))
    prefix = next(prefixes)
    while abs(size) >= 999.95:
        size, prefix = size / 1000, next(prefixes)
    digits = f"{size:.1f}" if prefix else str(value)
    return f"{digits} {prefix}{unit}".rstrip()


def _alternative_lines(
    plan: PruningPlan, scores: LayerScores, savings: Savings, config: LayerPruningConfig
) -> Iterator[str]:
    """Yield a table of the best choice for each number of layers, the chosen one marked."""
    if scores.divergences:
        yield from _tried_lines(plan, scores, savings, config)
        return
    plans = best_plans(scores, config)
    chosen = len(plan.drop_layers)
    if plan.avoided:
        plans[chosen - 1 : chosen] = [plan]  # what the scores alone would choose can't go
    shown = plans[: chosen + _MOST_MORE]
    yield _choice_title(scores) + (f" (1 to {len(shown)} of up to {len(plans)})" if len(shown) < len(plans) else "")
    metric_width = max(len(scores.metric), 9) + 2
    yield f"{'go':>5}{scores.metric:>{metric_width}}{'parameters left':>24}  {_what(scores)}"
    for count, choice in enumerate(shown, start=1):
        mark = ">" if count == chosen else " "
        left = savings.before.parameters - sum(savings.layer_parameters[layer] for layer in choice.drop_layers)
        share = f"{short_number(left, '')}{100 * left / savings.before.parameters:>7.1f} %"
        yield f"{mark:<2}{count:>3}{cost_text(choice.cost):>{metric_width}}{share:>24}  {_which(choice, plans, scores)}"
    if scores.contiguous and scores.block_costs:
        yield from _runner_up_lines(plan, scores, config)
    if plan.avoided:
        yield "Other numbers of layers are by the scores alone: what can't be removed may be among them"


def _tried_lines(plan: PruningPlan, scores: LayerScores, savings: Savings, config: LayerPruningConfig) -> Iterator[str]:
    """Yield a table of the blocks that were tried, the best one of each length first, the chosen one marked."""
    yield "Blocks tried: KL to the seed model in nats per token of held-out text, bare and patched"
    yield f"{'go':>5}{'KL bare':>12}{'KL patched':>12}{'parameters left':>24}  layers"
    best = {choice.drop_layers for choice in best_plans(scores, config)}
    for block in sorted(scores.divergences, key=lambda tried: (tried.end - tried.start, tried.cost(config.patch))):
        layers = tuple(range(block.start, block.end))
        mark = ">" if layers == plan.drop_layers else " "
        count = str(len(layers)) if layers in best else ""
        left = savings.before.parameters - sum(savings.layer_parameters[layer] for layer in layers)
        share = f"{short_number(left, '')}{100 * left / savings.before.parameters:>7.1f} %"
        patched = "no patch" if block.patched is None else cost_text(block.patched)
        yield f"{mark:<2}{count:>3}{cost_text(block.bare):>12}{patched:>12}{share:>24}  {_span(layers)}"


def _choice_title(scores: LayerScores) -> str:
    if scores.removal_order:
        return "Layers one after the other, as each hurts least"
    return "The cheapest block of each length" if scores.contiguous else "The cheapest single layers"


def _what(scores: LayerScores) -> str:
    return "layers" if scores.contiguous and not scores.removal_order else "goes as well"


def _which(choice: PruningPlan, plans: Sequence[PruningPlan], scores: LayerScores) -> str:
    """Return the block, or the one layer that goes beside those of the line above."""
    if scores.contiguous and not scores.removal_order:
        return _span(choice.drop_layers)
    count = len(choice.drop_layers)
    above = plans[count - 2].drop_layers if count > 1 else ()
    return ", ".join(str(layer) for layer in choice.drop_layers if layer not in above)


def _runner_up_lines(plan: PruningPlan, scores: LayerScores, config: LayerPruningConfig) -> Iterator[str]:
    length = len(plan.drop_layers)
    told = {plan.drop_layers, *(layers for layers, _ in plan.avoided)}
    others = [pair for pair in ranked_blocks(scores, config, length) if tuple(pair[1]) not in told][:_NUM_RUNNERS_UP]
    if others:
        shown = [f"{_span(block)} ({cost_text(cost)})" for cost, block in others]
        yield from _wrapped(f"Next-best blocks of {length}: ", shown)


def _span(layers: Sequence[int]) -> str:
    return f"{layers[0]} to {layers[-1]}" if len(layers) > 1 else str(layers[0])


def _wrapped(start: str, items: Sequence[str]) -> Iterator[str]:
    """Yield a list in lines that fit, later lines indented."""
    line = start
    for place, item in enumerate(items):
        piece = item + (", " if place < len(items) - 1 else "")
        if len(line) + len(piece.rstrip()) > _WIDTH:
            yield line.rstrip()
            line = "  "
        line += piece
    yield line.rstrip()


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
        folder: An existing folder.

    Raises:
        MissingExtraError: matplotlib is not installed.
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
        figure.savefig(folder / file, dpi=_DPI)
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
