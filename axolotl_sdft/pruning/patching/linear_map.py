"""The linear map of a cut: the projection that it can be folded into, and its least-squares fit from sums over tokens.

To find it, something is added to the output of one module after the other, last to first. The projection is the linear
one with which the layer's output changes by the same, or by a constant multiple. So whatever the architecture: a layer
qualifies when its output is a sum of what does not depend on the projection and a multiple of the projection's output.
That holds for plain and for parallel layers and with residual multipliers; it does not when the output is normalized
first.

With M the projection's output, H the output of its layer and E the output of the last removed layer, a token is right
after the cut when M T + (H - M) = E. So T = I + D, where M D should be E - H. A ridge pulls D to zero.

A few tokens, attention sinks, have outputs a thousand times larger than all others. Within the fit they would outweigh
everything; outside it, the map would do anything to them, and they hold the model together. So they are left out, and D
reads nothing along their directions V: T = I + (I - V V^T) D. A token that becomes a sink only in the removed layers is
left out as well. Its output before the cut is an ordinary one, so it has no direction to spare.

Shapes: B rows, T tokens of a row, N tokens, D hidden size, K directions.
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
    with evaluating(model):  # from the first run on: quantized weights give slightly other outputs with gradients
        probe = _Probe(model, layers[layer], _short(model, batch))
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


SINK_FACTOR = 20.0
"""A token counts as a sink when the norm of its output, or of its change, is more than this many times the median."""
RIDGE = 1e-3
"""Weight of the ridge, as a share of the mean square of the projection's outputs."""

_MAX_SINKS = 1024
_MAX_DIRECTIONS = 16


class FitSums:
    """What is kept of the tokens of one cut: two [D, D] matrices, all norms, and the few sinks."""

    def __init__(self, width: int, device: torch.device) -> None:
        """Start with no tokens; the matrices are on ``device``, which has float64."""
        self.device = device
        self._products_DD = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._targets_DD = torch.zeros_like(self._products_DD)
        self._norms: list[Tensor] = []
        self._change_norms: list[Tensor] = []
        self._sinks: list[Tensor] = []
        self.num_tokens = 0
        """Tokens in the sums, sinks not among them."""
        self.num_sinks = 0

    def add(self, outputs_ND: Tensor, changes_ND: Tensor) -> None:
        """Add tokens: the projection's outputs M and what the removed layers add, E - H, each [N, D].

        Which of them are sinks is told from the median norm of the tokens so far, so the first should be many.
        """
        outputs_ND, changes_ND = (part.to(self._products_DD) for part in (outputs_ND, changes_ND))
        is_sink_N = _is_extreme(outputs_ND, self._norms)
        if len(self._sinks) < _MAX_SINKS:
            self._sinks += outputs_ND[is_sink_N].cpu().unbind()
        is_sink_N |= _is_extreme(changes_ND, self._change_norms)
        self.num_sinks += int(is_sink_N.sum())
        outputs_ND, changes_ND = outputs_ND[~is_sink_N], changes_ND[~is_sink_N]
        self._products_DD += outputs_ND.T @ outputs_ND
        self._targets_DD += outputs_ND.T @ changes_ND
        self.num_tokens += len(outputs_ND)

    def add_states(self, outputs_ND: Tensor, scale: float, hidden_ND: Tensor, end_ND: Tensor) -> None:
        """Add tokens by what was seen: the projection's outputs and their factor, H and E, on any devices."""
        wide = [part.to(self.device).double() for part in (outputs_ND, hidden_ND, end_ND)]
        self.add(wide[0] * scale, wide[2] - wide[1])

    def correction(self, ridge: float = RIDGE) -> tuple[Tensor, int]:
        """Return T - I, [D, D] in float64 on the CPU, and along how many directions of the sinks it does nothing."""
        products_DD, targets_DD = self._products_DD.cpu(), self._targets_DD.cpu()
        directions_DK = self.sink_directions()
        products_DD = _without(directions_DK, _without(directions_DK, products_DD).T)
        targets_DD = _without(directions_DK, targets_DD)
        strength = ridge * float(products_DD.diagonal().mean()) or 1.0  # all outputs are 0: the map is the identity
        products_DD.diagonal().add_(strength)
        solved_DD = torch.cholesky_solve(targets_DD, torch.linalg.cholesky(products_DD))
        return _without(directions_DK, solved_DD), directions_DK.shape[1]

    def sink_directions(self) -> Tensor:
        """Return the directions [D, K] that the sinks lie along, up to what an ordinary token has of any direction."""
        width = len(self._products_DD)
        if not self._sinks:
            return torch.zeros(width, 0, dtype=torch.float64)
        sinks_ND = torch.stack(self._sinks)
        allowed = float(torch.cat(self._norms).median())
        _, _, right_KD = torch.linalg.svd(sinks_ND, full_matrices=False)
        for count in range(1, min(len(right_KD), _MAX_DIRECTIONS) + 1):
            directions_DK = right_KD[:count].T
            left_DN = _without(directions_DK, sinks_ND.T)
            if float(left_DN.norm(dim=0).max()) <= allowed:
                break
        return directions_DK


def _is_extreme(vectors_ND: Tensor, known_norms: list[Tensor]) -> Tensor:
    """Return which tokens are sinks, [N], by the median norm of all tokens so far; their norms join the known ones."""
    norms_N = vectors_ND.norm(dim=-1)
    known_norms.append(norms_N.cpu())
    return norms_N > SINK_FACTOR * torch.cat(known_norms).median().to(norms_N.device)


def _without(directions_DK: Tensor, columns_DX: Tensor) -> Tensor:
    """Return columns less what they have of the directions: (I - V V^T) X."""
    return columns_DX - directions_DK @ (directions_DK.T @ columns_DX)
