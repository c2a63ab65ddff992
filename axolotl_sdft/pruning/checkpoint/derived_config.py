"""What transformers' own config class makes of a ``config.json``, before and after a cut. Imports transformers.

Layers, their names and the lists with one entry per layer are found from the checkpoint itself. When the config class
derives more from the layer count than was cut, the model can't be cut soundly.
"""

import copy
import logging
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.pruning.checkpoint.layer_rules import cut_settings
from axolotl_sdft.pruning.checkpoint.layer_settings import (
    COUNT_KEYS,
    LAYER_KINDS,
    LayerCut,
    Settings,
    UnsoundCutError,
    check_layers,
    check_model,
    cut_vision_settings,
)

LOG = logging.getLogger(__name__)

TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "global_config")
HARMLESS = (
    "final_w_init_variance_scale",  # for random weights, which a checkpoint has no need of
    "store_full_length_kv",  # marks the last layer of each kind, which matters only to layers that share its keys
)
"""What may follow from a layer's number or from how many there are."""


class RefusedConfigError(CheckpointError):
    """transformers' config class does not take a ``config.json``."""


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
            f"{', '.join(COUNT_KEYS)}, also under {', '.join(TEXT_CONFIGS)}"
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
    check_settings(config, full or config)
    if full is None:
        LOG.warning(
            "transformers has no class for model type %r; lists that its own code derives from the number of layers "
            "are not cut",
            config.get("model_type"),
        )
    return _pruned(config, full, drop_layers)


def reasons_against(config: dict[str, Any], drop_sets: Iterable[Collection[int]]) -> list[str | None]:
    """Return for each set of layers why it can't be removed; None where its ``config.json`` allows it.

    Raises:
        CheckpointError: No layer can go, whichever it is.
    """
    full = derived(config)
    check_settings(config, full or config)
    reasons: list[str | None] = []
    for drop_layers in drop_sets:
        try:
            _pruned(config, full, drop_layers)
            reasons.append(None)
        except CheckpointError as err:
            reasons.append(str(err))
    return reasons


def _pruned(config: dict[str, Any], full: dict[str, Any] | None, drop_layers: Collection[int]) -> dict[str, Any]:
    known = full or config
    num_layers = find_count(known) or count_layers(config)
    cut = LayerCut(num_layers, tuple(layer for layer in range(num_layers) if layer not in drop_layers))
    with _named(config):
        pruned, expected = _cut(config, known, cut)
    if full is not None:
        _check_derives(pruned, expected)
    return pruned


def _cut(config: dict[str, Any], known: dict[str, Any], cut: LayerCut) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ``config`` and all that is ``known`` of it, both as they are with only these layers."""
    path = text_path(known)
    settings = _at(known, path)
    check_layers(settings, _types(config, settings), cut)
    changes, around = cut_settings(settings, cut), cut_vision_settings(known, cut)
    pruned, expected = copy.deepcopy(config), copy.deepcopy(known)
    _at(expected, path).update(changes)
    written = pruned
    for key in path:
        written = written.setdefault(key, {})
    # What the class knows under no such name may be the older name of a list.
    written.update(cut_settings({key: value for key, value in written.items() if key not in settings}, cut))
    has_count = any(key in written for key in COUNT_KEYS)
    written.update({key: changes[key] for key in changes if key in written or key not in COUNT_KEYS or not has_count})
    for whole in (pruned, expected):
        _update_copies(whole, settings, changes)
        whole.update(around)
    return pruned, expected


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
        is_word = value.keys() == {"__float__"}
        return float(value["__float__"]) if is_word else {key: with_floats(item) for key, item in value.items()}
    return [with_floats(item) for item in value] if isinstance(value, list) else value


def text_path(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the keys that lead to the text decoder's settings."""
    for key in TEXT_CONFIGS:
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
    with _named(config):
        for settings in (full, text):
            check_model(settings, _types(config, text))


def _types(config: dict[str, Any], text: dict[str, Any]) -> set[str]:
    return {str(kind) for kind in (config.get("model_type"), text.get("model_type")) if kind}


@contextmanager
def _named(config: dict[str, Any]) -> Iterator[None]:
    """Turn a reason against a cut into an error that names the model type."""
    try:
        yield
    except UnsoundCutError as err:
        raise CheckpointError(f"model type {config.get('model_type')!r} can't be cut soundly: {err}") from None


def _check_derives(pruned: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a ``config.json`` of which transformers' config class makes something else than expected."""
    actual = derived(pruned) or {}
    differing = sorted(_differences(expected, actual))
    if differing:
        with _named(pruned):
            raise UnsoundCutError(f"its config class computes {', '.join(differing)} from the number of layers")


def _differences(expected: Any, actual: Any, path: str = "") -> Iterable[str]:
    if isinstance(expected, dict) and isinstance(actual, dict):
        # With one kind of attention left, transformers mistakes the rotary settings by kind for those of all layers and
        # adds defaults beside them, which no layer reads.
        may_grow = path.endswith("rope_parameters")
        for key in expected.keys() if may_grow else expected.keys() | actual.keys():
            yield from _differences(expected.get(key), actual.get(key), f"{path}.{key}" if path else str(key))
    elif expected != actual and (expected or actual) and path.rpartition(".")[2] not in HARMLESS:
        yield path
