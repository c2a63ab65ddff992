"""Runs a loaded model whole, or as a cut with its patch would leave it; its weights stay as they are.

Shapes: B rows, T tokens of a row, N real tokens, D hidden size.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from axolotl_sdft.pruning.patching.record import CutPatch, Projection, UnpatchableError
from axolotl_sdft.pruning.scoring.boundaries import decoder_layers
from axolotl_sdft.pruning.scoring.running import evaluating, hidden_of, ids_and_mask, run
from axolotl_sdft.pruning.scoring.scores import Batch
from axolotl_sdft.pruning.scoring.skipping import LayerSwitch, switched


class CutModel:
    """A model whose layers can be skipped and whose projections can be followed by a map; made by :func:`opened`."""

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList, switch: LayerSwitch) -> None:
        self.model, self.layers, self._switch = model, layers, switch
        self._skipped: Collection[int] = ()

    @contextmanager
    def as_cut(self, drop_layers: Collection[int], patches: Sequence[CutPatch] = ()) -> Iterator[None]:
        """While open, the model runs without these layers and with these patches."""
        with ExitStack() as handles:
            for patch in patches:
                if patch.projection is not None and patch.correction is not None:
                    module = self.module_of(patch.projection)
                    hook = _corrected(module, patch.correction)
                    handles.callback(module.register_forward_hook(hook).remove)
            self._skip(drop_layers)
            handles.callback(self._skip, ())
            yield

    def _skip(self, layers: Collection[int]) -> None:
        self._skipped = layers
        self._switch.set_run(layers)

    def module_of(self, projection: Projection) -> nn.Module:
        """Return the module that a projection names."""
        return self.layers[projection.layer].get_submodule(projection.path)

    def run_row(self, batch: Batch) -> None:
        """Run the body on the first row of a micro-batch; nothing comes of it."""
        run(self.model.base_model, *(part[:1] for part in ids_and_mask(self.model, batch)))

    def around(self, projection: Projection, batch: Batch, last: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return what a layer gives to real tokens, the output of a projection before it, and that of its layer.

        Layers after ``last`` do not run. The projection's output comes without its bias. Each is [N, D].
        """
        hidden, projected = self.states([projection], [projection.layer, last], batch)
        return hidden[last], projected[projection.layer], hidden[projection.layer]

    def states(
        self, projections: Sequence[Projection], layers: Collection[int], batch: Batch
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Return the outputs of layers and of projections, without their biases, by layer, each [N, D].

        What comes after the last of them does not run.
        """
        ids_BT, mask_BT = ids_and_mask(self.model, batch)
        hidden: dict[int, Tensor] = {}
        projected: dict[int, Tensor] = {}

        def kept(output_BTD: Tensor) -> Tensor:
            if output_BTD.shape[:-1].numel() != mask_BT.numel():
                raise UnpatchableError("its layers run on more or fewer places than there are tokens")
            whole_BTD = output_BTD.reshape(*mask_BT.shape, output_BTD.shape[-1])
            return whole_BTD[mask_BT.to(output_BTD.device)]  # a copy: later layers may write in place

        def keep_hidden(layer: int, _module: nn.Module, _args: Any, output: Any) -> None:
            hidden[layer] = kept(hidden_of(output))

        def keep_projected(layer: int, module: nn.Module, _args: Any, output: Tensor) -> None:
            projected[layer] = kept(_without_bias(module, output))

        with ExitStack() as handles:
            for layer in layers:
                handle = self.layers[layer].register_forward_hook(partial(keep_hidden, layer))
                handles.callback(handle.remove)
            for projection in projections:
                hook = partial(keep_projected, projection.layer)
                handles.callback(self.module_of(projection).register_forward_hook(hook).remove)
            self._switch.set_run({*self._skipped, *range(max(layers) + 1, len(self.layers))})
            handles.callback(self._switch.set_run, self._skipped)
            run(self.model.base_model, ids_BT, mask_BT)
        return hidden, projected


@contextmanager
def opened(model: PreTrainedModel, probe: Batch) -> Iterator[CutModel]:
    """Give a model to be run in parts; afterwards it is as it was.

    Args:
        model: A decoder or encoder of transformers.
        probe: Text for a first run of the whole model, which shows in what form its layers return hidden states.
    """
    layers = decoder_layers(model)
    with evaluating(model), switched(layers) as switch:
        cut_model = CutModel(model, layers, switch)
        cut_model.run_row(probe)
        yield cut_model


def _without_bias(module: nn.Module, output_XD: Tensor) -> Tensor:
    bias_D = getattr(module, "bias", None)
    if bias_D is None:
        return output_XD
    if bias_D.is_meta:
        raise UnpatchableError("the bias of the projection before it is offloaded; choose another device_map")
    return output_XD - bias_D.to(output_XD.device)


def _corrected(module: nn.Module, correction: Tensor) -> Any:
    """Return a hook after which M + bias has become M T + bias."""
    on_device: list[Tensor] = []

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        if not on_device:
            on_device.append(correction.to(output.device, torch.promote_types(output.dtype, torch.float32)))
        moved = _without_bias(module, output).to(on_device[0].dtype) @ on_device[0]
        return output + moved.to(output.dtype)

    return hook
