"""Compares the hidden states at the boundaries of decoder layers, token by token, while a model runs.

Boundary i is what layer i receives; boundary L is what the last layer gives, before the final norm. (transformers'
``hidden_states[-1]`` is after it.)

Shapes: B rows, T tokens of a row, N tokens kept, C tokens of a chunk, K = L + 1 boundaries, D hidden size.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from axolotl_sdft.errors import CheckpointError, DatasetError
from axolotl_sdft.pruning.architecture import first_number_prefix, is_text_path
from axolotl_sdft.pruning.score import Batch, TokenAverage
from axolotl_sdft.runtime import progress

LOG = logging.getLogger(__name__)

_CHUNK_NUMBERS = 2**22  # numbers of a chunk in float64: 32 MiB


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the module list that holds exactly the text decoder's layers.

    Raises:
        CheckpointError: There is none, or more than one.
    """
    num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
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
            f"{type(model).__name__} has {what} of {num_layers} modules, so its decoder layers can't be told; "
            "name the layers in layer_pruning.drop_layers"
        )
    return next(iter(found.values()))


def mean_over_tokens(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    token_average: TokenAverage,
    of_cosines: Callable[[Tensor], Tensor],
) -> tuple[Tensor, int]:
    """Return the mean of a function of the cosines between boundaries over tokens, and how many tokens there were.

    One pass: the hidden states of one micro-batch are held at a time, and the output head never runs.

    Args:
        model: A decoder model.
        batches: ``input_ids`` and ``attention_mask``, each [B, T].
        token_average: Which tokens count: all that are no padding, or the last of each row.
        of_cosines: Applied to cosines [C, K, K]; returns the same shape.

    Returns:
        The mean, [K, K] in float64 on the CPU, and the count.

    Raises:
        CheckpointError: The decoder layers can't be found, or one of them was not run exactly once.
        DatasetError: There is no token to measure.
    """
    layers = decoder_layers(model)
    sum_KK = torch.zeros(len(layers) + 1, len(layers) + 1, dtype=torch.float64)
    num_tokens = 0
    total = sum(batch["input_ids"].numel() for batch in batches)
    with _evaluating(model), progress("scoring layers", total, "tokens", LOG) as shown:
        for batch in batches:
            boundaries_KND = _boundaries(model, layers, batch, token_average)
            for cosines_CKK in _cosines(boundaries_KND):
                sum_KK += of_cosines(cosines_CKK).sum(0).double().cpu()
            num_tokens += boundaries_KND[0].shape[0]
            shown.advance(batch["input_ids"].numel())
    if num_tokens == 0:
        raise DatasetError("layer_pruning.calibration gave no token to measure; check its path, split and type")
    return sum_KK / num_tokens, num_tokens


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _boundaries(
    model: PreTrainedModel, layers: nn.ModuleList, batch: Batch, token_average: TokenAverage
) -> list[Tensor]:
    """Return the K boundaries of the tokens that count, each [N, D]."""
    device = model.get_input_embeddings().weight.device
    ids_BT = batch["input_ids"].to(device)
    mask_BT = batch["attention_mask"].to(device).bool() if "attention_mask" in batch else torch.ones_like(ids_BT).bool()
    kept_BT = mask_BT if token_average == "all" else _last_of_each_row(mask_BT)
    seen: list[tuple[int, Tensor]] = []

    def keep(boundary: int, hidden: Any) -> None:
        hidden_BTD = hidden[0] if isinstance(hidden, tuple) else hidden
        seen.append((boundary, hidden_BTD[kept_BT.to(hidden_BTD.device)]))  # a copy: later layers may write in place

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.enter_context(
                _removed_after(layer.register_forward_pre_hook(_on_input(keep, index), with_kwargs=True))
            )
        last = layers[-1].register_forward_hook(lambda _module, _args, output: keep(len(layers), output))
        hooks.enter_context(_removed_after(last))
        body = model.base_model
        body(input_ids=ids_BT, attention_mask=mask_BT.long(), use_cache=False, **_positions(body, mask_BT))
    if [boundary for boundary, _ in seen] != list(range(len(layers) + 1)):
        raise CheckpointError(
            f"{type(model).__name__} does not run its {len(layers)} layers once each in their order, so they can't be "
            "scored; name the layers in layer_pruning.drop_layers"
        )
    return [hidden_ND for _, hidden_ND in seen]


def _on_input(keep: Callable[[int, Any], None], index: int) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(index, args[0] if args else kwargs["hidden_states"])

    return hook


@contextmanager
def _removed_after(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _last_of_each_row(mask_BT: Tensor) -> Tensor:
    """Mark the last token of each row that is no padding; rows of nothing but padding have none."""
    positions_BT = torch.arange(mask_BT.shape[1], device=mask_BT.device) * mask_BT
    last_BT = torch.zeros_like(mask_BT).scatter_(1, positions_BT.argmax(1, keepdim=True), True)
    return last_BT & mask_BT


def _positions(body: nn.Module, mask_BT: Tensor) -> dict[str, Tensor]:
    """Count positions from the first real token where rows are padded on the left, which models don't do alone."""
    if mask_BT[:, 0].all() or "position_ids" not in inspect.signature(body.forward).parameters:
        return {}
    return {"position_ids": (mask_BT.long().cumsum(1) - 1).clamp(min=0)}


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
