"""Tells whether two checkpoints are variants of one model. Reads ``config.json`` only; no torch is imported here."""

import math
from pathlib import Path
from typing import Any

from axolotl_sdft.core.errors import CheckpointError, ConfigError
from axolotl_sdft.pruning.checkpoint.architecture import layer_count
from axolotl_sdft.pruning.checkpoint.cut import PRUNED_KEY, read_config

SAME_BASE = "merge what was trained from the same base"

_QUANTIZATION_KEYS = ("quantization_config", "compression_config")
# What a checkpoint may say otherwise without computing anything else: notes, numbers that only training reads, and
# tokens that only generation does. The vocabulary shows in the tensors, where the way out can be told.
_FREE_KEYS = (
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "vocab_size",
    "pretraining_tp",
)
_FREE_PARTS = ("dropout", "initializer", "token_id", "aux_loss", "output_")
_ROUNDING = 1e-6


def check_same_model(first_dir: Path, second_dir: Path) -> dict[str, Any]:
    """Return the ``config.json`` of the first of two checkpoints that are trained variants of one model.

    Raises:
        ConfigError: They differ in architecture, layers or another setting that shapes what the weights compute.
        CheckpointError: One is quantized, or its ``config.json`` is missing or broken.
    """
    first, second = read_config(first_dir), read_config(second_dir)
    for folder, config in ((first_dir, first), (second_dir, second)):
        _require_plain_weights(folder, config)
    kinds = first.get("model_type"), second.get("model_type")
    if kinds[0] != kinds[1]:
        raise ConfigError(f"{first_dir} is a {kinds[0]} model, {second_dir} a {kinds[1]} one; {SAME_BASE}")
    counts = layer_count(first), layer_count(second)
    if counts[0] != counts[1]:
        raise ConfigError(f"{first_dir} has {counts[0]} layers, {second_dir} {counts[1]}; {SAME_BASE}")
    _require_same_settings(first_dir, first, second_dir, second)
    return first


def with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a ``config.json`` that gives this number format wherever it gives one, in nested parts too."""
    changed = {key: with_dtype(value, dtype) if isinstance(value, dict) else value for key, value in config.items()}
    return changed | {key: dtype for key in ("dtype", "torch_dtype") if key in config}


def _require_plain_weights(folder: Path, config: dict[str, Any]) -> None:
    levels = (config, *(value for value in config.values() if isinstance(value, dict)))
    if any(level.get(key) for level in levels for key in _QUANTIZATION_KEYS):
        raise CheckpointError(
            f"{folder} is quantized, and quantized weights can't be averaged; merge the unquantized models and "
            "quantize the result"
        )


def _require_same_settings(first_dir: Path, first: dict[str, Any], second_dir: Path, second: dict[str, Any]) -> None:
    if PRUNED_KEY in first and PRUNED_KEY in second and first[PRUNED_KEY] != second[PRUNED_KEY]:
        raise ConfigError(
            f"{first_dir} and {second_dir} were pruned with different settings, so their layers may not be the same "
            f"ones; {SAME_BASE}, or, if the same layers are left, remove {PRUNED_KEY} from one config.json"
        )
    key = _first_difference(first, second)
    if key is not None:
        values = (_value_at(first, key), _value_at(second, key))
        raise ConfigError(
            f"config.json says {key}: {values[0]!r} in {first_dir}, but {values[1]!r} in {second_dir}, so the same "
            f"weights would compute something else; {SAME_BASE}"
        )


def _first_difference(first: dict[str, Any], second: dict[str, Any]) -> str | None:
    """Return the dotted key of the first setting that both have and that differs.

    Other versions of transformers write more or fewer keys, so one that is missing counts as the default.
    """
    for key in sorted(first.keys() & second.keys()):
        if key in _FREE_KEYS or key == PRUNED_KEY or any(part in key for part in _FREE_PARTS):
            continue
        ours, theirs = first[key], second[key]
        if isinstance(ours, dict) and isinstance(theirs, dict):
            inner = _first_difference(ours, theirs)
            if inner is not None:
                return f"{key}.{inner}"
        elif not _is_same(ours, theirs):
            return key
    return None


def _is_same(first: Any, second: Any) -> bool:
    if isinstance(first, float) and isinstance(second, float):  # 1e-05 may be 9.999999747378752e-06 elsewhere
        return math.isclose(first, second, rel_tol=_ROUNDING)
    # A setting that is null is one that the config class fills in.
    return first is None or second is None or first == second


def _value_at(config: dict[str, Any], dotted_key: str) -> Any:
    value: Any = config
    for key in dotted_key.split("."):
        value = value[key]
    return value
