"""Merges two full checkpoints, a piece of a tensor at a time, whatever their size."""

import logging
import re
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO

from axolotl_sdft.core.artifacts import write_json
from axolotl_sdft.core.errors import CheckpointError, ConfigError
from axolotl_sdft.core.terminal import progress
from axolotl_sdft.evaluation.merging.same_model import (
    SAME_BASE,
    check_same_model,
    check_same_tokens,
    settings_of,
    with_dtype,
)
from axolotl_sdft.evaluation.merging.slerp import Blend, Overlap
from axolotl_sdft.pruning.checkpoint.cut import files_that_come_along
from axolotl_sdft.pruning.checkpoint.legacy_files import converted, is_legacy, read_legacy_checkpoint
from axolotl_sdft.pruning.checkpoint.tensor_files import INDEX_FILE, StoredTensor, read_checkpoint
from axolotl_sdft.pruning.checkpoint.tensor_writer import (
    bytes_per_number,
    file_names,
    header_bytes,
    split_into_shards,
    write_index,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LOG = logging.getLogger(__name__)

_BYTES_PER_NUMBER = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_STORED_AS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_EMBEDDING = re.compile(r"embed|wte")
_OF_A_RUN = ("trainer_state.json", "tokens_state.json", "debug.log", "all_results.json", "train_results.json")
"""What training leaves beside a model."""
_PIECE = 2**22
"""Numbers of a tensor that are in memory at a time: 16 MB in float32, of each model."""


@dataclass(frozen=True)
class TensorPair:
    """A tensor of both models, and what becomes of it."""

    first: StoredTensor
    second: StoredTensor
    merged: StoredTensor
    """Its name, dtype and size; where it will lie is not known yet."""


@dataclass(frozen=True)
class CheckpointMerge:
    """All that is to be written, decided from headers alone."""

    first_dir: Path
    config: dict[str, Any]
    """The new ``config.json``."""
    pairs: tuple[TensorPair, ...]
    metadata: Mapping[str, str]
    legacy: tuple[bool, bool]
    """Whether the weights of the first and the second model are pickled, so that they become safetensors first."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the merged weights, and of what pickled ones take up while they are read."""
        scratch = [
            sum(getattr(pair, side).num_bytes for pair in self.pairs)
            for side, is_pickled in zip(("first", "second"), self.legacy, strict=True)
            if is_pickled
        ]
        return sum(pair.merged.num_bytes for pair in self.pairs) + sum(scratch)


def read_merge(first_dir: Path, second_dir: Path, dtype: str) -> CheckpointMerge:
    """Return what merging two checkpoints would write; reads headers only and writes nothing.

    Args:
        first_dir: The model whose settings are taken.
        second_dir: The other one.
        dtype: Number format of the merged weights; ``auto`` keeps that of each tensor of the first model.

    Raises:
        ConfigError: The two are not variants of one model: settings, names, shapes or tokens differ.
        CheckpointError: One is quantized, incomplete or broken.
    """
    config = check_same_model(first_dir, second_dir)
    (first, metadata), (second, _) = _read_tensors(first_dir), _read_tensors(second_dir)
    firsts = {tensor.name: tensor for tensor in first}
    seconds = {tensor.name: tensor for tensor in second}
    is_tied = bool(settings_of(first_dir).get("tie_word_embeddings", True))
    for folder, tensors, other in ((first_dir, firsts, seconds), (second_dir, seconds, firsts)):
        _require_named_in_both(folder, tensors, other, is_tied)
    pairs = tuple(_pair(tensor, seconds[name], dtype) for name, tensor in firsts.items() if name in seconds)
    check_same_tokens(first_dir, second_dir)
    return CheckpointMerge(
        first_dir=first_dir,
        config=config if dtype == "auto" else with_dtype({"dtype": dtype, **config}, dtype),
        pairs=pairs,
        metadata=metadata,
        legacy=(is_legacy(first_dir), is_legacy(second_dir)),
    )


def write_merge(merge: CheckpointMerge, folder: Path, blend: Blend, max_shard_bytes: int) -> None:
    """Write a merge into an empty folder: weights, ``config.json``, and what comes along from the first model.

    Computed in float32. A few pieces of 16 MB are in memory at a time, whatever the size of the model.

    Raises:
        CheckpointError: A file is broken, a weight is not a number, or integers differ between the models.
    """
    with ExitStack() as stack:
        pairs = _converted_pairs(merge, folder, stack)
        shards = list(split_into_shards([(pair.merged.name, pair.merged) for pair in pairs], max_shard_bytes))
        files = file_names(len(shards))
        by_name = {pair.merged.name: pair for pair in pairs}
        with progress("merging", len(pairs), "tensors", LOG) as shown:
            for file, shard in zip(files, shards, strict=True):
                # Readers view the bytes in place, so wide numbers must not follow an odd count of narrow ones.
                ordered = sorted(shard, key=lambda named: -bytes_per_number(named[1]))
                header = header_bytes(ordered, {"format": "pt", **merge.metadata})
                header += b" " * (-len(header) % 8)
                with (folder / file).open("wb") as target:
                    target.write(struct.pack("<Q", len(header)) + header)
                    for name, _ in ordered:
                        _write_merged(target, by_name[name], blend)
                        shown.advance()
    if len(shards) > 1:
        write_index(folder / INDEX_FILE, files, shards)
    write_json(folder / "config.json", merge.config)
    copy_files(merge.first_dir, folder)


def copy_files(source_dir: Path, folder: Path) -> None:
    """Copy tokenizer, chat template, generation settings, custom code and licence; no weights and no model card."""
    for path in files_that_come_along(source_dir):
        if path.name in _OF_A_RUN:
            continue
        target = folder / path.relative_to(source_dir)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


def _read_tensors(folder: Path) -> tuple[Sequence[StoredTensor], Mapping[str, str]]:
    return (read_legacy_checkpoint(folder), {}) if is_legacy(folder) else read_checkpoint(folder)


def _require_named_in_both(
    folder: Path, tensors: Mapping[str, StoredTensor], others: Mapping[str, StoredTensor], is_tied: bool
) -> None:
    for name in tensors:
        if name not in others and not (is_tied and _is_embedding_again(name, tensors)):
            raise ConfigError(f"only {folder} has a tensor {name!r}; {SAME_BASE}")


def _is_embedding_again(name: str, tensors: Mapping[str, StoredTensor]) -> bool:
    """Tell whether a tensor may be the embedding once more: older files hold a tied output head beside it."""
    embeddings = [tensor for other, tensor in tensors.items() if other != name and _EMBEDDING.search(other)]
    return any(tensor.shape == tensors[name].shape for tensor in embeddings)


def _pair(first: StoredTensor, second: StoredTensor, dtype: str) -> TensorPair:
    if first.shape != second.shape:
        raise ConfigError(_shape_fault(first, second))
    is_float = first.dtype in _BYTES_PER_NUMBER and second.dtype in _BYTES_PER_NUMBER
    if not is_float and first.dtype != second.dtype:
        raise ConfigError(
            f"{first.name} is stored in {first.dtype} in {first.file.parent}, but in {second.dtype} in "
            f"{second.file.parent}; {SAME_BASE}"
        )
    kept = first.dtype if dtype == "auto" or not is_float else _STORED_AS[dtype]
    num_bytes = first.num_parameters * _BYTES_PER_NUMBER[kept] if is_float else first.num_bytes
    return TensorPair(first, second, replace(first, dtype=kept, num_bytes=num_bytes))


def _shape_fault(first: StoredTensor, second: StoredTensor) -> str:
    shapes = f"{list(first.shape)} in {first.file.parent}, but {list(second.shape)} in {second.file.parent}"
    differ_in_rows = first.shape[1:] == second.shape[1:] and len(first.shape) == 2
    if differ_in_rows and (_EMBEDDING.search(first.name) or "head" in first.name):
        return (
            f"{first.name} is {shapes}: one model's vocabulary was resized. Resize the other in the same way "
            "(model.resize_token_embeddings, then save_pretrained) and merge that, or train both with the same tokens"
        )
    return f"{first.name} is {shapes}; {SAME_BASE}"


def _converted_pairs(merge: CheckpointMerge, folder: Path, stack: ExitStack) -> Sequence[TensorPair]:
    """Return the pairs with the tensors of pickled files at their places in safetensors files, which vanish again."""
    pairs = list(merge.pairs)
    for side, is_pickled in zip(("first", "second"), merge.legacy, strict=True):
        if is_pickled:
            scratch = Path(stack.enter_context(TemporaryDirectory(prefix=".converted-", dir=folder)))
            placed = dict(converted([(pair.merged.name, getattr(pair, side)) for pair in pairs], scratch))
            pairs = [replace(pair, **{side: placed[pair.merged.name]}) for pair in pairs]
    return pairs


def _write_merged(target: BinaryIO, pair: TensorPair, blend: Blend) -> None:
    if pair.first.dtype not in _BYTES_PER_NUMBER:
        _write_equal(target, pair)
        return
    first_factor, second_factor = blend.factors(lambda: _overlap(pair))
    dtype = _torch_dtype(pair.merged)
    for first_N, second_N in _pieces(pair):
        merged_N = first_N.mul_(first_factor).add_(second_N, alpha=second_factor).to(dtype)
        if not merged_N.isfinite().all():
            raise CheckpointError(_number_fault(pair))
        target.write(_bytes_of(merged_N))


def _write_equal(target: BinaryIO, pair: TensorPair) -> None:
    """Write a tensor of integers, which can't lie between two models."""
    for ours, theirs in zip(_raw_pieces(pair.first), _raw_pieces(pair.second), strict=True):
        if ours != theirs:
            raise CheckpointError(
                f"{pair.first.name} is stored in {pair.first.dtype}, which can't be averaged, and differs between "
                f"{pair.first.file.parent} and {pair.second.file.parent}"
            )
        target.write(ours)


def _overlap(pair: TensorPair) -> Overlap:
    import torch

    dot = squared_first = squared_second = 0.0
    for first_N, second_N in _pieces(pair):
        dot += torch.dot(first_N, second_N).item()
        squared_first += torch.dot(first_N, first_N).item()
        squared_second += torch.dot(second_N, second_N).item()
    return Overlap(dot, squared_first, squared_second)


def _number_fault(pair: TensorPair) -> str:
    fault = f"{pair.first.name} holds infinities or NaN in {pair.first.file} or {pair.second.file}"
    return f"{fault}, or numbers too large for dtype: float16" if pair.merged.dtype == "F16" else fault


def _pieces(pair: TensorPair) -> "Iterator[tuple[Tensor, Tensor]]":
    """Yield both tensors in float32, flattened, piece by piece. N: numbers of a piece."""
    import torch

    dtypes = _torch_dtype(pair.first), _torch_dtype(pair.second)
    for ours, theirs in zip(_raw_pieces(pair.first), _raw_pieces(pair.second), strict=True):
        yield torch.frombuffer(ours, dtype=dtypes[0]).float(), torch.frombuffer(theirs, dtype=dtypes[1]).float()


def _raw_pieces(tensor: StoredTensor) -> Iterator[bytearray]:
    """Yield a stored tensor's bytes, as many numbers at a time as of any other dtype."""
    step = _PIECE * max(1, bytes_per_number(tensor))
    with tensor.file.open("rb", buffering=0) as file:
        file.seek(tensor.offset)
        for start in range(0, tensor.num_bytes, step):
            piece = bytearray(min(step, tensor.num_bytes - start))
            view = memoryview(piece)
            while view:
                num_read = file.readinto(view)
                if not num_read:
                    raise CheckpointError(f"{tensor.file} became shorter while it was read")
                view = view[num_read:]
            yield piece


def _torch_dtype(tensor: StoredTensor) -> "torch.dtype":
    import torch

    return {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[tensor.dtype]


def _bytes_of(tensor: "Tensor") -> memoryview:
    import torch

    return tensor.view(torch.uint8).numpy().data
