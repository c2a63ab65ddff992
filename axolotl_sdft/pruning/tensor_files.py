"""Reads safetensors headers and moves tensors between files as byte ranges; no tensor is ever built, no torch needed.

A safetensors file is 8 bytes that hold the length of the header (little endian), the header (JSON, from each tensor's
name to its dtype, shape and place in the data), and the data.
"""

import errno
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_sdft.artifacts import write_json
from axolotl_sdft.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_BUFFER_BYTES = 8 * 2**20
_MAX_COPY_BYTES = 2**30  # the kernel moves at most 2 GiB at once
_ALIGNMENT = 8


@dataclass(frozen=True)
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
    for path, names in _files(folder).items():
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
    return StoredTensor(name, entry["dtype"], tuple(entry["shape"]), path, data_start + begin, end - begin)


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """Return the weight files, as transformers would choose them, with the names to read (None: all)."""
    if (folder / SINGLE_FILE).is_file():
        return {folder / SINGLE_FILE: None}
    if not (folder / INDEX_FILE).is_file():
        raise CheckpointError(_nothing_to_read(folder))
    try:
        weight_map = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
        files: dict[Path, set[str] | None] = {}
        for shard in sorted(set(weight_map.values())):
            files[folder / shard] = {name for name, home in weight_map.items() if home == shard}
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
        f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}: {holds}. Load the model with transformers and save it "
        "again with save_pretrained, which writes safetensors"
    )


def write_checkpoint(
    folder: Path, tensors: Sequence[tuple[str, StoredTensor]], metadata: Mapping[str, str], max_shard_bytes: int
) -> None:
    """Write tensors under new names into as few files as the size allows, with an index when there are several.

    Bytes move as they are. A tensor larger than ``max_shard_bytes`` gets a file of its own.
    """
    shards = list(_shards(tensors, max_shard_bytes))
    width = max(5, len(str(len(shards))))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:0{width}}-of-{len(shards):0{width}}.safetensors" if len(shards) > 1 else SINGLE_FILE
        _write_file(folder / file, shard, {"format": "pt", **metadata})
        weight_map.update(dict.fromkeys((name for name, _ in shard), file))
    if len(shards) > 1:
        total = sum(tensor.num_bytes for _, tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / INDEX_FILE, index)


def _shards(tensors: Sequence[tuple[str, StoredTensor]], max_bytes: int) -> Iterator[list[tuple[str, StoredTensor]]]:
    shard: list[tuple[str, StoredTensor]] = []
    filled = 0
    for name, tensor in tensors:
        if shard and filled + tensor.num_bytes > max_bytes:
            yield shard
            shard, filled = [], 0
        shard.append((name, tensor))
        filled += tensor.num_bytes
    yield shard


def _write_file(path: Path, tensors: Sequence[tuple[str, StoredTensor]], metadata: Mapping[str, str]) -> None:
    # Readers view the bytes in place, so wide numbers must not follow an odd count of narrow ones.
    ordered = sorted(tensors, key=lambda pair: -_bytes_per_number(pair[1]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.num_bytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.flush()
        for source, offset, num_bytes in _merged_ranges([tensor for _, tensor in ordered]):
            with source.open("rb") as source_file:
                copy_range(source_file.fileno(), offset, file.fileno(), num_bytes)


def _bytes_per_number(tensor: StoredTensor) -> int:
    return tensor.num_bytes // tensor.num_parameters if tensor.num_parameters else 1


def _merged_ranges(tensors: Sequence[StoredTensor]) -> list[tuple[Path, int, int]]:
    """Return (file, offset, bytes) with neighbours joined: (f, 8, 4) and (f, 12, 4) become (f, 8, 8)."""
    ranges: list[tuple[Path, int, int]] = []
    for tensor in tensors:
        if ranges and ranges[-1][0] == tensor.file and sum(ranges[-1][1:]) == tensor.offset:
            file, offset, num_bytes = ranges[-1]
            ranges[-1] = (file, offset, num_bytes + tensor.num_bytes)
        else:
            ranges.append((tensor.file, tensor.offset, tensor.num_bytes))
    return ranges


def copy_range(source: int, offset: int, target: int, num_bytes: int) -> None:
    """Append bytes of one open file, from ``offset`` on, to another; within the kernel where it can.

    Raises:
        CheckpointError: The source ends early.
    """
    copy = _copy_in_kernel if hasattr(os, "copy_file_range") else _copy_through_memory
    while num_bytes:
        try:
            moved = copy(source, offset, target, num_bytes)
        except OSError as err:
            refused = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
            if copy is _copy_through_memory or err.errno not in refused:
                raise
            copy = _copy_through_memory
            continue
        if moved == 0 and copy is _copy_through_memory:
            raise CheckpointError("a weight file of the seed model became shorter while it was copied")
        if moved == 0:  # some file systems give 0 instead of an error
            copy = _copy_through_memory
        offset, num_bytes = offset + moved, num_bytes - moved


def _copy_in_kernel(source: int, offset: int, target: int, num_bytes: int) -> int:
    return os.copy_file_range(source, target, min(num_bytes, _MAX_COPY_BYTES), offset_src=offset)


def _copy_through_memory(source: int, offset: int, target: int, num_bytes: int) -> int:
    piece = os.pread(source, min(num_bytes, _BUFFER_BYTES), offset)
    view = memoryview(piece)
    while view:
        view = view[os.write(target, view) :]
    return len(piece)
