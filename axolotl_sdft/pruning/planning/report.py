"""The pruning plan as lines of text of at most 100 columns, from which a person can choose how many layers go."""

import textwrap
from collections.abc import Iterator, Sequence

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.pruning.planning.alternatives import best_plans, cost_text, is_measured, ranked_blocks
from axolotl_sdft.pruning.planning.plan import PruningPlan, avoided_lines
from axolotl_sdft.pruning.planning.savings import Footprint, Savings
from axolotl_sdft.pruning.scoring.scores import LayerScores

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
        plan: The layers that go.
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
