"""Reads where the tensors of a checkpoint lie, from safetensors headers alone. No tensor is built, no torch needed.

A safetensors file is 8 bytes that hold the length of the header (little endian), the header (JSON, from each tensor's
name to its dtype, shape and place in the data), and the data.
"""

import json
import math
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from axolotl_sdft.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's bytes are, and what it is called."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    """First byte in the file."""
    num_bytes: int

    @property
    def num_parameters(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)


def read_checkpoint(folder: Path) -> tuple[list[StoredTensor], dict[str, str]]:
    """Return the tensors of a checkpoint in the order in which they are stored, and its safetensors metadata.

    Raises:
        CheckpointError: There are no safetensors files, one is missing or truncated, or the index does not match.
    """
    tensors: list[StoredTensor] = []
    metadata: dict[str, str] = {}
    files = _files(folder)
    for path in list(files):
        names = files.pop(path)  # no longer needed afterwards, and there may be 100,000 in all
        stored, file_metadata = read_header(path)
        missing = names - {tensor.name for tensor in stored} if names is not None else set()
        if missing:
            raise CheckpointError(f"{folder / INDEX_FILE} says that {path.name} holds {min(missing)!r}, but it doesn't")
        tensors += [tensor for tensor in stored if names is None or tensor.name in names]
        metadata |= file_metadata
    return tensors, metadata


def read_header(path: Path) -> tuple[list[StoredTensor], dict[str, str]]:
    """Return the tensors of one file in the order in which they are stored, and its metadata.

    Raises:
        CheckpointError: The file is truncated or is no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        data_start = 8 + header_bytes
        if len(prefix) < 8 or data_start > size:
            raise CheckpointError(f"{path} is truncated: it has {size} bytes, fewer than its header; download it again")
        try:
            header = json.loads(file.read(header_bytes))
            metadata = header.pop("__metadata__", None) or {}
            tensors = [_stored_tensor(name, entry, path, data_start) for name, entry in header.items()]
        except (ValueError, AttributeError, KeyError, TypeError) as err:
            raise CheckpointError(f"{path} is no safetensors file: {type(err).__name__}: {err}") from err
    end = max((tensor.offset + tensor.num_bytes for tensor in tensors), default=data_start)
    if end > size:
        raise CheckpointError(f"{path} is truncated: it has {size} bytes of {end}; download it again")
    return sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)), metadata


def _stored_tensor(name: str, entry: Mapping[str, Any], path: Path, data_start: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end:
        raise ValueError(f"{name!r} lies at {begin} to {end}")
    # Large checkpoints hold 100,000 tensors of few kinds.
    dtype = sys.intern(entry["dtype"])
    return StoredTensor(name, dtype, tuple(entry["shape"]), path, data_start + begin, end - begin)


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """Return the weight files, as transformers would choose them, with the names to read (None: all)."""
    if (folder / SINGLE_FILE).is_file():
        return {folder / SINGLE_FILE: None}
    if not (folder / INDEX_FILE).is_file():
        raise CheckpointError(_nothing_to_read(folder))
    try:
        weight_map = json.loads((folder / INDEX_FILE).read_bytes())["weight_map"]
        files: dict[Path, set[str] | None] = {folder / shard: None for shard in sorted(set(weight_map.values()))}
        for shard, pairs in groupby(sorted(weight_map.items(), key=itemgetter(1)), key=itemgetter(1)):
            files[folder / shard] = {name for name, _ in pairs}
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise CheckpointError(f"{folder / INDEX_FILE} is no safetensors index: {type(err).__name__}: {err}") from err
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise CheckpointError(f"{folder / INDEX_FILE} names {absent[0]}, which is missing; download it again")
    return files


def _nothing_to_read(folder: Path) -> str:
    suffixes = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
    there = sorted(path.name for path in folder.iterdir() if path.suffix in suffixes)
    holds = f"its weight files are {', '.join(there[:5])}" if there else "it holds no weights"
    return (
        f"{folder} has neither {SINGLE_FILE} nor pytorch_model.bin, nor an index of either: {holds}. Load the model "
        "with transformers and save it again with save_pretrained, which writes safetensors"
    )
