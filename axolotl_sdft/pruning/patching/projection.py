"""Finds the projection of a layer that a linear map can be folded into, by trying it out on the loaded model.

Something is added to the output of one module after the other, last to first. The projection is the linear one with
which the layer's output changes by the same, or by a constant multiple. So whatever the architecture: a layer qualifies
when its output is a sum of what does not depend on the projection and a multiple of the projection's output. That holds
for plain and for parallel layers and with residual multipliers; it does not when the output is normalized first.

Shapes: B rows, T tokens of a row, D hidden size.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from axolotl_sdft.pruning.patching.record import Projection, UnpatchableError
from axolotl_sdft.pruning.scoring.running import evaluating, hidden_of, ids_and_mask, run
from axolotl_sdft.pruning.scoring.scores import Batch

_MAX_PROBE_TOKENS = 16
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
_LOW_PRECISION = 5e-2
_EXPERTS = re.compile(r"(^|[._])(moe|experts?)($|[._])")


def find_projection(model: PreTrainedModel, layers: nn.ModuleList, layer: int, batch: Batch) -> Projection:
    """Return the projection of a layer whose output is added to the hidden states last.

    Args:
        model: The unpruned model.
        layers: Its decoder layers.
        layer: The layer, counted from 0.
        batch: Some text; its first tokens are run a few times.

    Raises:
        UnpatchableError: There is none; the text is the reason.
    """
    if _has_experts(layers[layer]):
        raise UnpatchableError(f"layer {layer} is a mixture of experts, which no single projection ends")
    probe = _Probe(model, layers[layer], _short(model, batch))
    with evaluating(model):
        outputs_BTD = probe.leaf_outputs()
        linear = {path: out for path, out in outputs_BTD.items() if _is_linear(layers[layer].get_submodule(path))}
        found = _last_added(probe, linear)
        if found is None:
            raise UnpatchableError(_why_none(probe, layer, outputs_BTD))
    path, scale = found
    module = layers[layer].get_submodule(path)
    sharing = _names_of(model, module)
    if len(sharing) > 1:
        raise UnpatchableError(f"layer {layer} shares the weight of {path} with {sharing[-1]}")
    return Projection(layer, path, scale, isinstance(module, Conv1D))


def _short(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the first real tokens of the first row and their mask, each [1, T]."""
    ids_BT, mask_BT = ids_and_mask(model, batch)
    ids_1T = ids_BT[:1][mask_BT[:1]][:_MAX_PROBE_TOKENS].unsqueeze(0)
    return ids_1T, torch.ones_like(ids_1T, dtype=torch.bool)


def _has_experts(layer: nn.Module) -> bool:
    named = [(name, type(module).__name__) for name, module in layer.named_modules() if name]
    return any(_EXPERTS.search(name.lower()) or "expert" in kind.lower() for name, kind in named)


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map, also a quantized one of a class of its own."""
    return isinstance(module, nn.Linear | Conv1D) or "Linear" in type(module).__name__


class _Probe:
    """Runs a model on a few tokens and looks at one of its layers."""

    def __init__(self, model: PreTrainedModel, layer: nn.Module, tokens: tuple[Tensor, Tensor]) -> None:
        self._model, self._layer, self._tokens = model, layer, tokens
        self.output_BTD = self._output({})

    def leaf_outputs(self) -> dict[str, Tensor]:
        """Return what the innermost modules gave that ran once and gave hidden states, in the order of their runs."""
        seen: dict[str, Any] = {}
        calls: list[str] = []

        def keep(path: str, output: Any) -> None:
            calls.append(path)
            seen[path] = output

        leaves = [path for path, module in self._layer.named_modules() if path and not any(module.children())]
        self._output({path: partial(keep, path) for path in leaves})
        shape = self.output_BTD.shape
        return {
            path: output
            for path, output in seen.items()
            if isinstance(output, Tensor)
            and calls.count(path) == 1
            and output.shape[-1] == shape[-1]
            and output.numel() == self.output_BTD.numel()
        }

    def added(self, path: str, output_BTD: Tensor) -> float | None:
        """Return the factor with which the output of a module is added to the layer's; None if it is not just added."""
        generator = torch.Generator().manual_seed(11)
        # As large as the token's own hidden states, which may be a thousand times those of the token beside it.
        size_BT1 = self.output_BTD.double().pow(2).mean(-1, keepdim=True).sqrt().clamp(min=1e-12)
        added_BTD = (torch.randn(self.output_BTD.shape, generator=generator) * size_BT1).to(output_BTD.dtype)
        changed_BTD = self._output({path: lambda output: output + added_BTD.view_as(output).to(output.device)})
        effect_BTD = (changed_BTD.double() - self.output_BTD.double()) / size_BT1
        noise_BTD = added_BTD.double() / size_BT1
        scale = float((effect_BTD * noise_BTD).sum() / noise_BTD.pow(2).sum())
        error = float((effect_BTD - scale * noise_BTD).norm() / effect_BTD.norm().clamp(min=1e-30))
        tolerance = _TOLERANCES.get(output_BTD.dtype, _LOW_PRECISION)
        if not error <= tolerance or abs(scale) < tolerance:
            return None
        return 1.0 if abs(scale - 1) <= tolerance else scale

    def _output(self, hooks: dict[str, Callable[[Any], Any]]) -> Tensor:
        """Return the layer's hidden states [B, T, D] while hooks see, and may replace, what its modules give."""
        kept: list[Tensor] = []
        with _watched(self._layer, hooks, lambda output: kept.append(hidden_of(output).detach().cpu().clone())):
            run(self._model.base_model, *self._tokens)
        if len(kept) != 1 or kept[0].dim() != 3:
            raise UnpatchableError("the layer before it does not run once on hidden states [rows, tokens, size]")
        return kept[0]


@contextmanager
def _watched(layer: nn.Module, hooks: dict[str, Callable[[Any], Any]], see: Callable[[Any], None]) -> Iterator[None]:
    handles = [layer.register_forward_hook(lambda _module, _args, output: see(output))]
    for path, hook in hooks.items():
        module = layer.get_submodule(path)
        handles.append(module.register_forward_hook(lambda _module, _args, output, hook=hook: hook(output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _last_added(probe: _Probe, outputs: dict[str, Tensor]) -> tuple[str, float] | None:
    for path, output in reversed(outputs.items()):
        scale = probe.added(path, output)
        if scale is not None:
            return path, scale
    return None


def _why_none(probe: _Probe, layer: int, outputs: dict[str, Tensor]) -> str:
    found = _last_added(probe, outputs)
    last = f"what it adds last comes from {found[0]}" if found is not None else "what it adds is changed once more"
    return f"the output of layer {layer} is more than a sum of its input and a projection: {last}"


def _names_of(model: nn.Module, module: nn.Module) -> list[str]:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter):
        return []
    return [name for name, other in model.named_parameters(remove_duplicate=False) if other is weight]
