"""How many layers must go for a model to keep to a budget of parameters. No torch, no files."""

from collections.abc import Sequence

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.errors import ConfigError


def within_budget(config: LayerPruningConfig, total: int, layer_parameters: Sequence[int]) -> LayerPruningConfig:
    """Return the settings with the number of layers in the place of ``target``; as they are without one.

    It is the least number with which the model keeps to the budget whichever layers go, so that of layers of unlike
    size the smallest are counted.

    Args:
        config: The settings, not yet checked against the model.
        total: Parameters of the seed model.
        layer_parameters: Parameters of each of its layers.

    Raises:
        ConfigError: The model is small enough already, or not without all layers that may go.
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
        f"are all that may go, the model still has {left:,} of {total:,} parameters; raise it, or lower protect_first "
        "or protect_last"
    )
