"""Runs the body of a model on one micro-batch, whole or with some of its layers left out.

Shapes: B rows, T tokens of a row, D hidden size.

Shapes: B rows, T tokens of a row, D hidden size.
"""

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.inference.forwarding import patched_forward
from axolotl_sdft.pruning.scoring.scores import Batch, TokenReduction


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Run without dropout and gradients while open; every module's own mode comes back.

    Modules of packed weights keep their mode: they have no dropout, and on a CPU those of bitsandbytes pack themselves
    anew for inference as soon as they run in evaluation mode, which makes the gradients of a later training wrong.
    """
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = module.training and _has_packed_weights(module)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _has_packed_weights(module: nn.Module) -> bool:
    return any(not parameter.is_floating_point() for parameter in module.parameters(recurse=False))


def ids_and_mask(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return ``input_ids`` and the boolean mask of real tokens, each [B, T], where the model takes them."""
    device = _input_device(model)
    ids_BT = batch["input_ids"].to(device)
    if "attention_mask" not in batch:
        return ids_BT, torch.ones_like(ids_BT, dtype=torch.bool)
    return ids_BT, batch["attention_mask"].to(device).bool()


def counted_tokens(mask_BT: Tensor, token_reduction: TokenReduction) -> Tensor:
    """Mark the tokens that count, [B, T]: all real ones, or the last real one of each row that has any."""
    if token_reduction == "all":
        return mask_BT
    positions_BT = torch.arange(mask_BT.shape[1], device=mask_BT.device) * mask_BT
    last_BT = torch.zeros_like(mask_BT).scatter_(1, positions_BT.argmax(1, keepdim=True), True)
    return last_BT & mask_BT


def run(model: nn.Module, ids_BT: Tensor, mask_BT: Tensor) -> Any:
    """Run a model, or its body alone, and return what it returns; nothing is cached."""
    taken = inspect.signature(model.forward).parameters
    extra: dict[str, Any] = {"use_cache": False} if "use_cache" in taken else {}
    if "position_ids" in taken and not _counts_positions_itself(model):
        extra |= _positions(mask_BT)
    return model(input_ids=ids_BT, attention_mask=mask_BT.long(), **extra)


def hidden_of(output: Any) -> Tensor:
    """Return the hidden states in what a layer returns: a tensor, or a tuple that begins with one."""
    return output[0] if isinstance(output, tuple) else output


def hidden_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | str:
    """Return where a layer's hidden states are among its arguments: a position, or a name.

    Raises:
        CheckpointError: No argument is a tensor of hidden states.
    """
    named = {"hidden_states": kwargs["hidden_states"]} if "hidden_states" in kwargs else kwargs
    places: list[tuple[int | str, Any]] = [*enumerate(args), *named.items()]
    for place, value in places:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 3:
            return place
    raise CheckpointError(
        "a layer of the model gets no hidden states of the form [rows, tokens, size]; name the layers in "
        "layer_pruning.drop_layers"
    )


def _input_device(model: PreTrainedModel) -> torch.device:
    embeddings = model.get_input_embeddings()
    device = embeddings.weight.device
    if device.type == "meta":  # offloaded: accelerate brings the weights to this device when they are needed
        return torch.device(embeddings._hf_hook.execution_device)
    return device


def _counts_positions_itself(model: nn.Module) -> bool:
    """Whether the model finds its padding by token id, as RoBERTa does; its positions start at another number."""
    return any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules())


def _positions(mask_BT: Tensor) -> dict[str, Tensor]:
    """Count positions from the first real token where rows are padded on the left, which models don't do alone."""
    if mask_BT[:, 0].all():
        return {}
    return {"position_ids": (mask_BT.long().cumsum(1) - 1).clamp(min=0)}


class LayerSwitch:
    """What the layers of a model are to do on the next run; made by :func:`switched`."""

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self.num_runs = 0
        """How many layers have run so far."""
        self._extras = [-1] * num_layers
        """How many elements follow the hidden states in what each layer returns; -1 for a plain tensor."""
        self._skipped: Collection[int] = ()
        self._start = 0
        self._start_BTD: Tensor | None = None
        self._held_layer = -1
        self._held_BTD: Tensor | None = None

    def set_run(self, skipped: Collection[int], hold: int = -1, resume: int = 0) -> None:
        """Say which layers the next run skips, and whose input is kept for a later one.

        Args:
            skipped: Layers that hand on what they receive.
            hold: The layer whose input is kept.
            resume: Start at this layer, from its input that the run before has kept; what is below does nothing.
        """
        self._skipped, self._held_layer = skipped, hold
        self._start, self._start_BTD, self._held_BTD = resume, self._held_BTD if resume else None, None

    def forward_of(self, index: int, own: Callable[..., Any]) -> Callable[..., Any]:
        """Return what a layer does instead of its ``own`` forward."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            place = hidden_argument(args, kwargs)
            hidden_BTD = args[place] if isinstance(place, int) else kwargs[place]
            if index < self._start:
                return self._handed_on(index, hidden_BTD)
            if index == self._start and self._start_BTD is not None:
                hidden_BTD, self._start_BTD = self._start_BTD, None
            if index == self._held_layer:
                self._held_BTD = hidden_BTD.clone()  # a later layer may write into its input
            if index in self._skipped:
                return self._handed_on(index, hidden_BTD)
            return self._run(index, own, *_with_hidden(args, kwargs, place, hidden_BTD))

        return forward

    def _run(self, index: int, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.num_runs += 1
        output = own(*args, **kwargs)
        self._extras[index] = len(output) - 1 if isinstance(output, tuple) else -1
        return output

    def _handed_on(self, index: int, hidden_BTD: Tensor) -> Any:
        extras = self._extras[index]
        return hidden_BTD if extras < 0 else (hidden_BTD, *[None] * extras)


@contextmanager
def switched(layers: nn.ModuleList) -> Iterator[LayerSwitch]:
    """Give a switch over these layers, which do as before when it closes.

    The first run must skip none: it shows in what form each layer returns its hidden states.
    """
    switch = LayerSwitch(len(layers))
    with ExitStack() as patches:
        for index, layer in enumerate(layers):
            patches.enter_context(patched_forward(layer, switch.forward_of(index, layer.forward)))
        yield switch


def _with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: int | str, hidden_BTD: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(place, int):
        return (*args[:place], hidden_BTD, *args[place + 1 :]), kwargs
    return args, kwargs | {place: hidden_BTD}
