"""Writes a checkpoint without some of its layers, straight from file to file. No tensor is built, no torch imported."""

import dataclasses
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from axolotl_sdft.config import parse_size
from axolotl_sdft.core.artifacts import (
    atomic_folder,
    ensure_free_space,
    ensure_writable,
    package_versions,
    write_json,
)
from axolotl_sdft.core.cards import CARD_FILE
from axolotl_sdft.core.errors import ArtifactError, CheckpointError
from axolotl_sdft.core.model_folder import (
    ADAPTER_CONFIG,
    DECODING_FOLDER,
    TEMPLATES_FOLDER,
    is_adapter,
    own_path,
    read_config,
    read_json_file,
)
from axolotl_sdft.core.trained_on import PROVENANCE_FILE, PROVENANCE_FOLDER, PRUNED_KEY
from axolotl_sdft.pruning.checkpoint.architecture import (
    find_layer_prefix,
    layer_count,
    num_extra_layers,
    renamed,
    start_prune_config,
)
from axolotl_sdft.pruning.checkpoint.legacy_files import converted, is_legacy, read_legacy_checkpoint
from axolotl_sdft.pruning.checkpoint.model_card import write_model_card
from axolotl_sdft.pruning.checkpoint.quantization import (
    QUANTIZATION_FILES,
    LayerNames,
    prune_quantization,
    renumbered,
)
from axolotl_sdft.pruning.checkpoint.tensor_files import StoredTensor, read_checkpoint
from axolotl_sdft.pruning.checkpoint.tensor_writer import writing_checkpoint
from axolotl_sdft.pruning.patching.apply import patched_tensors, require_same_layers
from axolotl_sdft.pruning.patching.record import LayerPatch, log_patch
from axolotl_sdft.pruning.planning.plan import given_layers, validate_drop_layers

LOG = logging.getLogger(__name__)

SCORES_FILE = "scores.json"

OUTPUT_KEY = "layer_pruning.output_dir"

_WEIGHT_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".npz", ".tflite"),
    ".index.json",
)
# A model card describes the seed model; it would be wrong about the pruned one.
_NOT_COPIED = ("config.json", CARD_FILE, "sdft_merge.json", SCORES_FILE)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COPIED_FOLDERS = (TEMPLATES_FOLDER, DECODING_FOLDER)


@dataclass(frozen=True)
class CheckpointPlan:
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
    rewritten_files: Mapping[str, Any] = field(default_factory=dict)
    """JSON files beside ``config.json`` whose text names layers, by name, with their new content."""
    layer_prefix: str = ""
    """What comes before the layer number in the old names of tensors, such as ``model.layers.``."""
    is_legacy: bool = False
    """Whether the weights are pickled, so that they are turned into safetensors first."""

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
    max_shard_size: str | int = "5GB",
    provenance: dict[str, Any] | None = None,
    patch: LayerPatch | None = None,
) -> Path:
    """Write a checkpoint without some of its layers and return its folder, which is written whole or not at all.

    The weights that stay keep every bit, but for the one before each cut that a patch is folded into; later layers move
    up, also in quantization settings that name layers by number. Of a model that sees or hears, the text decoder is cut
    and the rest stays. Tokenizer, chat template, other settings, custom code and licence come along, and a provenance
    file says where the model comes from.

    A cut that was killed leaves a hidden folder beside ``output_dir``, which the next cut to the same place removes. It
    then begins anew: a cut takes about as long as copying the files.

    Args:
        source_dir: Folder of a checkpoint in safetensors files, or in ``.bin`` files that hold only tensors; or a Hub
            id, which is downloaded or found in the cache.
        drop_layers: The removed layers, counted from 0.
        output_dir: Folder to make; it must not exist.
        max_shard_size: Largest weight file, such as ``500MB`` or ``5GB``, or its number of bytes.
        provenance: Added to the provenance file.
        patch: What :func:`~axolotl_sdft.fit_patch` gave for the same layers of this model. None: the bare cut. A cut
            that it leaves bare is warned of.

    Raises:
        ConfigError: No layer is named, one is not there, none would stay, or the patch was fitted for others.
        CheckpointError: The source is incomplete, or its architecture can't be cut soundly, with the reason.
        ArtifactError: ``output_dir`` exists, can't be written or lacks the space.

    Example:
        >>> cut_layers("models/SmolLM2-135M-Instruct", [13, 14, 15], "models/SmolLM2-121M-Instruct")
    """
    max_shard_bytes = parse_size(max_shard_size)
    dropped = given_layers(drop_layers, "drop_layers")
    if patch is not None:
        require_same_layers(patch, dropped)
    target = Path(output_dir).expanduser().absolute()
    if os.path.lexists(target):  # before a download
        raise ArtifactError(f"{target} exists already; delete it or name another folder")
    folder, origin = _found(source_dir)
    with _planning(folder, dropped) as (cut, pruned_config):
        check_room(cut, target)
        if patch is not None:
            log_patch(patch, LOG)
        with atomic_folder(target) as temporary:
            _write(cut, temporary, max_shard_bytes, origin | (provenance or {}), pruned_config, patch)
    return target


def _found(source_dir: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a checkpoint, downloaded if need be, and what the provenance says of where it is."""
    folder = Path(source_dir).expanduser()
    if folder.is_dir() or not isinstance(source_dir, str) or not _HUB_ID.fullmatch(source_dir):
        return folder, {"seed_dir": str(folder.absolute())}
    from axolotl_sdft.core.model_folder import resolve_seed

    snapshot = resolve_seed(source_dir, key="source_dir")
    return snapshot, {"seed_model": source_dir, "seed_dir": str(snapshot)}


def plan_checkpoint(source_dir: Path, drop_layers: Collection[int]) -> CheckpointPlan:
    """Return what a cut would write; reads headers only and writes nothing.

    Raises:
        ConfigError: A layer is not there, or none would stay.
        CheckpointError: The source is incomplete, or its architecture can't be cut soundly.
    """
    with _planning(source_dir, drop_layers) as (cut, pruned_config):
        return dataclasses.replace(cut, config=pruned_config())


@contextmanager
def _planning(
    source_dir: Path, drop_layers: Collection[int]
) -> Iterator[tuple[CheckpointPlan, Callable[[], dict[str, Any]]]]:
    """Give a cut that lacks only its ``config``, and what waits for that: computing it may take seconds."""
    config = read_config(source_dir)
    num_layers = layer_count(config)
    dropped = tuple(sorted(set(drop_layers)))
    validate_drop_layers(dropped, num_layers, "drop_layers")
    if dropped:
        refuse_adapter(source_dir)
    pending = start_prune_config(config, dropped)
    try:
        files_that_come_along(source_dir)  # what may not be copied stops the cut before it begins
        legacy = is_legacy(source_dir)
        tensors, metadata = (read_legacy_checkpoint(source_dir), {}) if legacy else read_checkpoint(source_dir)
        num_stored = num_layers + num_extra_layers(config)
        prefix = find_layer_prefix((tensor.name for tensor in tensors), num_layers, num_stored - num_layers)
        kept = [layer for layer in range(num_stored) if layer not in dropped]
        layers = LayerNames.of((tensor.name for tensor in tensors), prefix, num_stored, kept)

        def pruned_config() -> dict[str, Any]:
            return _without_earlier_pruning(prune_quantization(pending.result(), layers))

        named = ((renamed(tensor.name, prefix, kept), tensor) for tensor in tensors)
        yield (
            CheckpointPlan(
                source_dir=source_dir,
                drop_layers=dropped,
                num_layers=num_layers,
                config={},
                tensors=tuple((name, tensor) for name, tensor in named if name is not None),
                metadata=metadata,
                parameters_before=sum(tensor.num_parameters for tensor in tensors),
                rewritten_files=_rewritten_files(source_dir, layers),
                layer_prefix=prefix,
                is_legacy=legacy,
            ),
            pruned_config,
        )
    finally:
        pending.cancel()


def refuse_adapter(source_dir: Path) -> None:
    """Refuse to remove layers of a folder that transformers takes for an adapter, whole weights beside it or not.

    Raises:
        CheckpointError: It holds an ``adapter_config.json``.
    """
    if is_adapter(source_dir):
        raise CheckpointError(
            f"{source_dir} holds an adapter ({ADAPTER_CONFIG}), which was trained on all layers; merge it into its "
            f"base model first (axolotl merge-lora), or delete {ADAPTER_CONFIG} if the weights there are whole"
        )


def _without_earlier_pruning(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != PRUNED_KEY}


def _rewritten_files(source_dir: Path, layers: LayerNames) -> dict[str, Any]:
    paths = [own_path(source_dir, name) for name in QUANTIZATION_FILES if (source_dir / name).is_file()]
    return {path.name: renumbered(read_json_file(path), layers, path.name) for path in paths}


def check_room(cut: CheckpointPlan, target: Path) -> None:
    """Refuse a folder that can't be made or whose disk is too full.

    Raises:
        ArtifactError: The message names ``layer_pruning.output_dir``, the folder and the cause.
    """
    ensure_writable(target.parent, OUTPUT_KEY)
    ensure_free_space(target.parent, cut.num_bytes * (2 if cut.is_legacy else 1), OUTPUT_KEY)


def write_cut(
    cut: CheckpointPlan,
    folder: Path,
    max_shard_bytes: int,
    provenance: dict[str, Any] | None = None,
    patch: LayerPatch | None = None,
) -> None:
    """Write a cut into an empty folder, with a patch for the same layers folded in.

    Raises:
        CheckpointError: A weight file of the source is broken.
    """
    _write(cut, folder, max_shard_bytes, provenance or {}, lambda: cut.config, patch)


def _write(
    cut: CheckpointPlan,
    folder: Path,
    max_shard_bytes: int,
    provenance: dict[str, Any],
    config: Callable[[], dict[str, Any]],
    patch: LayerPatch | None,
) -> None:
    with ExitStack() as stack:
        tensors: Sequence[tuple[str, StoredTensor]] = cut.tensors
        if cut.is_legacy:
            scratch = stack.enter_context(TemporaryDirectory(prefix=".converted-", dir=folder))
            tensors = converted(tensors, Path(scratch))
        if patch is not None and patch.applied:
            scratch = stack.enter_context(TemporaryDirectory(prefix=".patched-", dir=folder))
            tensors = patched_tensors(tensors, cut.layer_prefix, patch, Path(scratch))
        stack.enter_context(writing_checkpoint(folder, tensors, cut.metadata, max_shard_bytes))
        # The weights are being copied already; a config that is refused stops that.
        write_json(folder / "config.json", config())
        _copy_files(cut, folder)
        patched = {} if patch is None else {"patch": patch.to_json()}
        complete = _provenance(cut) | patched | provenance
        (folder / PROVENANCE_FOLDER).mkdir()
        write_json(folder / PROVENANCE_FILE, complete)
        write_model_card(folder, cut.source_dir, complete)


def _copy_files(cut: CheckpointPlan, folder: Path) -> None:
    for path in files_that_come_along(cut.source_dir):
        target = folder / path.relative_to(cut.source_dir)
        target.parent.mkdir(exist_ok=True)
        if path.name in cut.rewritten_files:
            write_json(target, cut.rewritten_files[path.name])
        else:
            shutil.copyfile(path, target)


def files_that_come_along(source_dir: Path) -> Sequence[Path]:
    """Return what goes with the weights into another checkpoint: tokenizer, templates, settings, code, licence.

    Raises:
        CheckpointError: One of the files is a symlink to a place outside the folder, which is not copied.
    """
    folders = [source_dir, *(source_dir / name for name in _COPIED_FOLDERS)]
    return [
        own_path(source_dir, path.relative_to(source_dir).as_posix())
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.is_file()
        and path.name not in _NOT_COPIED
        and not path.name.startswith(".")
        and not path.name.endswith(_WEIGHT_SUFFIXES)
    ]


def _provenance(cut: CheckpointPlan) -> dict[str, Any]:
    return {
        "seed_model": str(cut.source_dir),
        "drop_layers": list(cut.drop_layers),
        "num_layers_before": cut.num_layers,
        "num_layers_after": cut.num_layers - len(cut.drop_layers),
        "parameters_before": cut.parameters_before,
        "parameters_after": cut.parameters_after,
        "package_versions": package_versions("transformers", "torch"),
    }
