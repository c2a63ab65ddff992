"""Folds the maps of a patch into the tensors of a checkpoint: one weight for each cut, in the dtype that it has there.

Shapes: D hidden size, I width of what the projection reads.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from axolotl_sdft.core.errors import CheckpointError, ConfigError
from axolotl_sdft.pruning.checkpoint.tensor_files import StoredTensor, read_header
from axolotl_sdft.pruning.patching.record import CutPatch, LayerPatch, Projection, UnpatchableError

if TYPE_CHECKING:
    from torch import Tensor

NamedTensor = tuple[str, StoredTensor]
"""A tensor's new name, and where it is now."""

_FLOATS = ("F64", "F32", "F16", "BF16")
_FILE = "patched.safetensors"


def require_same_layers(patch: LayerPatch, drop_layers: Sequence[int]) -> None:
    """Refuse a patch that was fitted for another cut.

    Raises:
        ConfigError: The message names both.
    """
    if patch.drop_layers != tuple(drop_layers):
        raise ConfigError(
            f"patch was fitted for the removal of layers {_listed(patch.drop_layers)}, but layers "
            f"{_listed(drop_layers)} are to go; call fit_patch with the same layers"
        )


def stored_projection(tensors: Sequence[NamedTensor], prefix: str, projection: Projection) -> StoredTensor:
    """Return the one tensor of a checkpoint that a map is folded into.

    Args:
        tensors: Those that stay.
        prefix: What comes before the layer number in their old names, such as ``model.layers.``.
        projection: Where the map is to go.

    Raises:
        UnpatchableError: It is not stored as one matrix of floating-point numbers; the text is the reason.
    """
    start = f"{prefix}{projection.layer}."
    by_rest = {tensor.name.removeprefix(start): tensor for _, tensor in tensors if tensor.name.startswith(start)}
    found = by_rest.get(f"{projection.path}.weight")
    if found is not None and found.dtype in _FLOATS and len(found.shape) == 2:
        return found
    where = f"{projection.path} of layer {projection.layer}"
    parts = sorted(rest for rest in by_rest if rest.startswith(f"{projection.path}."))
    if not parts:
        raise UnpatchableError(f"the checkpoint stores no {where} under that name")
    kind = f"as {found.dtype}" if found is not None else f"as {', '.join(parts)}"
    raise UnpatchableError(f"the checkpoint stores {where} quantized ({kind}), which can't hold the patched weight")


def why_not_stored(stored: tuple[Sequence[NamedTensor], str], projection: Projection) -> str | None:
    """Return why a map can't be folded into a checkpoint, or None; ``stored`` are its tensors and their prefix."""
    try:
        stored_projection(*stored, projection)
    except UnpatchableError as err:
        return str(err)
    return None


def patched_tensors(tensors: Sequence[NamedTensor], prefix: str, patch: LayerPatch, folder: Path) -> list[NamedTensor]:
    """Return the tensors with the patched ones in the place of the old, written to a file in an empty folder.

    Raises:
        UnpatchableError: A tensor that a map belongs to is not stored as one.
        CheckpointError: Its shape is not that of the model that the map was fitted on, or a number overflows.
    """
    weights: dict[str, Tensor] = {}
    for cut in patch.applied:
        assert cut.projection is not None
        stored = stored_projection(tensors, prefix, cut.projection)
        weights[stored.name] = _patched(stored, cut)
    if not weights:
        return list(tensors)
    return _replaced(tensors, _written(weights, folder / _FILE))


def _patched(stored: StoredTensor, cut: CutPatch) -> "Tensor":
    """Return T^T W in the dtype of W [D, I]; of a weight stored as [I, D], W T."""
    from safetensors import safe_open

    assert cut.correction is not None
    assert cut.projection is not None
    with safe_open(stored.file, framework="pt") as file:
        weight = file.get_tensor(stored.name)
    width = weight.shape[1] if cut.projection.is_transposed else weight.shape[0]
    if width != len(cut.correction):
        raise CheckpointError(
            f"{stored.name} has shape {list(stored.shape)}, but the patch was fitted on a model of hidden size "
            f"{len(cut.correction)}; fit it on the model that is cut"
        )
    wide = weight.double()
    change = wide @ cut.correction if cut.projection.is_transposed else cut.correction.T @ wide
    patched = (wide + change).to(weight.dtype).contiguous()
    if not patched.isfinite().all():
        raise CheckpointError(
            f"the patched {stored.name} has numbers that {stored.dtype} can't hold; set layer_pruning.patch: none"
        )
    return patched


def _written(weights: "Mapping[str, Tensor]", path: Path) -> dict[str, StoredTensor]:
    from safetensors.torch import save_file

    save_file(dict(weights), path)
    return {tensor.name: tensor for tensor in read_header(path)[0]}


def _replaced(tensors: Sequence[NamedTensor], patched: Mapping[str, StoredTensor]) -> list[NamedTensor]:
    return [(name, patched.get(tensor.name, tensor)) for name, tensor in tensors]


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
