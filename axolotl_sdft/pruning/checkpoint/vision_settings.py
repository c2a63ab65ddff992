"""Settings outside the text decoder that name its layers: where a vision tower's features come in."""

from collections.abc import Callable
from typing import Any

from axolotl_sdft.pruning.checkpoint.layer_settings import LayerCut, Settings, UnsoundCutError


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
