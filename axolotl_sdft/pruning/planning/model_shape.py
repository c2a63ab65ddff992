"""What a model is made of, told from its ``config.json`` alone: its matrices, and what one token leaves behind in them.

The model is built on torch's meta device, where tensors have shapes and no content. What training keeps for the
backward pass is counted there as autograd would save it, so that whatever the layers are made of is counted as
transformers runs it.

Shapes: B rows, H heads, T positions, D numbers of a head.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from axolotl_sdft.core.errors import CheckpointError, first_line
from axolotl_sdft.pruning.checkpoint.architecture import find_layer_prefix, layer_count, num_extra_layers
from axolotl_sdft.pruning.planning.token_costs import TokenCosts, model_without_weights, token_costs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_ATTENTION = "sdft_without_content"
_NUM_TOKENS = 16  # enough that what does not grow with them is no share worth speaking of


@dataclass(frozen=True)
class Matrix:
    """A linear layer of a model."""

    name: str
    """Dotted name of its module, such as ``model.layers.0.self_attn.q_proj``."""
    layer: int | None
    """The decoder layer that it is in, counted from 0; None outside of them."""
    inputs: int
    outputs: int

    @property
    def parameters(self) -> int:
        """How many numbers it holds, without a bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class ModelShape:
    """How large the parts of a model are. Parameters are counts, each tensor counted once."""

    dtype: str
    """What ``activation_bytes`` and ``costs`` were counted in, such as ``bfloat16``."""
    layer_parameters: tuple[int, ...]
    """Parameters of each decoder layer."""
    other_parameters: int
    """Parameters outside of them: embeddings, output head, last norm, the towers of other media."""
    matrices: tuple[Matrix, ...]
    """All linear layers but the output head. These are what bitsandbytes quantizes and what LoRA adapts."""
    hidden_size: int
    vocab_size: int
    activation_bytes: int | None
    """Bytes that one token leaves in one decoder layer for the backward pass, on average, with an attention that never
    holds all pairs of tokens; None where it can't be told."""
    costs: TokenCosts
    fault: str | None = None
    """Why the activations could not be counted."""
    frozen_activation_bytes: int | None = None
    """As ``activation_bytes``, while every weight is frozen and gradients only pass through, as they do with LoRA; what
    LoRA keeps for itself is not in it. None where it can't be told."""

    @property
    def parameters(self) -> int:
        """How many numbers the model holds."""
        return sum(self.layer_parameters) + self.other_parameters

    @property
    def num_layers(self) -> int:
        """How many decoder layers there are."""
        return len(self.layer_parameters)


def read_model_shape(config: Mapping[str, Any], dtype: str) -> ModelShape:
    """Return the shape of the model of a ``config.json``. No weights are read.

    Args:
        config: The content of ``config.json``.
        dtype: Dtype of weights, cache and activations, such as ``bfloat16``.

    Raises:
        CheckpointError: The model can't be built from the file alone, as where it needs code of its own.
    """
    try:
        _register_attention()
        model = model_without_weights(config, dtype, attention=_ATTENTION)
        settings = model.config.get_text_config(decoder=True)
        sizes = (int(settings.hidden_size), int(settings.vocab_size))
        layers, others, matrices = _parts(model, dict(config))
    except Exception as err:  # transformers and model code fail in many ways
        raise CheckpointError(f"the model can't be built from its config.json alone: {first_line(err)}") from err
    activations, fault = _activation_bytes(model, len(layers), are_trained=True)
    frozen, _ = _activation_bytes(model, len(layers), are_trained=False)
    return ModelShape(dtype, layers, others, matrices, *sizes, activations, token_costs(config, dtype), fault, frozen)


def _parts(model: "PreTrainedModel", config: dict[str, Any]) -> tuple[tuple[int, ...], int, tuple[Matrix, ...]]:
    """Return the parameters of each layer, those outside of them, and the matrices."""
    from torch import nn

    parameters = dict(model.named_parameters())  # tied weights stand there once
    prefix = find_layer_prefix(parameters, layer_count(config), num_extra_layers(config))
    layers = [0] * layer_count(config)
    others = 0
    for name, parameter in parameters.items():
        layer = _layer_of(name, prefix)
        if layer is None:
            others += parameter.numel()
        else:
            layers[layer] += parameter.numel()
    head = model.get_output_embeddings()
    matrices = tuple(
        Matrix(name, _layer_of(name, prefix), module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    return tuple(layers), others, matrices


def _layer_of(name: str, prefix: str) -> int | None:
    found = re.match(rf"{re.escape(prefix)}(\d+)\.", name)
    return int(found[1]) if found else None


def _activation_bytes(model: "PreTrainedModel", num_layers: int, *, are_trained: bool) -> tuple[int | None, str | None]:
    """Return what one token leaves in one layer, with every weight trained or none; or None, and why it is unknown."""
    import torch

    body = model.get_decoder()
    if any(parameter.dim() > 2 for parameter in body.parameters()):  # experts, whose weights batched_mm would copy
        try:
            model.set_experts_implementation("grouped_mm")
        except (AttributeError, ValueError) as err:
            return None, first_line(err)
    body.requires_grad_(are_trained)
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, Any] = {}  # holds the storages, or another one might get the same address

    def count(tensor: "Tensor") -> "Tensor":
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    tokens = torch.zeros(1, _NUM_TOKENS, dtype=torch.long, device="meta")
    # Without a trained weight the gradient has to begin somewhere.
    begun = model.get_input_embeddings().register_forward_hook(lambda _module, _args, output: output.requires_grad_())
    try:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            body(input_ids=tokens, use_cache=False)
    except Exception as err:  # as for layers that look at content, such as compiled kernels
        return None, first_line(err)
    finally:
        begun.remove()
        body.requires_grad_(False)
    return round(sum(_sizes(saved.values())) / _NUM_TOKENS / num_layers), None


def _sizes(storages: Iterable[Any]) -> Iterable[int]:
    return (storage.nbytes() for storage in storages)


def _register_attention() -> None:
    """Let transformers know an attention that computes nothing and saves what a fused one does: no matrix of pairs."""
    import torch
    from transformers import AttentionInterface

    class FusedAttention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query_BHTD: "Tensor", key: "Tensor", value: "Tensor") -> "Tensor":
            rows, heads, length, _ = query_BHTD.shape
            output_BTHD = query_BHTD.new_empty(rows, length, heads, value.shape[-1])
            normalizers_BHT = query_BHTD.new_empty(rows, heads, length, dtype=torch.float32)
            ctx.save_for_backward(query_BHTD, key, value, output_BTHD, normalizers_BHT)
            return output_BTHD

        @staticmethod
        def backward(ctx: Any, *gradients: "Tensor") -> Any:
            raise NotImplementedError("this attention is only counted")

    def attend(module: Any, query: "Tensor", key: "Tensor", value: "Tensor", *_: Any, **__: Any) -> Any:
        return FusedAttention.apply(query, key, value), None

    AttentionInterface.register(_ATTENTION, attend)
