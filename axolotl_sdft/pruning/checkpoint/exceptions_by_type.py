"""What rules out a cut though no setting of a single layer shows it: the few exceptions to going by key."""

from collections.abc import Callable, Collection
from typing import Any

from axolotl_sdft.pruning.checkpoint.layer_settings import LayerCut, Settings, UnsoundCutError

# What no choice of layers could mend. Each reason completes "can't be cut soundly: ...".
_UNSOUND: tuple[tuple[Callable[[Settings], Any], str], ...] = (
    (lambda c: c.get("is_encoder_decoder"), "it has an encoder and a decoder (is_encoder_decoder)"),
    (lambda c: c.get("num_layers_per_stack"), "its layers form two stacks that run many times (num_layers_per_stack)"),
    (lambda c: c.get("hidden_size_per_layer_input"), "layers share a matrix (hidden_size_per_layer_input)"),
)
_UNSOUND_TYPES = {"minimax": "each layer's decay is computed from its number and from the number of layers"}


def _keeps_first(_settings: Settings, cut: LayerCut) -> bool:
    return 0 in cut.kept


def _keeps_last(_settings: Settings, cut: LayerCut) -> bool:
    return cut.num_layers - 1 in cut.kept


def _keeps_numbers(_settings: Settings, cut: LayerCut) -> bool:
    return cut.only_last_go


def _keeps_hybrids(settings: Settings, cut: LayerCut) -> bool:
    hybrids = [layer for layer, kind in enumerate(settings.get("layers_block_type") or []) if kind == "hybrid"]
    # Which of the shared blocks a hybrid layer is built for comes from its number, modulo how many there are.
    num_blocks = settings.get("num_mem_blocks") or 1
    return all(old in cut.kept and (old - cut.kept.index(old)) % num_blocks == 0 for old in hybrids)


_SHARED_BLOCKS = (
    "its hybrid layers share weights; keep them, and drop a multiple of num_mem_blocks of others before each"
)

# Model types whose code, not whose settings, tells layers apart by number: what must hold, and what to say otherwise.
_TYPES_BY_NUMBER: dict[str, tuple[Callable[[Settings, LayerCut], bool], str]] = {
    "beam": (_keeps_numbers, "each layer's residual scale is computed from its number; drop the last layers only"),
    "diffllama": (_keeps_numbers, "each layer's lambda is computed from its number; drop the last layers only"),
    "gpt_neox_japanese": (_keeps_last, "the last layer alone has a bias; keep it"),
    "modernbert": (_keeps_first, "layer 0 is built differently; keep it"),
    "modernbert-decoder": (_keeps_first, "layer 0 is built differently; keep it"),
    "rwkv": (_keeps_first, "layer 0 alone normalizes what it receives; keep it"),
    "zamba": (_keeps_hybrids, _SHARED_BLOCKS),
    "zamba2": (_keeps_hybrids, _SHARED_BLOCKS),
    "zaya": (_keeps_first, "layer 0 alone routes without the layer before; keep it"),
}


def check_model(settings: Settings, model_types: Collection[str]) -> None:
    """Refuse what no choice of layers could mend.

    Raises:
        UnsoundCutError: The text is the reason.
    """
    reasons = [reason for is_unsound, reason in _UNSOUND if is_unsound(settings)]
    reasons += [_UNSOUND_TYPES[kind] for kind in model_types if kind in _UNSOUND_TYPES]
    if reasons:
        raise UnsoundCutError(reasons[0])


def check_layers(settings: Settings, model_types: Collection[str], cut: LayerCut) -> None:
    """Refuse to drop layers that others can't stand in for.

    Raises:
        UnsoundCutError: The text is the reason.
    """
    for kind in model_types:
        holds, reason = _TYPES_BY_NUMBER.get(kind, (None, ""))
        if holds is not None and not holds(settings, cut):
            raise UnsoundCutError(reason)
