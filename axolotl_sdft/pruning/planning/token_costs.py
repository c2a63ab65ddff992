"""What one more token costs a model: bytes kept for it, and floating-point operations. No weights are needed.

The model is built from its ``config.json`` on torch's meta device, where a tensor has a shape and no content. It then
runs a few tokens, so that whatever its layers are made of - grouped heads, latent attention, experts, recurrent
states - is counted as transformers runs it.

``python -m axolotl_sdft.pruning.planning.token_costs`` reads a config and a dtype as JSON and prints the costs.
"""

import copy
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from axolotl_sdft.core.errors import first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_CACHE_KEYS = ("cache", "past_key_values", "cache_params", "state")
"""Under which transformers hands out what a model remembers of earlier tokens, and takes it back; newest name first."""

_KERNEL_PACKAGES = ("fla", "mamba_ssm", "causal_conv1d")
"""Compiled kernels of recurrent layers. They must not run on tensors without content: a GPU would read at address 0."""


@dataclass(frozen=True)
class TokenCosts:
    """What a model computes and keeps for one token; None where it can't be told."""

    cache_bytes: int | None
    """Bytes that each token adds to the key-value cache, as long as no sliding window is full."""

    state_bytes: int | None
    """Bytes of a state that does not grow, as recurrent layers have it."""

    flops: int | None
    """Floating-point operations of the forward pass of one token that attends to nothing but itself."""

    fault: str | None = None
    """Why the model could not be run without weights."""


def token_costs(config: Mapping[str, Any], dtype: str) -> TokenCosts:
    """Return what one token costs the model of a ``config.json``; a multiply-add counts as two operations.

    Args:
        config: The content of ``config.json``.
        dtype: Number format of weights and cache, such as ``bfloat16``.
    """
    try:
        return _measured_once(json.dumps(config, sort_keys=True), dtype)
    except Exception as err:  # model code fails in many ways on tensors without content, and for custom code
        return TokenCosts(None, None, None, fault=first_line(err))


@lru_cache(maxsize=64)
def _measured_once(described: str, dtype: str) -> TokenCosts:
    """Measure models of one shape once: a report asks for a pruned model and for each that was trained from it."""
    config = json.loads(described)
    if _is_taken_over(config.get("model_type")):
        return _measured_apart(config, dtype)
    model = model_without_weights(config, dtype)
    return _measured_apart(config, dtype) if _would_use_kernels(model) else _measured(model)


def _is_taken_over(model_type: str | None) -> bool:
    """Say whether a kernel package has put a class of its own in place of the one that transformers has for a type.

    fla does so for Mamba and others once it is imported, which transformers does for any model that it serves.
    """
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return False
    return CONFIG_MAPPING[model_type].__module__.partition(".")[0] in _KERNEL_PACKAGES


def _would_use_kernels(model: "PreTrainedModel") -> bool:
    from torch import nn

    # All layers that these kernels serve slide a short convolution over the tokens.
    is_recurrent = any(isinstance(module, nn.Conv1d) for module in model.modules())
    return is_recurrent and any(importlib.util.find_spec(package) for package in _KERNEL_PACKAGES)


def _measured_apart(config: Mapping[str, Any], dtype: str) -> TokenCosts:
    """Measure in a process that has neither the kernels nor a GPU, and so runs the same layers in plain torch."""
    hidden = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "USE_HUB_KERNELS": "0"}
    run = subprocess.run(
        [sys.executable, "-m", "axolotl_sdft.pruning.planning.token_costs"],
        input=json.dumps([config, dtype]),
        env=os.environ | hidden,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuntimeError((run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1])
    return TokenCosts(**json.loads(run.stdout.splitlines()[-1]))


def main() -> None:
    """Print the costs of the config on standard input, with all compiled kernels hidden from transformers."""
    for package in _KERNEL_PACKAGES:
        sys.modules[package] = None  # type: ignore[assignment]  # what Python itself notes for what can't be imported
    config, dtype = json.load(sys.stdin)
    print(json.dumps(asdict(token_costs(config, dtype))))


def model_without_weights(config: Mapping[str, Any], dtype: str, attention: str = "eager") -> "PreTrainedModel":
    """Return the model of a ``config.json`` on torch's meta device, where tensors have shapes and no content.

    Args:
        config: The content of ``config.json``.
        dtype: Dtype of the weights, such as ``bfloat16``.
        attention: How attention is computed. ``eager`` writes every product out, so that it can be counted.

    Raises:
        Exception: Whatever transformers raises for a type that it does not know, and for custom code.
    """
    import torch
    from transformers import AutoConfig

    settings = copy.deepcopy(dict(config))
    # Packed weights stand for full matrices, which is what a token is multiplied with.
    settings.pop("quantization_config", None)
    built: PretrainedConfig = AutoConfig.for_model(**settings)
    built._attn_implementation = attention
    built._experts_implementation = "batched_mm"  # chooses experts without looking at content
    with torch.device("meta"):
        model: PreTrainedModel = _model_class(built)(built)
    return model.to(getattr(torch, dtype)).eval().requires_grad_(False)


def _model_class(config: "PretrainedConfig") -> Any:
    """Return the class that the checkpoint names, or the first one that transformers has for its type."""
    import transformers

    named = getattr(transformers, (config.architectures or [""])[0], None)
    if named is not None:
        return named
    autos = (
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForImageTextToText,
        transformers.AutoModelForMaskedLM,
    )
    return next(auto._model_mapping[type(config)] for auto in autos if type(config) in auto._model_mapping)


def _measured(model: "PreTrainedModel") -> TokenCosts:
    """Run one token after the other. A step attends to one token more than the step before."""
    cache = _step(model, {})
    if not cache:
        return TokenCosts(None, None, _num_operations(model, {})[1])
    # The first step would mislead: recurrent layers fill whole chunks in it. The second one attends to two tokens.
    cache, second = _num_operations(model, cache)
    bytes_before = _num_bytes(cache)
    cache, third = _num_operations(model, cache)
    cache_bytes = _num_bytes(cache) - bytes_before
    flops = second - (third - second)
    if flops <= 0:
        raise ValueError("its steps are not one token each")
    return TokenCosts(cache_bytes, bytes_before - 2 * cache_bytes, flops)


def _num_operations(model: "PreTrainedModel", cache: dict[str, Any]) -> tuple[dict[str, Any], int]:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        cache = _step(model, cache)
    return cache, counter.get_total_flops()


def _step(model: "PreTrainedModel", cache: dict[str, Any]) -> dict[str, Any]:
    """Run one token after what ``cache`` remembers, and return what is remembered then; empty without a cache."""
    import torch

    caching = {"use_cache": True} if "use_cache" in inspect.signature(model.forward).parameters else {}
    with torch.no_grad():
        output = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device="meta"), **caching, **cache)
    found = list(output)  # from 5.24 on an output answers to the previous names too, with a warning
    return {key: output[key] for key in _CACHE_KEYS if key in found}


def _num_bytes(thing: Any, seen: set[int] | None = None) -> int:
    """Return the bytes of all tensors of floating-point numbers that an object holds, each counted once."""
    import torch

    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, torch.nn.Module | type):
        return 0
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        # Whole numbers are counters, such as how much of a window is filled.
        return thing.numel() * thing.element_size() if thing.is_floating_point() else 0
    if isinstance(thing, Mapping):
        return sum(_num_bytes(item, seen) for item in thing.values())
    if isinstance(thing, Sequence) and not isinstance(thing, str):
        return sum(_num_bytes(item, seen) for item in thing)
    return sum(_num_bytes(item, seen) for item in vars(thing).values()) if hasattr(thing, "__dict__") else 0


if __name__ == "__main__":
    main()
