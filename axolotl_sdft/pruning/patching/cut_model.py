"""A loaded model run as if it were cut and patched, and how far that is from the unpruned one on held-out text.

Shapes: B rows, T tokens of a row, C places of a chunk, V vocabulary.

Shapes: B rows, T tokens of a row, N real tokens, D hidden size.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from axolotl_sdft.pruning.patching.record import CutPatch, Projection, UnpatchableError
from axolotl_sdft.pruning.scoring.boundaries import decoder_layers
from axolotl_sdft.pruning.scoring.perplexity import chunks_of, logits_by_chunk
from axolotl_sdft.pruning.scoring.running import LayerSwitch, evaluating, hidden_of, ids_and_mask, run, switched
from axolotl_sdft.pruning.scoring.scores import Batch

_INTERVAL = 10


def split_held_out(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Return the text to fit on, and a tenth of the rows, spread evenly, that is held out; at least one of two rows.

    Rows stay in their micro-batches, as they are padded.
    """
    lengths = [len(batch["input_ids"]) for batch in batches]
    total = sum(lengths)
    held = set(range(min(_INTERVAL, total) // 2, total, _INTERVAL)) if total > 1 else set()
    start, parts = 0, []
    for batch, length in zip(batches, lengths, strict=True):
        is_held = torch.tensor([row in held for row in range(start, start + length)], dtype=torch.bool)
        parts.append((_rows(batch, ~is_held), _rows(batch, is_held)))
        start += length
    kept, out = ([part for part in side if len(part["input_ids"])] for side in zip(*parts, strict=True))
    return kept, out


def _rows(batch: Batch, chosen_B: Tensor) -> Batch:
    names = [name for name in ("input_ids", "attention_mask") if name in batch]
    return {name: batch[name][chosen_B.to(batch[name].device)] for name in names}


def divergences(
    model: PreTrainedModel, held_out: Sequence[Batch], variants: Sequence[Callable[[], AbstractContextManager[None]]]
) -> list[float]:
    """Return KL(seed || variant) in nats per token of each variant of a model.

    Args:
        model: Runs as the seed model; logits of one variant and of the seed model are held for one chunk of places at a
            time.
        held_out: Text that nothing was fitted on.
        variants: Each gives a context in which the model runs as that variant.

    Raises:
        UnpatchableError: The model has no logits for each token.
    """
    sums = [0.0] * len(variants)
    for batch in held_out:
        ids_BT, mask_BT = ids_and_mask(model, batch)
        seed_logits_of = logits_by_chunk(model, ids_BT, mask_BT)
        logits_of = []
        for variant in variants:
            with variant():
                logits_of.append(logits_by_chunk(model, ids_BT, mask_BT))
        for chunk in chunks_of(model, *ids_BT.shape):
            seed_BCV = _log_probabilities(seed_logits_of(chunk), ids_BT[:, chunk])
            for place, of_variant in enumerate(logits_of):
                variant_BCV = _log_probabilities(of_variant(chunk), ids_BT[:, chunk])
                kl_BC = F.kl_div(variant_BCV, seed_BCV, reduction="none", log_target=True).sum(-1)
                sums[place] += float(kl_BC[mask_BT[:, chunk].to(kl_BC.device)].double().sum())
    count = max(1, sum(num_tokens(batch) for batch in held_out))
    return [total / count for total in sums]


def num_tokens(batch: Batch) -> int:
    """Return how many tokens of a micro-batch are not padding."""
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()


def _log_probabilities(logits_BCV: Tensor, ids_BC: Tensor) -> Tensor:
    if logits_BCV.shape[:2] != ids_BC.shape:
        raise UnpatchableError(
            "the model gives no logits for each token, so whether a patch brings it nearer to the seed model "
            "can't be told"
        )
    return logits_BCV.to(torch.promote_types(logits_BCV.dtype, torch.float32)).log_softmax(-1)


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
