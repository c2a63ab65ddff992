"""Joins two micro-batches, their pictures and videos among the rest, so that a single forward pass serves both.

* One after the other, whichever row they belong to: patches with their grids (Qwen), pictures or tiles (LLaVA, Gemma,
  InternVL). The two are put end to end, in the order of the rows. A batch without any adds none.
* By row, each with as many pictures as the fullest row has (Idefics, SmolVLM, Mllama). Rows with fewer are filled up
  with empty pictures, which those models leave out or attend to from nowhere.

Pictures of another size are filled up as the processor itself would do it for both batches, and only where another
input tells the model what is real: ``pixel_attention_mask``, ``image_sizes`` or ``spatial_shapes``.

Shapes: B rows, T positions.

One pass costs what plain training on the joined batch costs, and keeps gradient checkpointing and data parallelism as
they are: to them nothing but the batch has changed.

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
    previous: Mapping[str, Any], new: Mapping[str, Any], sizes: tuple[torch.Size, torch.Size]
) -> dict[str, Any]:
    """Return the pictures and videos of both batches, those of the previous first; nothing where neither has any.

    Args:
        previous: Inputs of the model.
        new: More of the same.
        sizes: The (B, T) of the two.

    Raises:
        ConfigError: Those of the two can't lie in one batch; the message names the input and both shapes.
    """
    names = [name for name in {**previous, **new} if name in MEDIA]
    return {name: _join(name, (previous.get(name), new.get(name)), {**previous, **new}, sizes) for name in names}


def _join(
    name: str, parts: tuple[Any, Any], inputs: Mapping[str, Any], sizes: tuple[torch.Size, torch.Size]
) -> Tensor | list[Any]:
    present = [part for part in parts if part is not None]
    if all(isinstance(part, list) for part in present):
        return [entry for part in present for entry in part]
    if not all(torch.is_tensor(part) and part.dim() > 0 for part in present):
        raise _unjoinable_media(name, present)
    by_row = _is_by_row(name, present[0], inputs)
    if len(present) == 1 and not by_row:
        return present[0]
    if len(present) == 1 and "aspect_ratio_ids" in inputs:  # Mllama's text would attend to pictures of other rows
        raise _unjoinable_media(name, present)
    tensors = [_empty_rows(present[0], size) if part is None else part for part, size in zip(parts, sizes, strict=True)]
    if by_row and any(len(tensor) != size[0] for tensor, size in zip(tensors, sizes, strict=True)):
        raise _unjoinable_media(name, present)
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
        raise _unjoinable_media(name, tensors)
    differing = {place for place in range(1, first.dim()) if first.shape[place] != second.shape[place]}
    if not differing <= _fillable(name, first.dim(), inputs):
        raise _unjoinable_media(name, tensors)
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


def _unjoinable_media(name: str, values: list[Any]) -> ConfigError:
    shown = " and ".join(
        f"a tensor of shape {tuple(value.shape)}" if torch.is_tensor(value) else f"a {type(value).__name__}"
        for value in values
    )
    return ConfigError(
        f"dynsdpb: input {name!r} ({shown}) can't be joined with that of the next batch, because the model could not "
        "tell the pictures of the two apart; give all pictures one size (image_size, or the processor's settings), or "
        "train without the dynsdpb block"
    )


IGNORED_LABEL = -100
"""Of a label that is not trained."""

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
"""Inputs of the model that tell what kind of token each is; some models can't train without them."""

# Where shorter rows are filled up on the right. Input and position ids have rules of their own.
_PADDING = {"labels": IGNORED_LABEL, "shift_labels": IGNORED_LABEL, "attention_mask": 0}
_PADDING |= dict.fromkeys(TOKEN_TYPES, 0)
_VARLEN_OFFSETS = ("cu_seq_lens_q", "cu_seq_lens_k")
_VARLEN_LENGTHS = ("max_length_q", "max_length_k")
_SAMPLE_NUMBERS = "seq_idx"


def label_mask(inputs: Mapping[str, Any]) -> Tensor:
    """Return where a trained token is predicted, [B, T]: position t predicts label t + 1.

    ``shift_labels``, where a collator gives them, are aligned with the predictions already.

    Raises:
        ConfigError: There are no labels of shape [B, T].
    """
    if torch.is_tensor(inputs.get("shift_labels")):
        return inputs["shift_labels"] != IGNORED_LABEL
    labels_BT = inputs.get("labels")
    if not torch.is_tensor(labels_BT) or labels_BT.dim() != 2:
        found = f"of shape {tuple(labels_BT.shape)}" if torch.is_tensor(labels_BT) else "missing"
        raise ConfigError(
            f"dynsdpb: labels are {found}, but it distils the next-token predictions of a causal language model, whose "
            "labels are [rows, tokens]; train this model without the dynsdpb block"
        )
    mask_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    mask_BT[:, :-1] = labels_BT[:, 1:] != IGNORED_LABEL
    return mask_BT


def predicted_labels(inputs: Mapping[str, Any]) -> Tensor:
    """Return the label at each position of :func:`label_mask`, [N], in row-major order."""
    mask_BT = label_mask(inputs)
    if torch.is_tensor(inputs.get("shift_labels")):
        return inputs["shift_labels"][mask_BT]
    return inputs["labels"].roll(-1, dims=1)[mask_BT]


def join_batches(
    previous: Mapping[str, Any], new: Mapping[str, Any], pad_token_id: int, *, one_row: bool = False
) -> dict[str, Any]:
    """Return one batch with the previous rows first and the new ones after them, padded on the right.

    What a position can attend to is the same as in the two batches apart. Packed rows are told apart by
    ``position_ids`` that start again; so does their padding. Pictures and videos are joined as
    :mod:`axolotl_sdft.training.batching` tells. Nothing is changed in place.

    Args:
        previous: Inputs of the model, labels among them.
        new: More of the same.
        pad_token_id: Fills ``input_ids``; no loss is computed there.
        one_row: Join two packed rows end to end instead. Flash attention tells packed samples apart only within a
            single row.

    Raises:
        ConfigError: An input can't be joined; the message names it.
    """
    sizes = _size(previous), _size(new)
    media = join_media(previous, new, sizes)
    previous, new = _without_media(previous, new, sizes) if media else (dict(previous), dict(new))
    if set(previous) != set(new):
        names = ", ".join(sorted(set(previous) ^ set(new)))
        raise ConfigError(
            f"dynsdpb: inputs {names} came with only one of two successive batches, so they can't be joined; "
            "let the data collator return the same inputs each time"
        )
    if one_row and _is_packed_row(previous) and _is_packed_row(new):
        return _join_end_to_end(previous, new) | media
    if sizes[0][1] != sizes[1][1] and not {"attention_mask", "position_ids"} & set(previous):
        # Without a mask there was no padding so far; now there is, and layers such as routers must not count it.
        for batch, size in ((previous, sizes[0]), (new, sizes[1])):
            batch["attention_mask"] = torch.ones(size, dtype=torch.long, device=batch["input_ids"].device)
    length = max(sizes[0][1], sizes[1][1])
    return {
        name: _join_rows(name, [(previous[name], sizes[0]), (new[name], sizes[1])], length, pad_token_id)
        for name in new
    } | media


def filled_places(previous: Mapping[str, Any], new: Mapping[str, Any], joined: Mapping[str, Any]) -> Tensor:
    """Return where :func:`join_batches` has filled up rows, [B, T], which packed rows don't tell."""
    num_rows, length = _size(joined)
    lengths = [num_tokens for part in (previous, new) for num_tokens in [_size(part)[1]] * _size(part)[0]]
    if len(lengths) > num_rows:  # end to end
        lengths = [length] * num_rows
    return torch.arange(length) >= torch.tensor(lengths)[:, None]


def _without_media(
    previous: Mapping[str, Any], new: Mapping[str, Any], sizes: tuple[torch.Size, torch.Size]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the rest of both; where only one tells kinds of tokens, the other has nothing but text."""
    rests = [{name: value for name, value in inputs.items() if name not in MEDIA} for inputs in (previous, new)]
    for name in TOKEN_TYPES:
        kinds = [rest[name] for rest in rests if torch.is_tensor(rest.get(name))]
        for rest, size in zip(rests, sizes, strict=True):
            if len(kinds) == 1:
                rest.setdefault(name, kinds[0].new_zeros(size))
    return rests[0], rests[1]


def _size(inputs: Mapping[str, Any]) -> torch.Size:
    """Return (B, T)."""
    given = (inputs.get(name) for name in ("input_ids", "inputs_embeds"))
    size = next((value.shape[:2] for value in given if torch.is_tensor(value) and value.dim() > 1), None)
    return size or label_mask(inputs).shape


def _join_rows(name: str, parts: list[tuple[Any, torch.Size]], length: int, pad_token_id: int) -> Any:
    first, second = parts[0][0], parts[1][0]
    if name == "position_ids":
        return torch.cat([_pad_positions(value, size, length) for value, size in parts], dim=-2)
    if _is_one_setting(first, second):
        return first
    padded = [_pad_rows(name, value, size, length, pad_token_id) for value, size in parts]
    if padded[0].shape[1:] != padded[1].shape[1:]:
        raise _unjoinable_input(name, first, second)
    return torch.cat(padded)


def _is_one_setting(first: Any, second: Any) -> bool:
    """Whether both batches were given the same single value; a list has entries for each batch's rows or pictures."""
    return not any(torch.is_tensor(value) or isinstance(value, list | tuple) for value in (first, second)) and bool(
        first == second
    )


def _pad_rows(name: str, value: Any, size: torch.Size, length: int, pad_token_id: int) -> Tensor:
    """Return a tensor of B rows, filled up to ``length`` positions where its padding is known."""
    if not torch.is_tensor(value) or value.dim() == 0 or value.shape[0] != size[0] or name in _VARLEN_OFFSETS:
        raise _unjoinable_input(name, value)
    missing = length - size[1]
    if missing == 0 or value.shape != size:
        return value
    if name == "input_ids":
        return pad(value, (0, missing), value=pad_token_id)
    return pad(value, (0, missing), value=_PADDING[name]) if name in _PADDING else value


def _pad_positions(value: Any, size: torch.Size, length: int) -> Tensor:
    """Return positions [B, T], or [3, B, T] where pictures have rows and columns, that start again where text ends."""
    if not torch.is_tensor(value) or value.shape[-2:] != size:
        raise _unjoinable_input("position_ids", value)
    filling_T = torch.arange(length - size[1], dtype=value.dtype, device=value.device)
    return torch.cat([value, filling_T.expand(*value.shape[:-1], -1)], dim=-1)


def _is_packed_row(inputs: Mapping[str, Any]) -> bool:
    mask = inputs.get("attention_mask")
    is_one_row = _size(inputs)[0] == 1 and torch.is_tensor(inputs.get("position_ids"))
    return is_one_row and (mask is None or (mask.dim() == 2 and bool(mask.all())))


def _join_end_to_end(previous: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return one packed row; the all-ones masks go, as packing is read from ``position_ids`` alone."""
    names = [name for name in new if name != "attention_mask"]
    joined = {name: _join_ends(name, previous[name], new[name], _size(new)) for name in names}
    if torch.is_tensor(joined.get("labels")):
        # The first label of the new row was predicted by nothing; now the last previous position would predict it.
        joined["labels"][:, _size(previous)[1]] = IGNORED_LABEL
    return joined


def _join_ends(name: str, first: Any, second: Any, size: torch.Size) -> Any:
    if name in _VARLEN_OFFSETS:
        # Offsets (0, 3, 5) and (0, 4) become (0, 3, 5, 9).
        return torch.cat([first, second[1:] + first[-1]])
    if name in _VARLEN_LENGTHS:
        return max(first, second)
    if name == _SAMPLE_NUMBERS:
        # Each batch counts its samples from 0, and layers with a state take an equal number for the same sample.
        return torch.cat([first, second + first.max() + 1], dim=1)
    if torch.is_tensor(second) and second.shape[:2] == size:
        return torch.cat([first, second], dim=1)
    if _is_one_setting(first, second):
        return first
    raise _unjoinable_input(name, first, second)


def _unjoinable_input(name: str, *values: Any) -> ConfigError:
    shown = " and ".join(
        f"a tensor of shape {tuple(value.shape)}" if torch.is_tensor(value) else repr(value) for value in values
    )
    return ConfigError(
        f"dynsdpb: input {name!r} ({shown}) can't be joined with that of the next batch; leave it out in the data "
        "collator, or train without the dynsdpb block"
    )
