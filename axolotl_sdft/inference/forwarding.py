"""Calls a model's forward: with the arguments that it takes, replaced for a while, and when memory runs out."""

import gc
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Forward:
    """A decoder that is run with a cache, of which only the last logits are wanted."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._taken = inspect.signature(innermost(model).forward).parameters
        self._cache_name = "cache" if "cache" in self._taken else "past_key_values"  # its name before transformers 5.24
        self.device = input_device(model)

    def __call__(self, cache: Any, **inputs: Any) -> Tensor:
        """Return the logits of each row's last column, [B, V]; keys and values go into the cache."""
        inputs[self._cache_name] = cache
        if "logits_to_keep" in self._taken:
            inputs["logits_to_keep"] = 1
        placed = {name: self._placed(value) for name, value in inputs.items() if self._takes(name)}
        with attention_of_any_shape():
            return self._model(**placed, use_cache=True).logits[:, -1]

    def _takes(self, name: str) -> bool:
        return name != "position_ids" or name in self._taken  # some models find positions in the mask alone

    def _placed(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else value


@contextmanager
def attention_of_any_shape() -> Iterator[None]:
    """Keep PyTorch off cuDNN's attention while open; the user's own choice comes back.

    On Hopper GPUs recent releases prefer it. It makes a plan for each new shape, which takes tens of milliseconds, and
    when decoding, every step has a new shape.
    """
    was_enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_enabled)


def input_device(model: Any) -> torch.device:
    """Return where a model takes its inputs."""
    embeddings = model.get_input_embeddings()
    device: torch.device = embeddings.weight.device
    if device.type == "meta":  # offloaded: accelerate brings the weights to this device when they are needed
        return torch.device(embeddings._hf_hook.execution_device)
    return device


def innermost(model: Any) -> nn.Module:
    """Return the model inside what an adapter wraps around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def patched_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module do something else while open. What accelerate put on the instance comes back, too."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def free_memory() -> None:
    """Give back what deleted tensors held."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.get_device_module().empty_cache()
