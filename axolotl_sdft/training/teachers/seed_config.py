"""The configuration of the teacher: that of the seed model, with what this run has set otherwise for the student."""

import copy
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from axolotl_sdft.core.errors import CheckpointError, ConfigError, first_line
from axolotl_sdft.training.teachers.origin import SeedOrigin

LOG = logging.getLogger(__name__)

_BOOKKEEPING = (
    *("_name_or_path", "architectures", "axolotl_sdft_pruning", "dtype", "torch_dtype", "transformers_version"),
    *("quantization_config", "use_cache", "_attn_implementation_autoset", "attn_implementation", "model_type"),
)
"""Settings that say nothing of what the model computes, or that the loader sets."""


def seed_config(base: Any, origin: SeedOrigin | None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return the configuration that the seed model has beside this student. Reads no weights.

    Raises:
        ConfigError: The student has another vocabulary than the seed model, or another setting that does not fit it.
        CheckpointError: The seed model is of another kind.
    """
    changes = dict(_changes(base, trust_remote_code))
    if "vocab_size" in {key[-1] for key in changes}:
        before, now = next(values for key, values in changes.items() if key[-1] == "vocab_size")
        raise ConfigError(
            f"logit_distillation: the student's vocabulary was resized from {before} to {now} tokens, and the seed "
            "model knows nothing of the new ones; remove the added tokens (tokens, special_tokens, "
            "resize_token_embeddings_to_32x), or the logit_distillation block"
        )
    config = copy.deepcopy(base.config) if origin is None else _read(base, origin.seed_dir, trust_remote_code)
    if origin is not None:
        for path, (before, now) in changes.items():
            _set(config, path, before, now)
    _copy_implementations(base.config, config)
    config.use_cache = False
    return config


def _read(base: Any, folder: Path | str, trust_remote_code: bool) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as err:
        raise CheckpointError(f"the settings of the seed model ({folder}) can't be read: {first_line(err)}") from err
    return own_kind(config, base)


def own_kind(config: PreTrainedConfig, base: Any) -> PreTrainedConfig:
    """Return what the student's class takes: of a model that also sees, perhaps its text part.

    Raises:
        CheckpointError: It is of another kind.
    """
    text = config.get_text_config(decoder=True)
    found = next((kind for kind in (config, text) if type(kind).__name__ == type(base.config).__name__), None)
    if found is None:
        raise CheckpointError(
            f"logit_distillation: the seed model is a {config.model_type}, the student a {base.config.model_type}; "
            "they must be of one kind"
        )
    return found


def _changes(base: Any, trust_remote_code: bool) -> Iterator[tuple[tuple[str, ...], tuple[Any, Any]]]:
    """Yield what differs between the student's configuration and the file that it was read from: path, before, now."""
    name = getattr(base.config, "_name_or_path", "") or getattr(base, "name_or_path", "")
    if not name or not (Path(name) / "config.json").is_file():
        return
    before = _read(base, name, trust_remote_code).to_dict()
    yield from _differences(before, base.config.to_dict())


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], tuple[Any, Any]]]:
    for key in sorted(before.keys() | now.keys()):
        if key in _BOOKKEEPING or before.get(key) == now.get(key):
            continue
        old, new = before.get(key), now.get(key)
        if key.endswith("_config") and isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, (*path, key))
        else:
            yield (*path, key), (old, new)


def _set(config: Any, path: tuple[str, ...], before: Any, now: Any) -> None:
    *sections, key = path
    for section in sections:
        config = getattr(config, section)
    if getattr(config, key, None) != before:
        raise ConfigError(
            f"logit_distillation: this run sets {'.'.join(path)} of the student to {now!r}, but the seed model has "
            f"{getattr(config, key, None)!r} there where the pruned one has {before!r}; remove the override "
            "(overrides_of_model_config)"
        )
    setattr(config, key, now)


def _copy_implementations(source: Any, target: Any) -> None:
    """Let the teacher compute attention and experts as the student does, in each of its parts."""
    for key in ("_attn_implementation", "_experts_implementation"):
        if hasattr(source, key):
            setattr(target, key, getattr(source, key))
    for name in getattr(source, "sub_configs", {}):
        parts = getattr(source, name, None), getattr(target, name, None)
        if None not in parts:
            _copy_implementations(*parts)
