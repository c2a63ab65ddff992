"""What a pruned model's ``config.json`` and tensor names must say. No torch is imported here.

Layers, their names and the lists with one entry per layer are found from the checkpoint itself. transformers' own
config class then says what it derives from the old and from the new ``config.json``: when more differs than the layer
count and those lists, the model can't be cut soundly.
"""

import copy
import logging
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from axolotl_sdft.errors import CheckpointError

LOG = logging.getLogger(__name__)

COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
_OTHER_MODALITIES = re.compile(r"(^|[._])(vision|visual|image|vit|audio|speech|video)")
_INDEX_LISTS = ("moe_layers", "mlp_only_layers", "full_attn_idxs", "attn_layer_indices", "cross_attention_layers")
"""Lists that hold the numbers of layers, instead of one entry for each."""
_TOKENS_OR_CLASSES = ("architectures", "_token_id", "_token_ids")

# What ties a layer to its own number, or to other layers, in a way that cutting would change. Each reason completes
# "can't be cut soundly: ...".
_UNSOUND: tuple[tuple[Callable[[dict[str, Any]], Any], str], ...] = (
    (lambda c: c.get("is_encoder_decoder"), "it has an encoder and a decoder (is_encoder_decoder)"),
    (lambda c: c.get("num_kv_shared_layers"), "layers use keys and values of others (num_kv_shared_layers)"),
    (lambda c: c.get("hidden_size_per_layer_input"), "layers share a matrix (hidden_size_per_layer_input)"),
    (lambda c: c.get("first_k_dense_replace"), "the first layers differ by number (first_k_dense_replace)"),
    (lambda c: c.get("num_dense_layers"), "the first layers differ by number (num_dense_layers)"),
    (lambda c: (c.get("decoder_sparse_step") or 1) != 1, "experts come every few layers (decoder_sparse_step)"),
    (lambda c: c.get("mlp_only_layers"), "layers without experts are named by number (mlp_only_layers)"),
    (lambda c: (c.get("interleave_moe_layer_step") or 1) != 1, "experts alternate (interleave_moe_layer_step)"),
    (lambda c: (c.get("moe_layer_interval") or 1) != 1, "experts come every few layers (moe_layer_interval)"),
    (lambda c: c.get("moe_layer_start_index"), "experts start at a layer number (moe_layer_start_index)"),
    (lambda c: c.get("cross_attention_layers"), "cross-attention sits at layer numbers (cross_attention_layers)"),
    (
        lambda c: c.get("scale_attn_by_inverse_layer_idx"),
        "attention is scaled by the layer's number (scale_attn_by_inverse_layer_idx)",
    ),
    (
        lambda c: c.get("use_sliding_window") and "max_window_layers" in c and not c.get("layer_types"),
        "sliding windows start at a layer number (max_window_layers) and no layer_types can say so",
    ),
)
_UNSOUND_TYPES = {
    "diffllama": "each layer's lambda is computed from its number",
    "minicpm3": "the residual scale is computed from the number of layers",
    "minimax": "each layer's decay is computed from its number",
    "modernbert": "layer 0 is built differently",
    "modernbert-decoder": "layer 0 is built differently",
    "rwkv": "weights are rescaled by the layer's number",
    "zamba": "layers share weights",
    "zamba2": "layers share weights",
}


def layer_count(config: dict[str, Any]) -> int:
    """Return how many layers the text decoder of a ``config.json`` has.

    Raises:
        CheckpointError: It does not say.
    """
    full = _derived(config) or config
    level = _at(full, _text_path(full))
    count = next((level[key] for key in COUNT_KEYS if isinstance(level.get(key), int)), None)
    if count is None:
        raise CheckpointError(
            f"config.json of model type {config.get('model_type')!r} gives no layer count; looked for "
            f"{', '.join(COUNT_KEYS)}, also under {', '.join(_TEXT_CONFIGS)}"
        )
    return count


def check_can_be_cut(config: dict[str, Any]) -> None:
    """Refuse architectures in which a layer depends on its number or on layers that may go.

    Raises:
        CheckpointError: The message holds the reason.
    """
    full = _derived(config) or config
    text = _at(full, _text_path(full))
    model_type = text.get("model_type") or config.get("model_type")
    reasons = [reason for is_unsound, reason in _UNSOUND if is_unsound(full) or is_unsound(text)]
    reasons += [_UNSOUND_TYPES[model_type]] if model_type in _UNSOUND_TYPES else []
    quantization = config.get("quantization_config") or {}
    if any(re.search(r"\.\d+(\.|$)", name) for name in _texts(quantization)):
        reasons.append("quantization_config names layers by number")
    if reasons:
        raise CheckpointError(f"model type {config.get('model_type')!r} can't be cut soundly: {reasons[0]}")


def prune_config(config: dict[str, Any], drop_layers: Collection[int]) -> dict[str, Any]:
    """Return a ``config.json`` without these layers: the count and every list with an entry per layer follow.

    Lists that transformers' config class would derive from the layer count are written out.

    Raises:
        CheckpointError: The architecture can't be cut soundly, with the reason.
    """
    check_can_be_cut(config)
    num_layers = layer_count(config)
    kept = [layer for layer in range(num_layers) if layer not in drop_layers]
    full = _derived(config)
    pruned = copy.deepcopy(config)
    if full is None:
        LOG.warning(
            "transformers has no class for model type %r; lists that its own code derives from the number of layers "
            "are not cut",
            config.get("model_type"),
        )
        _cut_level(_at(pruned, _text_path(pruned)), num_layers, kept)
        return pruned
    path = _text_path(full)
    expected = copy.deepcopy(full)
    cut = _cut_level(_at(expected, path), num_layers, kept)
    written = pruned
    for key in path:
        written = written.setdefault(key, {})
    _cut_level(written, num_layers, kept)
    written.update({key: value for key, value in cut.items() if key not in COUNT_KEYS})
    if not any(key in written for key in COUNT_KEYS):
        written.update({key: value for key, value in cut.items() if key in COUNT_KEYS})
    _check_derives(pruned, expected)
    return pruned


def first_number_prefix(name: str) -> str | None:
    """Return what comes before the first number in a dotted name: ``model.layers.`` of ``model.layers.3.mlp.up``."""
    match = re.match(r"(.*?)(?<![^.])\d+\.", name)
    return match[1] if match else None


def is_text_path(name: str) -> bool:
    """Tell whether a dotted name belongs to no other modality, such as ``vision_tower``."""
    return not _OTHER_MODALITIES.search(name)


def find_layer_prefix(names: Iterable[str], num_layers: int) -> str:
    """Return what comes before the layer number in the tensor names of the text decoder.

    It is the one prefix that comes with exactly the numbers 0 to ``num_layers`` - 1.

    Raises:
        CheckpointError: There is none, or more than one.
    """
    numbers: dict[str, set[int]] = {}
    for name in names:
        prefix = first_number_prefix(name)
        if prefix is not None:
            numbers.setdefault(prefix, set()).add(int(name[len(prefix) :].split(".", 1)[0]))
    found = [prefix for prefix in numbers if numbers[prefix] == set(range(num_layers))]
    if len(found) > 1:
        found = [prefix for prefix in found if is_text_path(prefix)]
    if len(found) == 1:
        return found[0]
    seen = ", ".join(f"{prefix}0 to {prefix}{max(numbers[prefix])}" for prefix in sorted(numbers)) or "no numbers"
    raise CheckpointError(
        f"config.json says {num_layers} layers, but {'several groups' if found else 'no group'} of tensor names "
        f"counts 0 to {num_layers - 1}; the names hold: {seen}"
    )


def renamed(name: str, prefix: str, kept: Sequence[int]) -> str | None:
    """Return a tensor's name after the cut, or None when its layer goes. ``kept`` are the layers that stay."""
    if not name.startswith(prefix) or first_number_prefix(name) != prefix:
        return name
    number, _, rest = name[len(prefix) :].partition(".")
    return f"{prefix}{kept.index(int(number))}.{rest}" if int(number) in kept else None


def _derived(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return all that transformers' config class makes of a ``config.json``; None when it knows no such class."""
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        return None
    try:
        derived = CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(config)).to_dict()
    except Exception as err:  # transformers raises many kinds for a config that does not fit together
        raise CheckpointError(f"transformers refuses config.json of model type {model_type!r}: {err}") from err
    return derived


def _text_path(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the keys that lead to the text decoder's settings."""
    nested = [key for key in _TEXT_CONFIGS if isinstance(config.get(key), dict)]
    if any(key in config for key in COUNT_KEYS) or not nested:
        return ()
    return (nested[0],)


def _at(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for key in path:
        config = config[key]
    return config


def _cut_level(level: dict[str, Any], num_layers: int, kept: Sequence[int]) -> dict[str, Any]:
    """Cut the count and the per-layer lists of one level in place; return what changed."""
    changed: dict[str, Any] = {}
    for key, value in level.items():
        if key in COUNT_KEYS and value == num_layers:
            changed[key] = len(kept)
        elif isinstance(value, list) and key in _INDEX_LISTS:
            changed[key] = [kept.index(layer) for layer in value if layer in kept]
        elif isinstance(value, list) and len(value) == num_layers and not key.endswith(_TOKENS_OR_CLASSES):
            changed[key] = [value[layer] for layer in kept]
    level.update(changed)
    return changed


def _check_derives(pruned: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a ``config.json`` of which transformers' config class makes something else than expected."""
    actual = _derived(pruned) or {}
    differing = sorted(_differences(expected, actual))
    if differing:
        raise CheckpointError(
            f"model type {pruned.get('model_type')!r} can't be cut soundly: its config class computes "
            f"{', '.join(differing)} from the number of layers"
        )


def _differences(expected: Any, actual: Any, path: str = "") -> Iterable[str]:
    if isinstance(expected, dict) and isinstance(actual, dict):
        # With one kind of attention left, transformers mistakes the rotary settings by kind for those of all layers and
        # adds defaults beside them, which no layer reads.
        may_grow = path.endswith("rope_parameters")
        for key in expected.keys() if may_grow else expected.keys() | actual.keys():
            yield from _differences(expected.get(key), actual.get(key), f"{path}.{key}" if path else str(key))
    elif expected != actual:
        yield path


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
