"""Which layers are removed, and what else could be: pure decisions from scores and settings. No torch, no files."""

import math
import operator
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.callables import callable_name
from axolotl_sdft.core.errors import CheckpointError, ConfigError
from axolotl_sdft.pruning.planning.removable import Removable, cheapest_set
from axolotl_sdft.pruning.scoring.scores import LayerScores

_MAX_SHOWN = 5


@dataclass(frozen=True)
class PruningPlan:
    """Which layers of a model go, and why."""

    drop_layers: tuple[int, ...]
    """The removed layers, counted from 0, in ascending order."""

    num_layers: int
    """Layers of the model before."""

    metric: str | None
    """What chose the layers; None when the user named them."""

    cost: float | None
    """What the metric says that removing them costs: of the block, or the sum over single layers; of a greedy metric,
    the cost once all of them have gone (``perplexity``: the perplexity without them). None: nothing was measured."""

    avoided: tuple[tuple[tuple[int, ...], str], ...] = ()
    """Layers that the scores would rather remove, but which can't be removed, with the reason."""


def num_dropped(config: LayerPruningConfig, num_layers: int) -> int:
    """Return how many of ``num_layers`` layers are removed; a fraction counts of them, rounded, at least 1.

    Example:
        >>> num_dropped(LayerPruningConfig(num_layers=0.25), 30)  # 7.5
        8
    """
    if config.drop_layers is not None:
        return len(config.drop_layers)
    wanted = config.num_layers or 0
    return wanted if isinstance(wanted, int) else max(1, math.floor(wanted * num_layers + 0.5))


def validate_pruning(config: LayerPruningConfig, num_layers: int) -> None:
    """Refuse settings that can't work with a model of ``num_layers`` layers.

    Raises:
        ConfigError: No layer would stay, a layer is not there, or the protected ones leave too few to choose from; or
            ``target`` is not yet a number of layers.
    """
    if config.drop_layers is not None:
        _validate_drop_layers(config, config.drop_layers, num_layers)
    elif config.num_layers is not None:
        _validate_num_layers(config, num_dropped(config, num_layers), num_layers)
    elif config.target is not None:
        raise ConfigError(
            f"layer_pruning.target.parameters is {config.target.parameters}, but scores don't tell how many parameters "
            "a layer has; set num_layers, or prune with axolotl prune-layers, which counts them"
        )


def _validate_num_layers(config: LayerPruningConfig, count: int, num_layers: int) -> None:
    of_layers = "" if config.num_layers == count else f" ({count} layers)"
    wanted = f"layer_pruning.num_layers is {config.num_layers}{of_layers}, but the model has {num_layers} layers"
    if count >= num_layers:
        raise ConfigError(f"{wanted}; lower it so that at least one layer stays")
    candidates = max(0, num_layers - config.protect_first - config.protect_last)
    if count > candidates:
        raise ConfigError(
            f"{wanted}, and protect_first ({config.protect_first}) and protect_last ({config.protect_last}) leave "
            f"{candidates} of them to choose from; lower one of the three"
        )


def _validate_drop_layers(config: LayerPruningConfig, drop_layers: tuple[int, ...], num_layers: int) -> None:
    validate_drop_layers(drop_layers, num_layers, "layer_pruning.drop_layers")
    for layer in drop_layers:
        for key, is_protected in (
            ("protect_first", layer < config.protect_first),
            ("protect_last", layer >= num_layers - config.protect_last),
        ):
            if is_protected:
                raise ConfigError(
                    f"layer_pruning.drop_layers names layer {layer}, but {key} is {getattr(config, key)} "
                    f"and the model has {num_layers} layers; change one of the two"
                )


def given_layers(drop_layers: Collection[int], key: str) -> tuple[int, ...]:
    """Return layers in ascending order, each once, as plain integers; they may be NumPy's or torch's.

    Raises:
        ConfigError: There are none, or something else is among them; the message names ``key``.
    """
    try:
        layers = tuple(sorted({operator.index(layer) for layer in drop_layers}))
    except TypeError as err:
        raise ConfigError(f"{key} is {drop_layers!r}, which is not a list of layer numbers ({err})") from err
    if not layers:
        raise ConfigError(f"{key} is empty; name the layers to remove")
    # A mask would be taken for layers 0 and 1.
    if any(str(getattr(layer, "dtype", type(layer).__name__)).endswith("bool") for layer in drop_layers):
        raise ConfigError(f"{key} is {drop_layers!r}, which is a mask; name the numbers of the layers to remove")
    return layers


def validate_drop_layers(drop_layers: tuple[int, ...], num_layers: int, key: str) -> None:
    """Refuse layers that a model of ``num_layers`` layers doesn't have, and to drop all of them.

    Raises:
        ConfigError: The message names ``key`` and the layer.
    """
    outside = [layer for layer in drop_layers if not 0 <= layer < num_layers]
    if outside:
        raise ConfigError(
            f"{key} holds {outside[0]}, but the model has {num_layers} layers, 0 to {num_layers - 1}; remove it"
        )
    if len(set(drop_layers)) >= num_layers:
        raise ConfigError(f"{key} names all {num_layers} layers of the model; keep at least one")


def plan_pruning(scores: LayerScores, config: LayerPruningConfig, removable: Removable | None = None) -> PruningPlan:
    """Return which layers to remove. The lower layers win a tie; ``drop_layers`` are taken as they are.

    Of greedy scores, the first layers of ``removal_order`` are taken. What ``removable`` rules out is passed over.

    Raises:
        ConfigError: The settings can't work with this many layers, name another metric than that of the scores, or
            greedy scores were made with others.
        CheckpointError: A score that matters is not a finite number, or no choice of layers can be removed.

    Example:
        >>> plan_pruning(scores, LayerPruningConfig(num_layers=3)).drop_layers
        (7, 8, 9)
    """
    validate_pruning(config, scores.num_layers)
    if config.drop_layers is not None:
        return given_plan(config, scores.num_layers)
    _require_same_metric(scores, config)
    count = num_dropped(config, scores.num_layers)
    if removable is None:
        removable = Removable({}, {})
    if scores.removal_order:
        return _first_removed(scores, config, count, removable)
    if scores.divergences:
        return _cheapest_block(scores, _tried(scores, config, count), removable)
    costs = dict(_candidate_costs(scores, config, width=count if scores.contiguous else 1))
    for (start, end), cost in costs.items():
        _require_finite(scores, f"layers {start} to {end - 1}", cost)
    if scores.contiguous:
        return _cheapest_block(scores, costs, removable)
    of_layers = {start: cost for (start, _), cost in costs.items()}
    drop_layers, refused = cheapest_set(of_layers, count, removable)
    wanted = sorted(of_layers, key=lambda layer: (of_layers[layer], layer))[:count]
    avoided = [((layer,), removable.fixed[layer]) for layer in wanted if layer in removable.fixed] + refused
    cost = sum(of_layers[layer] for layer in drop_layers)
    return PruningPlan(drop_layers, scores.num_layers, scores.metric, cost, tuple(avoided))


def _require_same_metric(scores: LayerScores, config: LayerPruningConfig) -> None:
    wanted = callable_name(config.metric)
    if "metric" in config.model_fields_set and wanted != scores.metric:
        raise ConfigError(
            f"layer_pruning.metric is {wanted}, but the scores are those of {scores.metric}; score the layers with "
            f"score_layers(model, batches, metric={wanted!r}), or leave metric out of the configuration"
        )


def _cheapest_block(scores: LayerScores, costs: dict[tuple[int, int], float], removable: Removable) -> PruningPlan:
    avoided: list[tuple[tuple[int, ...], str]] = []
    for start, end in sorted(costs, key=lambda block: (costs[block], block)):
        layers = tuple(range(start, end))
        reason = removable.blocks.get(layers) or removable.reason_against(layers)
        if reason is None:
            return PruningPlan(layers, scores.num_layers, scores.metric, costs[start, end], tuple(avoided))
        avoided.append((layers, reason))
    raise CheckpointError(f"no block of removable layers can be removed: {avoided[0][1]}")


def avoided_lines(plan: PruningPlan) -> Iterator[str]:
    """Yield a line for each reason why layers stay that the scores would rather have removed."""
    by_reason: dict[str, list[str]] = {}
    for layers, reason in plan.avoided:
        by_reason.setdefault(reason, []).append("+".join(map(str, layers)))
    for reason, sets in by_reason.items():
        shown = ", ".join(sets[:_MAX_SHOWN]) + (f" and {len(sets) - _MAX_SHOWN} others" if sets[_MAX_SHOWN:] else "")
        yield f"layers {shown} would be chosen by {plan.metric}, but can't be removed: {reason}"


def _first_removed(scores: LayerScores, config: LayerPruningConfig, count: int, removable: Removable) -> PruningPlan:
    """Return the plan that a greedy order begins with, without the layers that those before them rule out."""
    drop_layers = tuple(sorted(scores.removal_order[:count]))
    if len(drop_layers) < count:
        raise ConfigError(
            f"layer_pruning.num_layers asks for {count} layers, but metric {scores.metric} gives "
            f"{len(scores.removal_order)} of {scores.num_layers} that may be removed; lower it, lower protect_first or "
            "protect_last, or score again with more num_layers"
        )
    _validate_chosen(scores, config, drop_layers)
    reason = removable.reason_against(drop_layers)
    if reason is not None:
        return _without_what_stays(scores, drop_layers, reason, removable)
    cost = scores.removal_costs[count - 1] if scores.removal_costs else None
    if cost is not None:
        _require_finite(scores, f"layers {', '.join(map(str, drop_layers))}", cost)
    return PruningPlan(drop_layers, scores.num_layers, scores.metric, cost)


def _without_what_stays(scores: LayerScores, wanted: tuple[int, ...], reason: str, removable: Removable) -> PruningPlan:
    """Return the plan of the first layers of a greedy order that can go together; what they cost was not measured."""
    chosen: list[int] = []
    for layer in scores.removal_order:
        if len(chosen) < len(wanted) and removable.reason_against([*chosen, layer]) is None:
            chosen.append(layer)
    if len(chosen) < len(wanted):
        raise CheckpointError(
            f"metric {scores.metric} chose layers {', '.join(map(str, wanted))}, and no other layers in its order can "
            f"go in their place: {reason}"
        )
    return PruningPlan(tuple(sorted(chosen)), scores.num_layers, scores.metric, None, ((wanted, reason),))


def _validate_chosen(scores: LayerScores, config: LayerPruningConfig, drop_layers: tuple[int, ...]) -> None:
    allowed = range(config.protect_first, scores.num_layers - config.protect_last)
    protected = [layer for layer in drop_layers if layer not in allowed]
    if protected:
        raise ConfigError(
            f"metric {scores.metric} chose layer {protected[0]}, which protect_first ({config.protect_first}) and "
            f"protect_last ({config.protect_last}) keep; score again with the same two settings"
        )


def _require_finite(scores: LayerScores, layers: str, cost: float) -> None:
    if not math.isfinite(cost):
        raise CheckpointError(
            f"{scores.metric} scores removing {layers} as {cost}; the model's hidden states overflow or are not "
            "numbers. Check the weights, set layer_pruning.dtype to float32, or name the layers in "
            "layer_pruning.drop_layers"
        )


def given_plan(config: LayerPruningConfig, num_layers: int) -> PruningPlan:
    """Return the plan that ``drop_layers`` is.

    Raises:
        ConfigError: ``drop_layers`` is not set, or can't work with this many layers.
    """
    if config.drop_layers is None:
        raise ConfigError("layer_pruning.drop_layers is not set, so the layers must be scored")
    validate_pruning(config, num_layers)
    return PruningPlan(tuple(sorted(config.drop_layers)), num_layers, None, None)


def _tried(scores: LayerScores, config: LayerPruningConfig, count: int) -> dict[tuple[int, int], float]:
    """Return the divergences of the blocks of this length that were tried and touch no protected layer."""
    allowed = range(config.protect_first, scores.num_layers - config.protect_last + 1)
    costs = {
        (block.start, block.end): block.cost(config.patch)
        for block in scores.divergences
        if block.end - block.start == count and block.start in allowed and block.end in allowed
    }
    if not costs:
        raise ConfigError(
            f"metric {scores.metric} has tried no block of {count} layers that may be removed; score again with "
            f"num_layers={count} and the same protect_first and protect_last"
        )
    for (start, end), cost in costs.items():
        _require_finite(scores, f"layers {start} to {end - 1}", cost)
    return costs


def _candidate_costs(
    scores: LayerScores, config: LayerPruningConfig, width: int
) -> Iterator[tuple[tuple[int, int], float]]:
    """Yield the blocks of this width that touch no protected layer, as half-open ranges, with their costs."""
    for start in range(config.protect_first, scores.num_layers - config.protect_last - width + 1):
        yield (start, start + width), scores.block_costs[start][start + width]


def is_measured(scores: LayerScores) -> bool:
    """Return whether there are costs to compare; a metric that goes by position alone gives none."""
    return scores.num_tokens > 0 and bool(scores.block_costs or scores.removal_costs)


def cost_text(cost: float | None) -> str:
    """Return a cost as a person reads it: four decimals, and large ones, such as a ruined perplexity, in short form."""
    if cost is None:
        return "not measured"
    return f"{cost:.4f}" if abs(cost) < 10_000 else f"{cost:.3e}"


def best_plans(scores: LayerScores, config: LayerPruningConfig) -> list[PruningPlan]:
    """Return the plan for each number of layers that can be removed, from 1 on, under the same protected layers.

    Raises:
        CheckpointError: A score that matters is not a finite number.
    """
    unprotected = scores.num_layers - config.protect_first - config.protect_last
    most = min(unprotected, scores.num_layers - 1, len(scores.removal_order) or scores.num_layers)
    if scores.divergences:
        most = min(most, max(block.end - block.start for block in scores.divergences))
    choices = (
        config.model_copy(update={"num_layers": count, "drop_layers": None, "target": None})
        for count in range(1, most + 1)
    )
    return [plan_pruning(scores, choice) for choice in choices]


def ranked_blocks(scores: LayerScores, config: LayerPruningConfig, length: int) -> list[tuple[float, range]]:
    """Return the blocks of this many layers that touch no protected layer, each with its cost, cheapest first."""
    if scores.divergences:
        tried = [block for block in scores.divergences if block.end - block.start == length]
        blocks = [(block.cost(config.patch), range(block.start, block.end)) for block in tried]
    else:
        starts = range(config.protect_first, scores.num_layers - config.protect_last - length + 1)
        blocks = [(scores.block_costs[start][start + length], range(start, start + length)) for start in starts]
    return sorted(blocks, key=lambda block: (block[0], block[1].start))


def within_budget(config: LayerPruningConfig, total: int, layer_parameters: Sequence[int]) -> LayerPruningConfig:
    """Return the settings with the number of layers in the place of ``target``; as they are without one.

    It is the least number with which the model keeps to the budget whichever layers are removed, so that of layers of
    unlike size the smallest are counted.

    Args:
        config: The settings, not yet checked against the model.
        total: Parameters of the seed model.
        layer_parameters: Parameters of each of its layers.

    Raises:
        ConfigError: The model is small enough already, or too large even without all layers that may be removed.
    """
    if config.target is None:
        return config
    wanted = config.target.parameters
    budget = wanted if isinstance(wanted, int) else int(wanted * total)
    if budget >= total:
        raise ConfigError(
            f"layer_pruning.target.parameters is {wanted}, but the model has only {total:,}; lower it, or remove the "
            "layer_pruning block"
        )
    sizes = sorted(layer_parameters[config.protect_first : len(layer_parameters) - config.protect_last])
    most = min(len(sizes), len(layer_parameters) - 1)
    left = total
    for count, size in enumerate(sizes[:most], start=1):
        left -= size
        if left <= budget:
            return config.model_copy(update={"num_layers": count, "target": None})
    raise ConfigError(
        f"layer_pruning.target.parameters is {wanted}, but without {most} of its {len(layer_parameters)} layers, which "
        f"are all that may be removed, the model still has {left:,} of {total:,} parameters; raise it, or lower "
        "protect_first or protect_last"
    )
