"""What a cut saves: layers, parameters, bytes and operations. torch comes with the calls that read them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_sdft.core.model_folder import read_config
from axolotl_sdft.pruning.checkpoint.architecture import (
    find_layer_prefix,
    first_number_prefix,
    layer_count,
    num_extra_layers,
)
from axolotl_sdft.pruning.checkpoint.cut import CheckpointPlan, plan_checkpoint
from axolotl_sdft.pruning.checkpoint.derived_config import TEXT_CONFIGS
from axolotl_sdft.pruning.checkpoint.legacy_files import is_legacy, read_legacy_checkpoint
from axolotl_sdft.pruning.checkpoint.tensor_files import StoredTensor, read_checkpoint
from axolotl_sdft.pruning.planning.token_costs import TokenCosts, token_costs

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_EXPERTS = re.compile(r"(^|\.)experts\.")
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN_COUNTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")


@dataclass(frozen=True)
class Footprint:
    """How large a model is, and what one token costs it; None where it can't be told."""

    num_layers: int
    parameters: int
    """How many numbers the weight files hold."""
    weight_bytes: int
    cache_bytes: int | None
    """Bytes that each token adds to the key-value cache."""
    state_bytes: int | None
    """Bytes of a recurrent state, which does not grow."""
    flops: int | None
    """Operations of the forward pass of one token that attends to nothing but itself; a multiply-add counts two."""


@dataclass(frozen=True)
class Savings:
    """A model before and after layers were cut out."""

    before: Footprint
    after: Footprint
    layer_parameters: tuple[int, ...]
    """Parameters of each layer of the model before."""
    notes: tuple[str, ...]
    """How a figure was come by where it was not measured."""


def read_savings(seed_dir: Path, drop_layers: Sequence[int]) -> Savings:
    """Return what cutting these layers saves, from the seed model's ``config.json`` and tensor headers; no weights are
    read.

    Raises:
        ConfigError: A layer is not there, or none would stay.
        CheckpointError: The source is incomplete, or its architecture can't be cut soundly.
    """
    whole, cut = plan_checkpoint(seed_dir, ()), plan_checkpoint(seed_dir, drop_layers)
    # The seed model's own config.json, since a cut may write out what its config class derives.
    before, note_before = _footprint(whole.num_layers, _tensors(whole), read_config(seed_dir))
    after, note_after = _footprint(cut.num_layers - len(cut.drop_layers), _tensors(cut), cut.config)
    notes = dict.fromkeys(note for note in (note_before, note_after) if note is not None)
    return Savings(before, after, _layer_parameters(whole), tuple(notes))


def count_parameters(seed_dir: Path) -> tuple[int, tuple[int, ...]]:
    """Return how many numbers the weight files of a model hold, and each of its layers; no weights are read.

    Raises:
        CheckpointError: The source is incomplete, or its architecture can't be cut soundly.
    """
    whole = plan_checkpoint(seed_dir, ())
    return whole.parameters_before, _layer_parameters(whole)


def read_footprint(model_dir: Path) -> tuple[Footprint, str | None]:
    """Return how large a checkpoint is, and how a figure was come by where it was not measured.

    It is told from ``config.json`` and tensor headers; no weights are read. The architecture need not be one that can
    be cut.

    Raises:
        CheckpointError: The checkpoint is incomplete.
    """
    config = read_config(model_dir)
    tensors = read_legacy_checkpoint(model_dir) if is_legacy(model_dir) else read_checkpoint(model_dir)[0]
    return _footprint(layer_count(config), tensors, config)


def _tensors(cut: CheckpointPlan) -> list[StoredTensor]:
    return [tensor for _, tensor in cut.tensors]


def _footprint(
    num_layers: int, tensors: Sequence[StoredTensor], config: Mapping[str, Any]
) -> tuple[Footprint, str | None]:
    costs, note = _costs(config, tensors)
    sizes = (sum(tensor.num_parameters for tensor in tensors), sum(tensor.num_bytes for tensor in tensors))
    return Footprint(num_layers, *sizes, costs.cache_bytes, costs.state_bytes, costs.flops), note


def _costs(config: Mapping[str, Any], tensors: Sequence[StoredTensor]) -> tuple[TokenCosts, str | None]:
    costs = token_costs(config, number_format(config, tensors))
    if costs.fault is None:
        return costs, None
    if "quantization_config" in config:
        return costs, f"what one token costs is unknown: the model can't be run without its weights ({costs.fault})"
    estimate = 2 * active_parameters(config, tensors)
    note = f"FLOPs are twice the active parameters: the model can't be run without its weights ({costs.fault})"
    return TokenCosts(None, None, estimate, costs.fault), note


def number_format(config: Mapping[str, Any], tensors: Iterable[StoredTensor]) -> str:
    """Return the format that a checkpoint computes in: what ``config.json`` says, else that of most of its bytes."""
    for level in (config, *_text_configs(config)):
        named = str(level.get("dtype") or level.get("torch_dtype") or "").removeprefix("torch.")
        if named in _DTYPES.values():
            return named
    num_bytes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.dtype in _DTYPES:
            num_bytes[tensor.dtype] = num_bytes.get(tensor.dtype, 0) + tensor.num_bytes
    return _DTYPES[max(num_bytes, key=lambda dtype: num_bytes[dtype])] if num_bytes else "bfloat16"


def active_parameters(config: Mapping[str, Any], tensors: Sequence[StoredTensor]) -> int:
    """Return how many numbers of the matrices one token is multiplied with.

    Of a layer's experts only those chosen for the token count. Embedding and output head have a row for each entry of
    the vocabulary; looking a row up costs nothing, so that only one of the two counts, also when they are one.
    """
    vocabulary = _first(config, ("vocab_size",)) or 0
    experts, chosen = _first(config, _EXPERT_COUNTS), _first(config, _CHOSEN_COUNTS)
    share = chosen / experts if experts and chosen else 1.0
    tables = matrices = 0.0
    for tensor in tensors:
        if len(tensor.shape) == 2 and tensor.shape[0] == vocabulary:
            tables = max(tables, tensor.num_parameters)
        elif len(tensor.shape) >= 2:
            matrices += tensor.num_parameters * (share if _EXPERTS.search(tensor.name) else 1)
    return round(matrices + tables)


def _first(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    """Return the first of these settings that is a number, also of the text decoder."""
    levels = (*_text_configs(config), config)
    return next((level[key] for level in levels for key in keys if isinstance(level.get(key), int)), None)


def _text_configs(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [config[key] for key in TEXT_CONFIGS if isinstance(config.get(key), Mapping)]


def _layer_parameters(whole: CheckpointPlan) -> tuple[int, ...]:
    num_extra = num_extra_layers(whole.config)
    prefix = find_layer_prefix((tensor.name for _, tensor in whole.tensors), whole.num_layers, num_extra)
    counts = [0] * whole.num_layers
    for _, tensor in whole.tensors:
        layer = int(tensor.name[len(prefix) :].split(".", 1)[0]) if first_number_prefix(tensor.name) == prefix else -1
        if 0 <= layer < whole.num_layers:
            counts[layer] += tensor.num_parameters
    return tuple(counts)
