"""Which layers stay, the settings that say so plainly, and what rules out a cut though no setting of a layer shows
it.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from axolotl_sdft.core.errors import SdftError

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


class UnsoundCutError(SdftError, ValueError):
    """No settings describe what would be left; the text is the reason."""


@dataclass(frozen=True)
class LayerCut:
    """Which of how many layers stay."""

    num_layers: int
    kept: tuple[int, ...]

    @property
    def dropped(self) -> tuple[int, ...]:
        """The removed layers."""
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


def cut_vision_settings(config: Settings, cut: LayerCut) -> Settings:
    """Return the settings of a whole ``config.json``, text decoder aside, that change, with their new values.

    Raises:
        UnsoundCutError: What is left can't be described.
    """
    _require_first_layers(config, cut)
    changes: Settings = {}
    for key, layer_of, with_layer in _TARGETS:
        entries = config.get(key)
        if isinstance(entries, list | tuple):
            changes[key] = [with_layer(entry, cut.num_kept_below(layer_of(entry))) for entry in entries]
    targets = [layer_of(entry) for key, layer_of, _ in _TARGETS for entry in changes.get(key) or ()]
    if len(set(targets)) < len(targets) or any(target >= len(cut.kept) for target in targets):
        raise UnsoundCutError(
            f"features of the vision tower come in before single layers ({' and '.join(changes)}), and several would "
            "come in at once, or none; drop fewer layers between or after them"
        )
    return changes


# Key, how an entry names the layer before which features come in, and the entry with another layer. When that layer
# goes, features come in before the next one that stays, as they do when the layer is skipped.
_TARGETS: tuple[tuple[str, Callable[[Any], int], Callable[[Any, int], Any]], ...] = (
    ("deepstack_layer_map", lambda pair: pair[1], lambda pair, layer: (pair[0], layer)),
    ("spatial_target_layers", lambda entry: entry, lambda _entry, layer: layer),
)


def _require_first_layers(config: Settings, cut: LayerCut) -> None:
    """Refuse a cut of the first layers where the features of as many vision layers are added to their outputs."""
    for nested in config.values():
        features = nested.get("deepstack_visual_indexes") if isinstance(nested, dict) else None
        if features and cut.kept[: len(features)] != tuple(range(len(features))):
            raise UnsoundCutError(
                f"features of the vision tower are added after each of layers 0 to {len(features) - 1} "
                "(deepstack_visual_indexes); keep these, for instance by protect_first"
            )


# What no choice of layers could mend. Each reason completes "can't be cut soundly: ...".
_UNSOUND: tuple[tuple[Callable[[Settings], Any], str], ...] = (
    (lambda c: c.get("is_encoder_decoder"), "it has an encoder and a decoder (is_encoder_decoder)"),
    (lambda c: c.get("num_layers_per_stack"), "its layers form two stacks that run many times (num_layers_per_stack)"),
    (lambda c: c.get("hidden_size_per_layer_input"), "layers share a matrix (hidden_size_per_layer_input)"),
)
_UNSOUND_TYPES = {"minimax": "each layer's decay is computed from its number and from the number of layers"}


def _keeps_first(_settings: Settings, cut: LayerCut) -> bool:
    return 0 in cut.kept


def _keeps_last(_settings: Settings, cut: LayerCut) -> bool:
    return cut.num_layers - 1 in cut.kept


def _keeps_numbers(_settings: Settings, cut: LayerCut) -> bool:
    return cut.only_last_go


def _keeps_hybrids(settings: Settings, cut: LayerCut) -> bool:
    hybrids = [layer for layer, kind in enumerate(settings.get("layers_block_type") or []) if kind == "hybrid"]
    # Which of the shared blocks a hybrid layer is built for comes from its number, modulo how many there are.
    num_blocks = settings.get("num_mem_blocks") or 1
    return all(old in cut.kept and (old - cut.kept.index(old)) % num_blocks == 0 for old in hybrids)


_SHARED_BLOCKS = (
    "its hybrid layers share weights; keep them, and drop a multiple of num_mem_blocks of others before each"
)

# Model types whose code, not whose settings, tells layers apart by number: what must hold, and what to say otherwise.
_TYPES_BY_NUMBER: dict[str, tuple[Callable[[Settings, LayerCut], bool], str]] = {
    "beam": (_keeps_numbers, "each layer's residual scale is computed from its number; drop the last layers only"),
    "diffllama": (_keeps_numbers, "each layer's lambda is computed from its number; drop the last layers only"),
    "gpt_neox_japanese": (_keeps_last, "the last layer alone has a bias; keep it"),
    "modernbert": (_keeps_first, "layer 0 is built differently; keep it"),
    "modernbert-decoder": (_keeps_first, "layer 0 is built differently; keep it"),
    "rwkv": (_keeps_first, "layer 0 alone normalizes what it receives; keep it"),
    "zamba": (_keeps_hybrids, _SHARED_BLOCKS),
    "zamba2": (_keeps_hybrids, _SHARED_BLOCKS),
    "zaya": (_keeps_first, "layer 0 alone routes without the layer before; keep it"),
}


def check_model(settings: Settings, model_types: Collection[str]) -> None:
    """Refuse what no choice of layers could mend.

    Raises:
        UnsoundCutError: The text is the reason.
    """
    reasons = [reason for is_unsound, reason in _UNSOUND if is_unsound(settings)]
    reasons += [_UNSOUND_TYPES[kind] for kind in model_types if kind in _UNSOUND_TYPES]
    if reasons:
        raise UnsoundCutError(reasons[0])


def check_layers(settings: Settings, model_types: Collection[str], cut: LayerCut) -> None:
    """Refuse to drop layers that others can't stand in for.

    Raises:
        UnsoundCutError: The text is the reason.
    """
    for kind in model_types:
        holds, reason = _TYPES_BY_NUMBER.get(kind, (None, ""))
        if holds is not None and not holds(settings, cut):
            raise UnsoundCutError(reason)
