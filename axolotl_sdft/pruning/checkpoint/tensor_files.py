"""Reads where the tensors of a checkpoint lie, from safetensors headers alone, and which belong to which layer.

A safetensors file is 8 bytes that hold the length of the header (little endian), the header (JSON, from each tensor's
name to its dtype, shape and place in the data), and the data.
"""

import json
import math
import re
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from axolotl_sdft.core.errors import CheckpointError, first_line
from axolotl_sdft.core.model_folder import indexed_files, own_path, read_config

_OTHER_MODALITIES = re.compile(r"(^|[._])(vision|visual|image|vit|audio|speech|video)")


def first_number_prefix(name: str) -> str | None:
    """Return what comes before the first number in a dotted name: ``model.layers.`` of ``model.layers.3.mlp.up``."""
    match = re.match(r"(.*?)(?<![^.])\d+\.", name)
    return match[1] if match else None


def is_text_path(name: str) -> bool:
    """Tell whether a dotted name belongs to no other modality, such as ``vision_tower``."""
    return not _OTHER_MODALITIES.search(name)


def find_layer_prefix(names: Iterable[str], num_layers: int, num_extra: int = 0) -> str:
    """Return what comes before the layer number in the tensor names of the text decoder.

    It is the one prefix that comes with exactly the numbers 0 to ``num_layers`` - 1, and perhaps ``num_extra`` more:
    layers that predict further tokens are stored after the last one (DeepSeek-V3, GLM-4.5).

    Raises:
        CheckpointError: There is none, or more than one.
    """
    numbers: dict[str, set[int]] = {}
    for name in names:
        prefix = first_number_prefix(name)
        if prefix is not None:
            numbers.setdefault(prefix, set()).add(int(name[len(prefix) :].split(".", 1)[0]))
    counts = (set(range(num_layers)), set(range(num_layers + num_extra)))
    found = [prefix for prefix in numbers if numbers[prefix] in counts]
    if len(found) > 1:
        found = [prefix for prefix in found if is_text_path(prefix)]
    if len(found) == 1:
        return found[0]
    seen = ", ".join(f"{prefix}0 to {prefix}{max(numbers[prefix])}" for prefix in sorted(numbers)) or "no numbers"
    raise CheckpointError(
        f"config.json says {num_layers} layers, but {'several groups' if found else 'no group'} of tensor names "
        f"counts 0 to {num_layers - 1}; the names hold: {seen}"
    )


def renamed(name: str, prefix: str, kept: Sequence[int]) -> str | None:
    """Return a tensor's name after the cut, or None when its layer is removed. ``kept`` are the layers that stay."""
    if not name.startswith(prefix) or first_number_prefix(name) != prefix:
        return name
    number, _, rest = name[len(prefix) :].partition(".")
    return f"{prefix}{kept.index(int(number))}.{rest}" if int(number) in kept else None


SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000  # the library safetensors reads no longer ones


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
        CheckpointError: There are no safetensors files, one is missing, truncated or outside the folder, or the index
            does not match.
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


def refuse_damaged_checkpoint(folder: Path) -> None:
    """Refuse a pruned checkpoint that is there, but not all of it. Headers alone are read.

    Raises:
        CheckpointError: ``config.json`` or a weight file is missing or damaged.
    """
    try:
        read_config(folder)
        read_checkpoint(folder)
    except CheckpointError as err:
        raise CheckpointError(
            f"the pruned checkpoint {folder} is damaged: {err}. Put its files back; or delete the folder and run "
            "axolotl prune-layers or axolotl train, which make it anew"
        ) from err


def read_header(path: Path) -> tuple[list[StoredTensor], dict[str, str]]:
    """Return the tensors of one file in the order in which they are stored, and its metadata.

    Raises:
        CheckpointError: The file can't be read, is truncated, or is not a safetensors file.
    """
    try:
        header, data_start, size = _json_header(path)
        metadata = dict(header.pop("__metadata__", None) or {})
        tensors = [_stored_tensor(name, entry, path, data_start) for name, entry in header.items()]
    except RecursionError:
        raise CheckpointError(f"{path} is not a safetensors file: its header is nested too deeply") from None
    except OSError as err:
        raise CheckpointError(f"{path} can't be read: {first_line(err)}") from err
    except (ValueError, AttributeError, KeyError, TypeError) as err:
        if isinstance(err, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not a safetensors file: {type(err).__name__}: {first_line(err)}") from err
    end = max((tensor.offset + tensor.num_bytes for tensor in tensors), default=data_start)
    if end > size:
        raise CheckpointError(f"{path} is truncated: it has {size} bytes of {end}; download it again")
    return sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)), metadata


def _json_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return a file's header, where its data begins, and its size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        data_start = 8 + header_bytes
        if len(prefix) < 8 or data_start > size:
            raise CheckpointError(f"{path} is truncated: it has {size} bytes, fewer than its header; download it again")
        if header_bytes > _MAX_HEADER_BYTES:
            raise ValueError(f"the header has {header_bytes:,} bytes, more than {_MAX_HEADER_BYTES:,}")
        return json.loads(file.read(header_bytes)), data_start, size


def _stored_tensor(name: str, entry: Mapping[str, Any], path: Path, data_start: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    numbers = [begin, end, *entry["shape"]]
    if not all(type(number) is int and number >= 0 for number in numbers) or begin > end:
        raise ValueError(f"{name!r} of shape {entry['shape']} lies at {begin} to {end}")
    # Large checkpoints hold 100,000 tensors of few kinds.
    dtype = sys.intern(entry["dtype"])
    return StoredTensor(name, dtype, tuple(entry["shape"]), path, data_start + begin, end - begin)


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """Return the weight files, as transformers would choose them, with the names to read (None: all)."""
    if (folder / SINGLE_FILE).is_file():
        return {own_path(folder, SINGLE_FILE): None}
    if not (folder / INDEX_FILE).is_file():
        raise CheckpointError(_nothing_to_read(folder))
    weight_map = indexed_files(folder, INDEX_FILE)
    files: dict[Path, set[str] | None] = {
        folder / shard: {name for name, _ in pairs}
        for shard, pairs in groupby(sorted(weight_map.items(), key=itemgetter(1)), key=itemgetter(1))
    }
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
