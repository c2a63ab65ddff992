"""Writes a checkpoint without some of its layers, straight from file to file. No tensor is built, no torch imported."""

import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_sdft.artifacts import atomic_folder, ensure_free_space, ensure_writable, package_versions, write_json
from axolotl_sdft.config import parse_size
from axolotl_sdft.errors import CheckpointError
from axolotl_sdft.pruning.architecture import find_layer_prefix, layer_count, prune_config, renamed
from axolotl_sdft.pruning.plan import validate_drop_layers
from axolotl_sdft.pruning.tensor_files import StoredTensor, read_checkpoint, write_checkpoint

PROVENANCE_FILE = "layer_pruning.json"
SCORES_FILE = "scores.json"
PRUNED_KEY = "axolotl_sdft_pruning"
"""Key in ``config.json`` that holds the pruning's settings, fingerprinted. transformers keeps it through training."""

OUTPUT_KEY = "layer_pruning.output_dir"

_WEIGHT_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".npz", ".tflite"),
    ".index.json",
)
# A model card describes the seed model; it would be wrong about the pruned one.
_NOT_COPIED = ("config.json", "README.md", PROVENANCE_FILE, SCORES_FILE)
_COPIED_FOLDERS = ("additional_chat_templates",)


@dataclass(frozen=True)
class Cut:
    """All that is to be written, decided from the source's headers alone."""

    source_dir: Path
    drop_layers: tuple[int, ...]
    num_layers: int
    """Layers of the source."""
    config: dict[str, Any]
    """The new ``config.json``."""
    tensors: tuple[tuple[str, StoredTensor], ...]
    """New name and old place of each tensor that stays."""
    metadata: dict[str, str]
    parameters_before: int

    @property
    def parameters_after(self) -> int:
        """How many numbers the pruned checkpoint holds."""
        return sum(tensor.num_parameters for _, tensor in self.tensors)

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights that stay."""
        return sum(tensor.num_bytes for _, tensor in self.tensors)


def cut_layers(
    source_dir: str | Path,
    drop_layers: Collection[int],
    output_dir: str | Path,
    *,
    max_shard_size: str = "5GB",
    provenance: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint without some of its layers and return its folder, which is written whole or not at all.

    The weights that stay keep every bit; later layers move up. Tokenizer, chat template, generation config, custom code
    and licence come along, and a provenance file says where the model comes from.

    Args:
        source_dir: Folder of a checkpoint in safetensors files.
        drop_layers: The layers that go, counted from 0.
        output_dir: Folder to make; it must not exist.
        max_shard_size: Largest weight file, such as ``500MB`` or ``5GB``.
        provenance: Added to the provenance file.

    Raises:
        ConfigError: A layer is not there, or none would stay.
        CheckpointError: The source is incomplete, or its architecture can't be cut soundly, with the reason.
        ArtifactError: ``output_dir`` exists, can't be written or lacks the space.

    Example:
        >>> cut_layers("models/SmolLM2-135M-Instruct", [13, 14, 15], "models/SmolLM2-121M-Instruct")
    """
    max_shard_bytes = parse_size(max_shard_size)
    cut = read_cut(Path(source_dir), drop_layers)
    target = Path(output_dir).expanduser().absolute()
    check_room(cut, target)
    with atomic_folder(target) as folder:
        write_cut(cut, folder, max_shard_bytes, provenance)
    return target


def read_config(source_dir: Path) -> dict[str, Any]:
    """Return the ``config.json`` of a checkpoint.

    Raises:
        CheckpointError: The folder, or the file in it, is missing or broken.
    """
    if not source_dir.is_dir():
        raise CheckpointError(f"{source_dir} is no folder; name the folder of a checkpoint")
    try:
        config = json.loads((source_dir / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = ", ".join(sorted(path.name for path in source_dir.iterdir())[:8]) or "nothing"
        raise CheckpointError(f"{source_dir} has no config.json, so it is no checkpoint; it holds {there}") from None
    except (OSError, ValueError) as err:
        raise CheckpointError(f"{source_dir / 'config.json'} can't be read: {err}") from err
    if not isinstance(config, dict):
        raise CheckpointError(f"{source_dir / 'config.json'} holds a {type(config).__name__} instead of settings")
    return config


def read_cut(source_dir: Path, drop_layers: Collection[int]) -> Cut:
    """Return what a cut would write; reads headers only and writes nothing.

    Raises:
        ConfigError: A layer is not there, or none would stay.
        CheckpointError: The source is incomplete, or its architecture can't be cut soundly.
    """
    config = read_config(source_dir)
    num_layers = layer_count(config)
    dropped = tuple(sorted(set(drop_layers)))
    validate_drop_layers(dropped, num_layers, "drop_layers")
    pruned_config = prune_config(config, dropped)
    pruned_config.pop(PRUNED_KEY, None)  # it spoke of an earlier pruning
    tensors, metadata = read_checkpoint(source_dir)
    prefix = find_layer_prefix((tensor.name for tensor in tensors), num_layers)
    kept = [layer for layer in range(num_layers) if layer not in dropped]
    named = [(renamed(tensor.name, prefix, kept), tensor) for tensor in tensors]
    return Cut(
        source_dir=source_dir,
        drop_layers=dropped,
        num_layers=num_layers,
        config=pruned_config,
        tensors=tuple((name, tensor) for name, tensor in named if name is not None),
        metadata=metadata,
        parameters_before=sum(tensor.num_parameters for tensor in tensors),
    )


def check_room(cut: Cut, target: Path) -> None:
    """Refuse a folder that can't be made or whose disk is too full.

    Raises:
        ArtifactError: The message names ``layer_pruning.output_dir``, the folder and the cause.
    """
    ensure_writable(target.parent, OUTPUT_KEY)
    ensure_free_space(target.parent, cut.num_bytes, OUTPUT_KEY)


def write_cut(cut: Cut, folder: Path, max_shard_bytes: int, provenance: dict[str, Any] | None = None) -> None:
    """Write a cut into an empty folder."""
    for path in _files_that_come_along(cut.source_dir):
        target = folder / path.relative_to(cut.source_dir)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    write_json(folder / "config.json", cut.config)
    write_json(folder / PROVENANCE_FILE, _provenance(cut) | (provenance or {}))
    write_checkpoint(folder, cut.tensors, cut.metadata, max_shard_bytes)


def _files_that_come_along(source_dir: Path) -> Sequence[Path]:
    folders = [source_dir, *(source_dir / name for name in _COPIED_FOLDERS)]
    return [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.is_file()
        and path.name not in _NOT_COPIED
        and not path.name.startswith(".")
        and not path.name.endswith(_WEIGHT_SUFFIXES)
    ]


def _provenance(cut: Cut) -> dict[str, Any]:
    return {
        "seed_model": str(cut.source_dir),
        "drop_layers": list(cut.drop_layers),
        "num_layers_before": cut.num_layers,
        "num_layers_after": cut.num_layers - len(cut.drop_layers),
        "parameters_before": cut.parameters_before,
        "parameters_after": cut.parameters_after,
        "package_versions": package_versions("transformers", "torch"),
    }
