"""Tells whether two checkpoints can be merged: variants of one model, with the same tokens. No torch is imported here.

Row 49152 of one may stand for ``<tool>`` and that of the other for ``<think>``, in checkpoints whose shapes agree.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axolotl_sdft.core.errors import CheckpointError, ConfigError, first_line
from axolotl_sdft.core.model_folder import read_config
from axolotl_sdft.core.trained_on import PRUNED_KEY
from axolotl_sdft.pruning.checkpoint.architecture import layer_count

LOG = logging.getLogger(__name__)

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
    _require_same_pruning(first_dir, first, second_dir, second)
    _require_same_settings(first_dir, second_dir)
    return first


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the settings of a checkpoint as transformers reads them: its defaults, and old keys under new names.

    Code of the model's own is not run: where it, or a newer transformers, defines the settings, they are those that
    ``config.json`` names.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        read: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    except Exception as err:  # each kind of config fails in its own way
        LOG.debug("%s: config.json is taken as it is (%s)", folder, first_line(err))
        return read_config(folder)
    return read


def with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a ``config.json`` that gives this dtype wherever it gives one, in nested parts too."""
    changed = {key: with_dtype(value, dtype) if isinstance(value, dict) else value for key, value in config.items()}
    return changed | {key: dtype for key in ("dtype", "torch_dtype") if key in config}


def _require_plain_weights(folder: Path, config: dict[str, Any]) -> None:
    levels = (config, *(value for value in config.values() if isinstance(value, dict)))
    if any(level.get(key) for level in levels for key in _QUANTIZATION_KEYS):
        raise CheckpointError(
            f"{folder} is quantized, and quantized weights can't be averaged; merge the unquantized models and "
            "quantize the result"
        )


def _require_same_pruning(first_dir: Path, first: dict[str, Any], second_dir: Path, second: dict[str, Any]) -> None:
    if PRUNED_KEY in first and PRUNED_KEY in second and first[PRUNED_KEY] != second[PRUNED_KEY]:
        raise ConfigError(
            f"{first_dir} and {second_dir} were pruned with different settings, so their layers may not be the same "
            f"ones; {SAME_BASE}, or, if the same layers are left, remove {PRUNED_KEY} from one config.json"
        )


def _require_same_settings(first_dir: Path, second_dir: Path) -> None:
    first, second = settings_of(first_dir), settings_of(second_dir)
    key = _first_difference(first, second)
    if key is not None:
        values = (_value_at(first, key), _value_at(second, key))
        raise ConfigError(
            f"config.json says {key}: {values[0]!r} in {first_dir}, but {values[1]!r} in {second_dir}, so the same "
            f"weights would compute something else; {SAME_BASE}"
        )


def _first_difference(first: dict[str, Any], second: dict[str, Any]) -> str | None:
    """Return the dotted key of the first setting that both have and that differs.

    Where one can't be read, a key that is missing there counts as the default.
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


_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
)
_WAY_OUT = (
    "merge models that were trained with the same tokens at the same ids; where reserved tokens were only renamed "
    "(added_tokens_overrides), save the other model with that tokenizer too"
)

Vocabulary = Mapping[str, int]
"""Tokens with their ids."""


def check_same_tokens(first_dir: Path, second_dir: Path) -> None:
    """Return when two folders hold tokenizers that agree in the id of each token, as far as that can be known.

    Chat templates and special roles may differ. The first model's tokenizer becomes the merged model's, so it may know
    more tokens than the second, not less. What can't be compared is logged.

    Raises:
        ConfigError: A token has another id in the second tokenizer, or an id stands for another token there, or the
            first lacks a token. The message names a token and its ids.
    """
    if _digests(first_dir) == _digests(second_dir):
        if not has_tokenizer(first_dir):
            LOG.warning("neither %s nor %s holds a tokenizer, so their tokens are not compared", first_dir, second_dir)
        return
    first, second = _vocabulary(first_dir), _vocabulary(second_dir)
    if first is None or second is None:
        return
    fault = _moved_token(first_dir, first, second_dir, second) or _renamed_token(first_dir, first, second_dir, second)
    if fault is not None:
        raise ConfigError(f"{fault}, so the same row of the embeddings means different tokens; {_WAY_OUT}")
    _check_extra_tokens(first_dir, first, second_dir, second)


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a folder holds files of a tokenizer."""
    return bool(_digests(folder))


def _digests(folder: Path) -> dict[str, str]:
    files = [folder / name for name in _TOKENIZER_FILES]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


def _vocabulary(folder: Path) -> Vocabulary | None:
    """Return what the tokenizer of a folder knows, added tokens among them; None, with a word, where none can be read.

    transformers reads it: what counts is what a user of the merged model will get.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        LOG.warning("%s holds no tokenizer, so its tokens are not compared with those of the other model", folder)
        return None
    try:
        # Code of its own is not run, and not asked about.
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return tokenizer.get_vocab()
    except Exception as err:  # each kind of tokenizer fails in its own way
        LOG.warning(
            "the tokenizer of %s can't be read (%s), so its tokens are not compared with those of the other model",
            *(folder, first_line(err)),
        )
        return None


def _moved_token(first_dir: Path, first: Vocabulary, second_dir: Path, second: Vocabulary) -> str | None:
    """Say which token has two ids, the one with the lowest id in the first vocabulary; None where there is none."""
    moved = [token for token, number in first.items() if second.get(token, number) != number]
    if not moved:
        return None
    token = min(moved, key=first.__getitem__)
    return (
        f"token {token!r} has id {first[token]} in {first_dir}, but {second[token]} in {second_dir}"
        f"{_and_others(len(moved) - 1)}"
    )


def _renamed_token(first_dir: Path, first: Vocabulary, second_dir: Path, second: Vocabulary) -> str | None:
    """Say which id stands for two tokens; None where there is none."""
    names = {number: token for token, number in second.items()}
    renamed = [token for token, number in first.items() if token not in second and number in names]
    if not renamed:
        return None
    token = min(renamed, key=first.__getitem__)
    number = first[token]
    return (
        f"id {number} is token {token!r} in {first_dir}, but {names[number]!r} in {second_dir}"
        f"{_and_others(len(renamed) - 1)}"
    )


def _check_extra_tokens(first_dir: Path, first: Vocabulary, second_dir: Path, second: Vocabulary) -> None:
    """Refuse tokens that only the second tokenizer knows: the merged model would lose their names."""
    lost = [token for token in second if token not in first]
    if lost:
        token = min(lost, key=second.__getitem__)
        raise ConfigError(
            f"token {token!r} has id {second[token]} in {second_dir}, but the tokenizer of {first_dir}, which the "
            f"merged model gets, has no token there{_and_others(len(lost) - 1)}; name the "
            "model that knows it first, with ratio counted from the other end"
        )
    extra = [token for token in first if token not in second]
    if extra:
        LOG.info(
            "%d tokens, such as %r, are known to %s alone; their rows are merged with rows that %s does not use",
            *(len(extra), min(extra, key=first.__getitem__), first_dir, second_dir),
        )


def _and_others(count: int) -> str:
    return f" (and {count} more)" if count else ""
