"""Which layers go: a pure decision from scores and settings. No torch, no files."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.errors import CheckpointError, ConfigError
from axolotl_sdft.pruning.score import LayerScores


@dataclass(frozen=True)
class PruningPlan:
    """Which layers of a model go, and why."""

    drop_layers: tuple[int, ...]
    """The layers that go, counted from 0, in ascending order."""

    num_layers: int
    """Layers of the model before."""

    metric: str | None
    """What chose the layers; None when the user named them."""

    cost: float | None
    """What the metric says that removing them costs: of the block, or the sum over single layers."""


def validate_pruning(config: LayerPruningConfig, num_layers: int) -> None:
    """Refuse settings that can't work with a model of ``num_layers`` layers.

    Raises:
        ConfigError: No layer would stay, a layer is not there, or the protected ones leave too few to choose from.
    """
    if config.drop_layers is not None:
        _validate_drop_layers(config, config.drop_layers, num_layers)
    elif config.num_layers is not None:
        _validate_num_layers(config, config.num_layers, num_layers)


def _validate_num_layers(config: LayerPruningConfig, num_dropped: int, num_layers: int) -> None:
    wanted = f"layer_pruning.num_layers is {num_dropped}, but the model has {num_layers} layers"
    if num_dropped >= num_layers:
        raise ConfigError(f"{wanted}; lower it so that at least one layer stays")
    candidates = max(0, num_layers - config.protect_first - config.protect_last)
    if num_dropped > candidates:
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


def plan_pruning(scores: LayerScores, config: LayerPruningConfig) -> PruningPlan:
    """Return which layers go. The lower layers win a tie; ``drop_layers`` are taken as they are.

    Raises:
        ConfigError: The settings can't work with this many layers.
        CheckpointError: A score that matters is no finite number.

    Example:
        >>> plan_pruning(scores, LayerPruningConfig(num_layers=3)).drop_layers
        (7, 8, 9)
    """
    validate_pruning(config, scores.num_layers)
    if config.num_layers is None:
        return given_plan(config, scores.num_layers)
    costs = dict(_candidate_costs(scores, config, width=config.num_layers if scores.contiguous else 1))
    for (start, end), cost in costs.items():
        if not math.isfinite(cost):
            raise CheckpointError(
                f"{scores.metric} scores removing layers {start} to {end - 1} as {cost}; the model's hidden states "
                "overflow or are no numbers. Check the weights, or name the layers in layer_pruning.drop_layers"
            )
    num_picks = 1 if scores.contiguous else config.num_layers
    picks = sorted(costs, key=lambda block: (costs[block], block))[:num_picks]
    drop_layers = sorted(layer for start, end in picks for layer in range(start, end))
    return PruningPlan(tuple(drop_layers), scores.num_layers, scores.metric, sum(costs[block] for block in picks))


def given_plan(config: LayerPruningConfig, num_layers: int) -> PruningPlan:
    """Return the plan that ``drop_layers`` is.

    Raises:
        ConfigError: ``drop_layers`` is not set, or can't work with this many layers.
    """
    if config.drop_layers is None:
        raise ConfigError("layer_pruning.drop_layers is not set, so the layers must be scored")
    validate_pruning(config, num_layers)
    return PruningPlan(tuple(sorted(config.drop_layers)), num_layers, None, None)


def _candidate_costs(
    scores: LayerScores, config: LayerPruningConfig, width: int
) -> Iterator[tuple[tuple[int, int], float]]:
    """Yield the blocks of this width that touch no protected layer, as half-open ranges, with their costs."""
    for start in range(config.protect_first, scores.num_layers - config.protect_last - width + 1):
        yield (start, start + width), scores.block_costs[start][start + width]
