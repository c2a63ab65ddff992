"""The file beside a trained model that says what it was trained on, and what earlier trainings left in the folder."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_sdft.core.artifacts import read_json
from axolotl_sdft.core.errors import ArtifactError
from axolotl_sdft.core.identity import file_digests
from axolotl_sdft.core.model_folder import ADAPTER_CONFIG, is_adapter

RECORD_FILE = "sdft_trained_on.json"
_COMPARED = ("name", "provenance", "datasets", "held_out")
"""Keys of a record that tell one training from another."""


@dataclass(frozen=True)
class Record:
    """What was recorded of the training that made some weights."""

    content: dict[str, Any]
    folder: Path
    """Paths in it are relative to this one."""
    is_previous: bool
    """Whether it is that of an earlier training, whose weights a later one has not replaced yet."""


def read_record(folder: Path) -> Record | None:
    """Return the record of the training that made the weights in a folder: its own, or its parent's.

    Raises:
        ArtifactError: It is broken.
    """
    path = folder / RECORD_FILE
    if not path.is_file() and folder.name.startswith("checkpoint-"):
        path = folder.absolute().parent / RECORD_FILE
    if not path.is_file():
        return None
    content = read_json(path)
    if "name" not in content:
        raise ArtifactError(f"{path} is not a record of a training; delete it, and {ADAPTER_CONFIG} is read instead")
    earlier = content.get("checkpoints", {}).get(folder.name) if path.parent != folder else None
    if earlier is not None and earlier["weights"] == _stamps(folder):
        return Record(earlier["record"], path.parent.absolute(), is_previous=True)
    replaced = content.get("replaced")
    if replaced is not None and path.parent == folder and replaced["weights"] == _weights(folder):
        return Record(replaced["record"], path.parent.absolute(), is_previous=True)
    return Record(content, path.parent.absolute(), is_previous=False)


def recorded_held_out(folder: Path) -> tuple[dict[str, Any], ...]:
    """Return entries that read the rows which the model in a folder was not trained on; empty where none are recorded.

    Raises:
        ArtifactError: The record is broken.
    """
    found = read_record(folder)
    if found is None:
        return ()
    entries = found.content.get("held_out") or ()
    return tuple({**entry, "path": str(joined_path(found.folder, entry["path"]))} for entry in entries)


def recorded_datasets(folder: Path, key: str = "datasets") -> tuple[Path | None, ...]:
    """Return the folders of rows that took the place of entries when the model in a folder was trained.

    Args:
        folder: The trained model.
        key: ``datasets`` or ``test_datasets``.

    Returns:
        A folder for each entry, None where an entry was left as it is; nothing where none took an entry's place.

    Raises:
        ArtifactError: The record is broken.
    """
    found = read_record(folder)
    if found is None:
        return ()
    return tuple(None if path is None else joined_path(found.folder, path) for path in found.content.get(key) or ())


def replaced_weights(output_dir: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the fingerprints of weights that an earlier training left, and its record; None where nothing differs."""
    weights = _weights(output_dir)
    if not weights:
        return None
    found, base = read_record(output_dir), named_base(output_dir)
    previous = {"name": None} if found is None else found.content
    if base is not None and not (found is not None and found.is_previous) and previous["name"] != Path(base).name:
        kept = {} if previous["name"] else {"held_out": previous.get("held_out")}
        previous = {"name": None, "adapter_base": base, **kept}
    if all(previous.get(key) == record.get(key) for key in _COMPARED) and "adapter_base" not in previous:
        return None
    return {"weights": weights, "record": _alone(previous)}


def earlier_checkpoints(output_dir: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the records of earlier trainings by the checkpoints that they saved, with what tells these from new ones.

    An adapter's checkpoint names its base itself.
    """
    path = output_dir / RECORD_FILE
    if not path.is_file():
        return {}
    previous = read_json(path)
    known = previous.get("checkpoints") or {}
    is_other = any(previous.get(key) != record.get(key) for key in _COMPARED)
    earlier = {}
    for folder in output_dir.glob("checkpoint-*"):
        stamps = _stamps(folder)
        if folder.name in known and known[folder.name]["weights"] == stamps:
            earlier[folder.name] = known[folder.name]
        elif is_other and stamps and not is_adapter(folder):
            earlier[folder.name] = {"weights": stamps, "record": _alone(previous)}
    return earlier


def _alone(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without those of trainings before it."""
    return {key: value for key, value in record.items() if key not in ("replaced", "checkpoints")}


def _weights(folder: Path) -> dict[str, str]:
    paths = _weight_paths(folder)
    return dict(zip((path.name for path in paths), file_digests(paths), strict=True))


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Return size and time of the weights in a folder: there may be many checkpoints, too many bytes to read."""
    found = ((path.name, path.stat()) for path in _weight_paths(folder))
    return {name: [status.st_size, status.st_mtime_ns] for name, status in found}


def _weight_paths(folder: Path) -> list[Path]:
    found = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    return sorted(path for path in found if path.is_file() and path.name != "training_args.bin")


def named_base(folder: Path) -> str | None:
    """Return what an adapter calls its base model; None where the folder holds none, or it names none."""
    path = folder / ADAPTER_CONFIG
    return (read_json(path).get("base_model_name_or_path") or None) if path.is_file() else None


def relative_path(path: Path, start: Path) -> str:
    """Return a path as records hold it: relative to their folder, so that both can be moved together."""
    try:
        return Path(os.path.relpath(path, start)).as_posix()
    except ValueError:  # another drive
        return str(path)


def joined_path(start: Path, path: str) -> Path:
    """Return the path that a record in the folder ``start`` holds."""
    return Path(os.path.normpath(start / path))
