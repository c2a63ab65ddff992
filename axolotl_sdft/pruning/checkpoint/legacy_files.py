"""Reads checkpoints of pickled ``.bin`` files, of which only tensors are accepted, and turns them into safetensors.

torch is imported here only, and only for such a checkpoint. Of the files that torch maps into memory, reading the names
and shapes touches no weights.
"""

import json
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.core.model_folder import indexed_files, own_path
from axolotl_sdft.pruning.checkpoint.tensor_files import INDEX_FILE, SINGLE_FILE, StoredTensor, read_header

if TYPE_CHECKING:
    from torch import Tensor

LEGACY_FILE = "pytorch_model.bin"
LEGACY_INDEX_FILE = "pytorch_model.bin.index.json"

_SAFETENSORS_DTYPES = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"},
    **{"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"},
}
_SAVE_AGAIN = "load the model with transformers and save it again with save_pretrained, which writes safetensors"


def is_legacy(folder: Path) -> bool:
    """Tell whether a checkpoint has pickled weights only; where it has safetensors too, transformers reads those."""
    has_safetensors = (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file()
    return not has_safetensors and any((folder / name).is_file() for name in (LEGACY_FILE, LEGACY_INDEX_FILE))


def read_legacy_checkpoint(folder: Path) -> list[StoredTensor]:
    """Return the names, kinds and shapes of a pickled checkpoint's tensors, file by file.

    Their bytes have no place that could be read without torch: ``offset`` is 0; :func:`converted` gives the real one.
    Two names of one tensor (a tied head) are two tensors here, which transformers ties again when it loads them.

    Raises:
        CheckpointError: A file is missing, broken, or holds something else than tensors.
    """
    return [
        StoredTensor(name, _dtype_name(tensor, name, path), tuple(tensor.shape), path, 0, tensor.nbytes)
        for path in _legacy_files(folder)
        for name, tensor in _load(path, "meta").items()
    ]


def converted(tensors: Sequence[tuple[str, StoredTensor]], folder: Path) -> list[tuple[str, StoredTensor]]:
    """Write tensors of a pickled checkpoint to safetensors files in an empty folder; return them with their new places.

    One tensor at a time is in memory, or one file's where torch can't map it (written by torch before 1.6).

    Raises:
        CheckpointError: A file is broken or holds something else than tensors.
    """
    placed: list[tuple[str, StoredTensor]] = []
    by_file = groupby(tensors, key=lambda pair: pair[1].file)
    for number, (path, of_file) in enumerate(by_file):
        names = {tensor.name: new_name for new_name, tensor in of_file}
        target = folder / f"{number}.safetensors"
        state = _load(path, "cpu")
        _write(target, {name: state[name] for name in names})
        placed += [(names[tensor.name], tensor) for tensor in read_header(target)[0]]
    return placed


def _legacy_files(folder: Path) -> list[Path]:
    if (folder / LEGACY_FILE).is_file():
        return [own_path(folder, LEGACY_FILE)]
    names = sorted(set(indexed_files(folder, LEGACY_INDEX_FILE).values()))
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(f"{folder / LEGACY_INDEX_FILE} names {absent[0]}, which is missing; download it again")
    return [folder / name for name in names]


def _load(path: Path, device: str) -> Mapping[str, "Tensor"]:
    """Return the tensors of one file, mapped into memory where the file allows it."""
    import pickle

    import torch

    try:
        state = torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as err:
        found = re.search(r"WeightsUnpickler error: (.+)", str(err))
        raise CheckpointError(
            f"{path} holds something else than tensors, which is not read, since a pickled file can run code"
            f"{': ' + found[1].strip() if found else ''}. If you trust it, {_SAVE_AGAIN}"
        ) from err
    except NotImplementedError as err:  # sparse tensors without content, in torch before 2.7
        raise CheckpointError(f"{path} holds tensors that torch can't read ({err}); {_SAVE_AGAIN}") from err
    except (RuntimeError, OSError, EOFError, ValueError) as err:
        raise CheckpointError(f"{path} can't be read ({type(err).__name__}: {err}); download it again") from err
    _require_tensors(path, state)
    return state


def _require_tensors(path: Path, state: Any) -> None:
    from torch import Tensor

    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__} instead of named tensors; {_SAVE_AGAIN}")
    others = [f"{name!r} is a {type(value).__name__}" for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{path} holds something else than tensors ({others[0]}); {_SAVE_AGAIN}")


def _dtype_name(tensor: "Tensor", name: str, path: Path) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _SAFETENSORS_DTYPES or tensor.is_sparse:
        raise CheckpointError(f"{path} holds {name!r} in {dtype}, {tensor.layout}, which safetensors files can't hold")
    return _SAFETENSORS_DTYPES[dtype]


def _write(path: Path, tensors: Mapping[str, "Tensor"]) -> None:
    import torch

    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        dtype = _dtype_name(tensor, name, path)
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
