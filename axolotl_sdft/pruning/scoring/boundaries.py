"""Compares the hidden states at the boundaries of layers, token by token, while a model runs.

Boundary i is what layer i receives; boundary L is what the last layer gives, before the final norm. (transformers'
``hidden_states[-1]`` is after it.)

Shapes: B rows, T tokens of a row, N tokens kept, C tokens of a chunk, K = L + 1 boundaries, D hidden size.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from axolotl_sdft.core.errors import CheckpointError, DatasetError
from axolotl_sdft.core.terminal import progress
from axolotl_sdft.pruning.checkpoint.architecture import first_number_prefix, is_text_path, layer_count
from axolotl_sdft.pruning.scoring.running import (
    counted_tokens,
    evaluating,
    hidden_argument,
    hidden_of,
    ids_and_mask,
    run,
)
from axolotl_sdft.pruning.scoring.scores import Batch, TokenReduction

LOG = logging.getLogger(__name__)

_CHUNK_NUMBERS = 2**22  # numbers of a chunk in float64: 32 MiB


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the module list that holds exactly the layers of the text decoder, or of an encoder-only model.

    Raises:
        CheckpointError: There is none, or more than one.
    """
    num_layers = layer_count(model.config.to_dict())
    found = {
        name: module
        for name, module in model.named_modules()
        # A list inside a layer, such as its experts, may be as long by chance.
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and first_number_prefix(f"{name}.") is None
    }
    if len(found) > 1:
        found = {name: module for name, module in found.items() if is_text_path(name)}
    if len(found) != 1:
        what = f"{len(found)} lists ({', '.join(found)})" if found else "no list"
        raise CheckpointError(
            f"{type(model).__name__} has {what} of {num_layers} modules, so its layers can't be told; "
            "name the layers in layer_pruning.drop_layers"
        )
    return next(iter(found.values()))


def mean_over_tokens(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    token_reduction: TokenReduction,
    of_cosines: Callable[[Tensor], Tensor],
) -> tuple[Tensor, int]:
    """Return the mean of a function of the cosines between boundaries over tokens, and how many tokens there were.

    One pass: the hidden states of one micro-batch are held at a time, and the output head never runs.

    Args:
        model: A decoder or encoder.
        batches: ``input_ids`` and ``attention_mask``, each [B, T].
        token_reduction: Which tokens count: all that are not padding, or the last of each row.
        of_cosines: Applied to cosines [C, K, K]; returns the same shape.

    Returns:
        The mean, [K, K] in float64 on the CPU, and the count.

    Raises:
        CheckpointError: The layers can't be found, or one of them was not run exactly once.
        DatasetError: There is no token to measure.
    """
    layers = decoder_layers(model)
    sum_KK = torch.zeros(len(layers) + 1, len(layers) + 1, dtype=torch.float64)
    num_tokens = 0
    total = sum(batch["input_ids"].numel() for batch in batches)
    with evaluating(model), progress("scoring layers", total, "tokens", LOG) as shown:
        for batch in batches:
            num_tokens += _add_batch(sum_KK, _boundaries(model, layers, batch, token_reduction), of_cosines)
            shown.advance(batch["input_ids"].numel())
    if num_tokens == 0:
        raise DatasetError("layer_pruning.calibration gave no token to measure; check its path, split and type")
    return sum_KK / num_tokens, num_tokens


def _add_batch(sum_KK: Tensor, boundaries_KND: list[Tensor], of_cosines: Callable[[Tensor], Tensor]) -> int:
    """Add one micro-batch to the sum and return its tokens. Its boundaries die here, before the next one runs."""
    for cosines_CKK in _cosines(boundaries_KND):
        sum_KK += of_cosines(cosines_CKK).sum(0).double().cpu()
    return boundaries_KND[0].shape[0]


def _boundaries(
    model: PreTrainedModel, layers: nn.ModuleList, batch: Batch, token_reduction: TokenReduction
) -> list[Tensor]:
    """Return the K boundaries of the tokens that count, each [N, D]."""
    ids_BT, mask_BT = ids_and_mask(model, batch)
    kept_BT = counted_tokens(mask_BT, token_reduction)
    seen: list[tuple[int, Tensor]] = []

    def keep(boundary: int, hidden_BTD: Tensor) -> None:
        if hidden_BTD.shape[:2] != kept_BT.shape:
            raise CheckpointError(_odd_shape(model, hidden_BTD, kept_BT))
        kept_ND = hidden_BTD[kept_BT.to(hidden_BTD.device)]  # a copy: later layers may write in place
        seen.append((boundary, kept_ND.flatten(1)))

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.enter_context(
                _removed_after(layer.register_forward_pre_hook(_on_input(keep, index), with_kwargs=True))
            )
        last = layers[-1].register_forward_hook(lambda _layer, _args, output: keep(len(layers), hidden_of(output)))
        hooks.enter_context(_removed_after(last))
        run(model.base_model, ids_BT, mask_BT)
    if [boundary for boundary, _ in seen] != list(range(len(layers) + 1)):
        raise CheckpointError(
            f"{type(model).__name__} does not run its {len(layers)} layers once each in their order, so they can't be "
            "scored; name the layers in layer_pruning.drop_layers"
        )
    return [hidden_ND for _, hidden_ND in seen]


def _odd_shape(model: PreTrainedModel, hidden: Tensor, kept_BT: Tensor) -> str:
    return (
        f"{type(model).__name__} hands its layers hidden states of shape {list(hidden.shape)} for input of shape "
        f"{list(kept_BT.shape)}, so tokens can't be told apart; name the layers in layer_pruning.drop_layers"
    )


def _on_input(keep: Callable[[int, Tensor], None], index: int) -> Callable[..., None]:
    def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        place = hidden_argument(args, kwargs)
        keep(index, args[place] if isinstance(place, int) else kwargs[place])

    return hook


@contextmanager
def _removed_after(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _cosines(boundaries_KND: list[Tensor]) -> Iterator[Tensor]:
    """Yield the cosines between all boundaries, [C, K, K], chunk by chunk.

    In float64 where the device has it: float32 products may be set to run in TF32 or bfloat16, and near 1 the arc
    cosine magnifies each error (1e-3 off in the cosine moves an angular distance by up to 0.014).
    """
    device = boundaries_KND[-1].device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    num_tokens, width = boundaries_KND[0].shape
    chunk = max(1, _CHUNK_NUMBERS // (len(boundaries_KND) * width))
    for start in range(0, num_tokens, chunk):
        piece_CKD = torch.stack([b[start : start + chunk].to(device, dtype) for b in boundaries_KND], dim=1)
        unit_CKD = F.normalize(piece_CKD, dim=-1)
        yield (unit_CKD @ unit_CKD.transpose(1, 2)).clamp(-1.0, 1.0)
