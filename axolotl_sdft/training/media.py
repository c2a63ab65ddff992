"""Joins what two batches hold beside their tokens: pictures and videos, as the processors of transformers lay them out.

* One after the other, whichever row they belong to: patches with their grids (Qwen), pictures or tiles (LLaVA, Gemma,
  InternVL). The two are put end to end, in the order of the rows. A batch without any adds none.
* By row, each with as many pictures as the fullest row has (Idefics, SmolVLM, Mllama). Rows with fewer are filled up
  with empty pictures, which those models leave out or attend to from nowhere.

Pictures of another size are filled up as the processor itself would do it for both batches, and only where another
input tells the model what is real: ``pixel_attention_mask``, ``image_sizes`` or ``spatial_shapes``.

Shapes: B rows, T positions.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from axolotl_sdft.core.errors import ConfigError

_PIXELS = ("pixel_values", "pixel_values_videos")
_ONE_AFTER_THE_OTHER = (
    *("high_res_pixel_values", "pixel_mask", "image_merge_sizes", "video_merge_sizes", "video_compression_mask"),
    *("image_grid_thw", "image_grid_hw", "video_grid_thw", "second_per_grid_ts", "image_sizes", "spatial_shapes"),
    *("batch_num_images", "image_position_ids", "video_position_ids", "num_soft_tokens_per_image"),
)
_BY_ROW = ("aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask")
MEDIA = frozenset((*_PIXELS, "pixel_attention_mask", *_ONE_AFTER_THE_OTHER, *_BY_ROW))
"""Names of the inputs that are joined here."""


def join_media(
    former: Mapping[str, Any], new: Mapping[str, Any], sizes: tuple[torch.Size, torch.Size]
) -> dict[str, Any]:
    """Return the pictures and videos of both batches, those of the former first; nothing where neither has any.

    Args:
        former: Inputs of the model.
        new: More of the same.
        sizes: The (B, T) of the two.

    Raises:
        ConfigError: Those of the two can't lie in one batch; the message names the input and both shapes.
    """
    names = [name for name in {**former, **new} if name in MEDIA]
    return {name: _join(name, (former.get(name), new.get(name)), {**former, **new}, sizes) for name in names}


def _join(
    name: str, parts: tuple[Any, Any], inputs: Mapping[str, Any], sizes: tuple[torch.Size, torch.Size]
) -> Tensor | list[Any]:
    present = [part for part in parts if part is not None]
    if all(isinstance(part, list) for part in present):
        return [entry for part in present for entry in part]
    if not all(torch.is_tensor(part) and part.dim() > 0 for part in present):
        raise _unjoinable(name, present)
    by_row = _is_by_row(name, present[0], inputs)
    if len(present) == 1 and not by_row:
        return present[0]
    if len(present) == 1 and "aspect_ratio_ids" in inputs:  # Mllama's text would attend to pictures of other rows
        raise _unjoinable(name, present)
    tensors = [_empty_rows(present[0], size) if part is None else part for part, size in zip(parts, sizes, strict=True)]
    if by_row and any(len(tensor) != size[0] for tensor, size in zip(tensors, sizes, strict=True)):
        raise _unjoinable(name, present)
    if name == "cross_attention_mask":  # the only one that has positions
        length = max(size[1] for size in sizes)
        tensors = [_filled(tensor, [len(tensor), length, *tensor.shape[2:]]) for tensor in tensors]
    return torch.cat(_alike(name, tensors, inputs))


def _is_by_row(name: str, value: Tensor, inputs: Mapping[str, Any]) -> bool:
    if name in _BY_ROW:
        return True
    has_masks = torch.is_tensor(inputs.get("pixel_attention_mask")) and inputs["pixel_attention_mask"].dim() == 4
    return (name in _PIXELS and value.dim() == 6) or (name in ("pixel_values", "pixel_attention_mask") and has_masks)


def _empty_rows(like: Tensor, size: torch.Size) -> Tensor:
    return like.new_zeros((size[0], *like.shape[1:]))


def _alike(name: str, tensors: list[Tensor], inputs: Mapping[str, Any]) -> list[Tensor]:
    """Fill up what is smaller with zeros, where a model can tell."""
    first, second = tensors
    if first.shape[1:] == second.shape[1:]:
        return tensors
    if first.dim() != second.dim():
        raise _unjoinable(name, tensors)
    differing = {place for place in range(1, first.dim()) if first.shape[place] != second.shape[place]}
    if not differing <= _fillable(name, first.dim(), inputs):
        raise _unjoinable(name, tensors)
    largest = [max(pair) for pair in zip(first.shape, second.shape, strict=True)]
    return [_filled(tensor, largest) for tensor in tensors]


def _fillable(name: str, num_dims: int, inputs: Mapping[str, Any]) -> set[int]:
    """Return the dimensions in which a model tells what is real from what fills up."""
    if name == "pixel_attention_mask":
        return {1, 2, 3}
    if name == "cross_attention_mask":
        return {2}
    if name in ("aspect_ratio_ids", "aspect_ratio_mask"):
        return {1}
    if name != "pixel_values":
        return set()
    if num_dims == 6 and "aspect_ratio_ids" in inputs:
        return {1}
    if "pixel_attention_mask" in inputs:
        return {3: {1}, 5: {1, 3, 4}}.get(num_dims, set())
    if "image_sizes" in inputs:  # pixels of several sizes (Pixtral), or several tiles (LLaVA-NeXT)
        return {4: {2, 3}, 5: {1}}.get(num_dims, set())
    return {1} if num_dims == 3 and "spatial_shapes" in inputs else set()


def _filled(tensor: Tensor, largest: list[int]) -> Tensor:
    # From the last dimension to the second, a pair for the beginning and the end of each.
    missing = [largest[place] - tensor.shape[place] for place in range(tensor.dim() - 1, 0, -1)]
    return pad(tensor, [amount for end in missing for amount in (0, end)])


def _unjoinable(name: str, values: list[Any]) -> ConfigError:
    shown = " and ".join(
        f"a tensor of shape {tuple(value.shape)}" if torch.is_tensor(value) else f"a {type(value).__name__}"
        for value in values
    )
    return ConfigError(
        f"dynsdpb: input {name!r} ({shown}) can't be joined with that of the next batch, because the model could not "
        "tell the pictures of the two apart; give all pictures one size (image_size, or the processor's settings), or "
        "train without the dynsdpb block"
    )
