"""What transformers' own config class makes of a ``config.json``, before and after a cut. Imports transformers.

Layers, their names and the lists with one entry per layer are found from the checkpoint itself. When the config class
derives more from the layer count than was cut, the model can't be cut soundly.
"""

import copy
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any

from axolotl_sdft.errors import CheckpointError
from axolotl_sdft.pruning.layer_settings import (
    COUNT_KEYS,
    LAYER_KINDS,
    LayerCut,
    Settings,
    UnsoundCutError,
    cut_settings,
)
from axolotl_sdft.pruning.vision_settings import cut_vision_settings

LOG = logging.getLogger(__name__)

_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "global_config")
HARMLESS = (
    "final_w_init_variance_scale",  # for random weights, which a checkpoint has no need of
    "store_full_length_kv",  # marks the last layer of each kind, which matters only to layers that share its keys
)
"""What may follow from a layer's number or from how many there are."""

# What no choice of layers could mend. Each reason completes "can't be cut soundly: ...".
_UNSOUND: tuple[tuple[Callable[[Settings], Any], str], ...] = (
    (lambda c: c.get("is_encoder_decoder"), "it has an encoder and a decoder (is_encoder_decoder)"),
    (lambda c: c.get("num_layers_per_stack"), "its layers form two stacks that run many times (num_layers_per_stack)"),
    (lambda c: c.get("hidden_size_per_layer_input"), "layers share a matrix (hidden_size_per_layer_input)"),
    (
        lambda c: c.get("num_layers_per_stack"),
        "its layers stand in two stacks and run many times (num_layers_per_stack)",
    ),
)
_UNSOUND_TYPES = {"minimax": "each layer's decay is computed from its number and from the number of layers"}


class RefusedConfigError(CheckpointError):
    """transformers' config class does not take a ``config.json``."""


def _keeps_first(_settings: Settings, cut: LayerCut) -> bool:
    return 0 in cut.kept


def _keeps_last(_settings: Settings, cut: LayerCut) -> bool:
    return cut.num_layers - 1 in cut.kept


def _keeps_numbers(_settings: Settings, cut: LayerCut) -> bool:
    return cut.only_last_go


def _keeps_hybrids(settings: Settings, cut: LayerCut) -> bool:
    kinds = settings.get("layers_block_type") or []
    return not any(kind == "hybrid" for layer, kind in enumerate(kinds) if layer in cut.dropped)


# Model types whose code, not whose settings, tells layers apart by number: what must hold, and what to say otherwise.
_TYPES_BY_NUMBER: dict[str, tuple[Callable[[Settings, LayerCut], bool], str]] = {
    "diffllama": (_keeps_numbers, "each layer's lambda is computed from its number; drop the last layers only"),
    "gpt_neox_japanese": (_keeps_last, "the last layer alone has a bias; keep it"),
    "modernbert": (_keeps_first, "layer 0 is built differently; keep it"),
    "modernbert-decoder": (_keeps_first, "layer 0 is built differently; keep it"),
    "rwkv": (_keeps_first, "layer 0 alone normalizes what it receives; keep it"),
    "zamba": (_keeps_hybrids, "its hybrid layers share weights; drop others only"),
    "zamba2": (_keeps_hybrids, "its hybrid layers share weights; drop others only"),
    "zaya": (_keeps_first, "layer 0 alone routes without the layer before; keep it"),
}


def find_count(config: dict[str, Any]) -> int | None:
    """Return how many layers the text decoder has, if ``config`` says so."""
    level = _at(config, text_path(config))
    count = next((level[key] for key in COUNT_KEYS if isinstance(level.get(key), int)), None)
    return count or next((len(level[key]) for key in LAYER_KINDS if isinstance(level.get(key), list)), None)


def count_layers(config: dict[str, Any]) -> int:
    """Return how many layers the text decoder has, by its config class where the file says nothing.

    Raises:
        CheckpointError: Neither says.
    """
    count = find_count(derived(config) or config)
    if count is None:
        raise CheckpointError(
            f"config.json of model type {config.get('model_type')!r} gives no layer count; looked for "
            f"{', '.join(COUNT_KEYS)}, also under {', '.join(_TEXT_CONFIGS)}"
        )
    return count


def check(config: dict[str, Any]) -> None:
    """Refuse architectures of which no layer can go.

    Raises:
        CheckpointError: The message holds the reason.
    """
    check_settings(config, derived(config) or config)


def prune(config: dict[str, Any], drop_layers: Collection[int]) -> dict[str, Any]:
    """Return a ``config.json`` without these layers. Lists that its config class would derive are written out.

    Raises:
        CheckpointError: The architecture can't be cut soundly, with the reason.
    """
    full = derived(config)
    level, pruned = full or config, copy.deepcopy(config)
    check_settings(config, level)
    num_layers = find_count(level) or count_layers(config)
    cut = LayerCut(num_layers, tuple(layer for layer in range(num_layers) if layer not in drop_layers))
    path = text_path(level)
    settings = _at(level, path)
    changes = _changes(config, settings, cut)
    around = _changes_around(config, level, cut)
    written = pruned
    for key in path:
        written = written.setdefault(key, {})
    # What the class knows under no such name may be the older name of a list.
    written.update(_changes(config, {key: value for key, value in written.items() if key not in settings}, cut))
    has_count = any(key in written for key in COUNT_KEYS)
    written.update(
        {key: value for key, value in changes.items() if key in written or key not in COUNT_KEYS or not has_count}
    )
    _update_copies(pruned, settings, changes)
    pruned.update(around)
    if full is None:
        LOG.warning(
            "transformers has no class for model type %r; lists that its own code derives from the number of layers "
            "are not cut",
            config.get("model_type"),
        )
        return pruned
    expected = copy.deepcopy(full)
    _at(expected, path).update(changes)
    _update_copies(expected, settings, changes)
    expected.update(around)
    _check_derives(pruned, expected)
    return pruned


def _update_copies(config: dict[str, Any], settings: Settings, changes: Settings) -> None:
    """Change what the top level repeats from the text decoder's settings."""
    copies = {key for key in changes if key in config and config[key] == settings.get(key)}
    config.update({key: changes[key] for key in copies})


def derived(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return all that transformers' config class makes of a ``config.json``; None when it knows no such class.

    Raises:
        CheckpointError: The class refuses it.
    """
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        return None
    try:
        return CONFIG_MAPPING[model_type].from_dict(with_floats(config)).to_dict()
    except Exception as err:  # transformers raises many kinds for a config that does not fit together
        raise RefusedConfigError(f"transformers refuses config.json of model type {model_type!r}: {err}") from err


def with_floats(value: Any) -> Any:
    """Return a copy in which the words that transformers writes for infinities and NaN are numbers."""
    if isinstance(value, dict):
        return (
            float(value["__float__"])
            if value.keys() == {"__float__"}
            else {k: with_floats(v) for k, v in value.items()}
        )
    return [with_floats(item) for item in value] if isinstance(value, list) else value


def text_path(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the keys that lead to the text decoder's settings."""
    for key in _TEXT_CONFIGS:
        nested = config.get(key)
        if isinstance(nested, dict) and any(isinstance(nested.get(count), int) for count in COUNT_KEYS):
            return (key,)
    return ()


def _at(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for key in path:
        config = config[key]
    return config


def check_settings(config: dict[str, Any], full: dict[str, Any]) -> None:
    """Refuse what no choice of layers could mend, by ``full``: all that is known of ``config``.

    Raises:
        CheckpointError: The message holds the reason.
    """
    text = _at(full, text_path(full))
    reasons = [reason for is_unsound, reason in _UNSOUND if is_unsound(full) or is_unsound(text)]
    reasons += [_UNSOUND_TYPES[kind] for kind in _types(config, text) if kind in _UNSOUND_TYPES]
    if reasons:
        raise _unsound(config, reasons[0])


def _types(config: dict[str, Any], text: dict[str, Any]) -> set[str]:
    return {str(kind) for kind in (config.get("model_type"), text.get("model_type")) if kind}


def _changes(config: dict[str, Any], settings: Settings, cut: LayerCut) -> Settings:
    for kind in _types(config, settings) & _TYPES_BY_NUMBER.keys():
        holds, reason = _TYPES_BY_NUMBER[kind]
        if not holds(settings, cut):
            raise _unsound(config, reason)
    try:
        return cut_settings(settings, cut)
    except UnsoundCutError as err:
        raise _unsound(config, str(err)) from None


def _changes_around(config: dict[str, Any], full: dict[str, Any], cut: LayerCut) -> Settings:
    try:
        return cut_vision_settings(full, cut)
    except UnsoundCutError as err:
        raise _unsound(config, str(err)) from None


def _unsound(config: dict[str, Any], reason: str) -> CheckpointError:
    return CheckpointError(f"model type {config.get('model_type')!r} can't be cut soundly: {reason}")


def _check_derives(pruned: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a ``config.json`` of which transformers' config class makes something else than expected."""
    actual = derived(pruned) or {}
    differing = sorted(_differences(expected, actual))
    if differing:
        raise _unsound(pruned, f"its config class computes {', '.join(differing)} from the number of layers")


def _differences(expected: Any, actual: Any, path: str = "") -> Iterable[str]:
    if isinstance(expected, dict) and isinstance(actual, dict):
        # With one kind of attention left, transformers mistakes the rotary settings by kind for those of all layers and
        # adds defaults beside them, which no layer reads.
        may_grow = path.endswith("rope_parameters")
        for key in expected.keys() if may_grow else expected.keys() | actual.keys():
            yield from _differences(expected.get(key), actual.get(key), f"{path}.{key}" if path else str(key))
    elif expected != actual and (expected or actual) and path.rpartition(".")[2] not in HARMLESS:
        yield path
