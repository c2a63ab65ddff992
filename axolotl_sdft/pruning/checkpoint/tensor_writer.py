"""Writes safetensors files from byte ranges of others, several at a time. No tensor is built, no torch needed."""

import errno
import json
import logging
import os
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.core.terminal import progress
from axolotl_sdft.pruning.checkpoint.tensor_files import INDEX_FILE, SINGLE_FILE, StoredTensor

LOG = logging.getLogger(__name__)

NamedTensor = tuple[str, StoredTensor]
"""A tensor's new name, and where it is now."""

_WORKERS = 3
_BUFFER_BYTES = 2**20
_MAX_COPY_BYTES = 2**27  # one call to the kernel can't be interrupted
_ALIGNMENT = 8
_PAGE = 4096


def write_checkpoint(
    folder: Path, tensors: Sequence[NamedTensor], metadata: Mapping[str, str], max_shard_bytes: int
) -> None:
    """Write tensors under new names into as few files as the size allows, with an index when there are several.

    Bytes move as they are. A tensor larger than ``max_shard_bytes`` gets a file of its own.
    """
    with writing_checkpoint(folder, tensors, metadata, max_shard_bytes):
        pass


@contextmanager
def writing_checkpoint(
    folder: Path, tensors: Sequence[NamedTensor], metadata: Mapping[str, str], max_shard_bytes: int
) -> Iterator[None]:
    """Write as :func:`write_checkpoint` does, while the block runs; when the block has ended, all is written.

    When the block or a copy raises, the other copies stop within a moment and half-written files stay where they are.
    """
    shards = list(split_into_shards(tensors, max_shard_bytes))
    files = file_names(len(shards))
    header_metadata = {"format": "pt", **metadata}
    stop = threading.Event()
    with ThreadPoolExecutor(_WORKERS) as pool, progress("cutting", len(shards), "files", LOG) as shown:
        try:
            copies = [
                pool.submit(_write_file, folder / file, shard, header_metadata, stop)
                for file, shard in zip(files, shards, strict=True)
            ]
            yield
            for copy in as_completed(copies):
                copy.result()
                shown.advance()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if len(shards) > 1:
        write_index(folder / INDEX_FILE, files, shards)


def write_index(path: Path, files: Sequence[str], shards: Sequence[Sequence[NamedTensor]]) -> None:
    """Write the index that tells in which file each tensor is."""
    homes = sorted((name, file) for file, shard in zip(files, shards, strict=True) for name, _ in shard)
    total = sum(tensor.num_bytes for shard in shards for _, tensor in shard)
    with path.open("w", encoding="utf-8") as file:  # piece by piece, since it may hold 100,000 names
        json.dump({"metadata": {"total_size": total}, "weight_map": dict(homes)}, file, indent=2, ensure_ascii=False)
        file.write("\n")


def file_names(count: int) -> list[str]:
    """Return the names of so many weight files, as transformers gives them."""
    if count == 1:
        return [SINGLE_FILE]
    width = max(5, len(str(count)))
    return [f"model-{number:0{width}}-of-{count:0{width}}.safetensors" for number in range(1, count + 1)]


def split_into_shards(tensors: Sequence[NamedTensor], max_bytes: int) -> Iterator[list[NamedTensor]]:
    """Yield the tensors of one weight file after another, in order; a tensor that is larger has one of its own."""
    shard: list[NamedTensor] = []
    filled = 0
    for name, tensor in tensors:
        if shard and filled + tensor.num_bytes > max_bytes:
            yield shard
            shard, filled = [], 0
        shard.append((name, tensor))
        filled += tensor.num_bytes
    yield shard


def _write_file(path: Path, tensors: Sequence[NamedTensor], metadata: Mapping[str, str], stop: threading.Event) -> None:
    # Readers view the bytes in place, so wide numbers must not follow an odd count of narrow ones.
    ordered = sorted(tensors, key=lambda pair: -bytes_per_number(pair[1]))
    ranges = _merged_ranges([tensor for _, tensor in ordered])
    header = header_bytes(ordered, metadata)
    header += b" " * ((_best_start(ranges) - 8 - len(header)) % _PAGE)
    with path.open("wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for source, offset, num_bytes in ranges:
            with source.open("rb", buffering=0) as source_file:
                copy_range(source_file.fileno(), offset, file.fileno(), num_bytes, stop)


def header_bytes(ordered: Sequence[NamedTensor], metadata: Mapping[str, str]) -> bytes:
    """Return the JSON header of a safetensors file that holds these tensors one after the other."""
    entries = [f'"__metadata__":{_compact(dict(metadata))}']
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.num_bytes
        entry = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        entries.append(f"{_compact(name)}:{_compact(entry)}")
    return f"{{{','.join(entries)}}}".encode()


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def bytes_per_number(tensor: StoredTensor) -> int:
    """Return the width of a tensor's numbers; 1 where it has none."""
    return tensor.num_bytes // tensor.num_parameters if tensor.num_parameters else 1


def _best_start(ranges: Sequence[tuple[Path, int, int]]) -> int:
    """Return where in a memory page the data had best begin, so that most bytes keep their place within a page.

    The kernel then moves whole pages, at two thirds of the cost, and some file systems share them between the files.
    A range from byte 5000 on that comes 104 bytes into the new data keeps its place in the page when the data begin at
    4896 % 4096 = 800.
    """
    bytes_by_start: Counter[int] = Counter({0: 0})
    position = 0
    for _, offset, num_bytes in ranges:
        start = (offset - position) % _PAGE
        if start % _ALIGNMENT == 0:
            bytes_by_start[start] += num_bytes
        position += num_bytes
    return max(bytes_by_start, key=lambda start: bytes_by_start[start])


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


def copy_range(source: int, offset: int, target: int, num_bytes: int, stop: threading.Event | None = None) -> None:
    """Append bytes of one open file, from ``offset`` on, to another; within the kernel where it can.

    Once ``stop`` is set, the rest is left out.

    Raises:
        CheckpointError: The source ends early.
    """
    copy = _copy_in_kernel if hasattr(os, "copy_file_range") else _copy_through_memory
    while num_bytes and not (stop and stop.is_set()):
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
