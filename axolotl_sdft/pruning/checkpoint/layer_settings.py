"""Which layers stay, and the settings that say so plainly: counts, lists by layer, lists of layer numbers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Settings = dict[str, Any]

COUNT_KEYS = (
    *("decoder_layers", "num_decoder_layers", "num_layers", "num_hidden_layers", "n_layer", "n_layers", "num_blocks"),
)
"""Names of the layer count. A decoder's own goes before the encoder's, and before the count of caches."""

_NUMBER_LISTS = (
    *("moe_layers", "mlp_only_layers", "full_attn_idxs", "attn_layer_indices", "cross_attention_layers"),
    *("hybrid_layer_ids", "local_layer_ids"),
)
"""Lists that hold the numbers of layers, instead of one entry for each, even when they are as long."""
_LIKE_NUMBER_LIST = re.compile(r"(layer|block)s?_(ids|idxs?|indices|indexes)$")
_NO_LAYER_LIST = re.compile(r"^(architectures|mtp_.*|.*_token_ids?)$")
_FIRST_LAYERS = ("first_k_dense_replace", "num_dense_layers", "n_dense_layers", "num_hash_layers")
"""Settings that hold how many of the first layers are of another kind."""
LAYER_KINDS = ("layer_types", "layers_block_type")
"""Lists that hold the kind of each layer."""


class UnsoundCutError(ValueError):
    """No settings describe what would be left; the text is the reason."""


@dataclass(frozen=True)
class LayerCut:
    """Which of how many layers stay."""

    num_layers: int
    kept: tuple[int, ...]

    @property
    def dropped(self) -> tuple[int, ...]:
        """The layers that go."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.kept)

    @property
    def only_last_go(self) -> bool:
        """Whether every layer that stays keeps its number."""
        return self.kept == tuple(range(len(self.kept)))

    def num_kept_below(self, layer: int) -> int:
        """Return how many layers with a smaller number stay."""
        return sum(kept < layer for kept in self.kept)

    def renumbered(self, layers: Sequence[int]) -> list[int]:
        """Return the new numbers of those of ``layers`` that stay."""
        return [self.kept.index(layer) for layer in layers if layer in self.kept]


def cut_counts_and_lists(settings: Settings, cut: LayerCut) -> Settings:
    """Return counts, lists and tables of the settings of one level as they are with only these layers."""
    changes: Settings = {}
    for key, value in settings.items():
        if key in COUNT_KEYS and value == cut.num_layers:
            changes[key] = len(cut.kept)
        elif isinstance(value, list | tuple) and _holds_layer_numbers(key, value, cut.num_layers):
            changes[key] = cut.renumbered(value)
        elif isinstance(value, list | tuple) and len(value) == cut.num_layers and not _NO_LAYER_LIST.search(key):
            changes[key] = [value[layer] for layer in cut.kept]
        elif isinstance(value, int) and key in _FIRST_LAYERS:
            changes[key] = cut.num_kept_below(value)
        elif isinstance(value, str) and key.endswith("_pattern") and len(value) == cut.num_layers:
            changes[key] = "".join(value[layer] for layer in cut.kept)
        elif isinstance(value, dict) and "layer" in key and value and all(str(name).isdigit() for name in value):
            kept = {str(layer): index for index, layer in enumerate(cut.kept)}
            changes[key] = {str(kept[str(name)]): value[name] for name in value if str(name) in kept}
    return changes


def _holds_layer_numbers(key: str, value: Sequence[Any], num_layers: int) -> bool:
    if key in _NUMBER_LISTS:
        return True
    is_increasing = all(isinstance(item, int) for item in value) and list(value) == sorted(set(value))
    return bool(_LIKE_NUMBER_LIST.search(key)) and is_increasing and len(value) < num_layers
