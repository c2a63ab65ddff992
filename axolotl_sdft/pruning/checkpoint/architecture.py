"""What a pruned model's ``config.json`` and tensor names must say. Neither torch nor transformers is imported here."""

from collections.abc import Collection
from typing import Any

from axolotl_sdft.pruning.checkpoint.config_process import PendingConfig, start
from axolotl_sdft.pruning.checkpoint.derived_config import check_settings, find_count
from axolotl_sdft.pruning.checkpoint.layer_settings import COUNT_KEYS
from axolotl_sdft.pruning.checkpoint.tensor_files import (
    find_layer_prefix,
    first_number_prefix,
    is_text_path,
    renamed,
)

__all__ = [
    "COUNT_KEYS",
    "PendingConfig",
    "check_can_be_cut",
    "find_layer_prefix",
    "first_number_prefix",
    "is_text_path",
    "layer_count",
    "num_extra_layers",
    "prune_config",
    "renamed",
    "start_prune_config",
]


_EXTRA_LAYER_KEYS = ("num_nextn_predict_layers", "num_mtp_layers")


def layer_count(config: dict[str, Any]) -> int:
    """Return how many layers the text decoder of a ``config.json`` has.

    Raises:
        CheckpointError: It does not say.
    """
    count = find_count(config)
    return start("count_layers", config).result() if count is None else count


def num_extra_layers(config: dict[str, Any]) -> int:
    """Return how many layers that predict further tokens may be stored after the last one; most models have none.

    transformers leaves them out when it loads the model; servers use them to write several tokens at once.
    """
    levels = (config, *(value for value in config.values() if isinstance(value, dict)))
    counts = (level.get(key) for level in levels for key in _EXTRA_LAYER_KEYS)
    return max((count for count in counts if isinstance(count, int)), default=0)


def check_can_be_cut(config: dict[str, Any]) -> None:
    """Refuse architectures of which no layer can go.

    Raises:
        CheckpointError: The message holds the reason.
    """
    start("check", config).result()


def prune_config(config: dict[str, Any], drop_layers: Collection[int]) -> dict[str, Any]:
    """Return a ``config.json`` without these layers: counts, lists, thresholds and periods follow.

    Lists that transformers' config class would derive from the layer count are written out.

    Raises:
        CheckpointError: The architecture can't be cut soundly, with the reason.
    """
    return start_prune_config(config, drop_layers).result()


def start_prune_config(config: dict[str, Any], drop_layers: Collection[int]) -> PendingConfig:
    """Begin what :func:`prune_config` does, in a process of its own unless transformers is imported already.

    Raises:
        CheckpointError: What the file itself says rules the cut out.
    """
    check_settings(config, config)
    return start("prune", config, drop_layers=sorted(drop_layers))
