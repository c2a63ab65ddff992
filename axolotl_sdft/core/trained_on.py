"""Which checkpoint a trained model started from, and where that is now.

A record beside the trained model says so; ``adapter_config.json`` does where no record is there. What was trained
belongs to what it was trained on: no training data and no seed model is read here, and nothing is made.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_sdft.core.artifacts import read_json, replace_json
from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.core.identity import model_identity
from axolotl_sdft.core.model_folder import ADAPTER_CONFIG, is_adapter, read_adapter_config, resolve_seed
from axolotl_sdft.core.training_record import (
    RECORD_FILE,
    Record,
    earlier_checkpoints,
    joined_path,
    named_base,
    read_record,
    relative_path,
    replaced_weights,
)

PROVENANCE_FOLDER = "provenance"
"""Holds what is said of a checkpoint beside its model card. Axolotl copies the files of a checkpoint into what it
merges, where this would be about another model; it leaves folders out."""
PROVENANCE_FILE = f"{PROVENANCE_FOLDER}/layer_pruning.json"
PRUNED_KEY = "axolotl_sdft_pruning"
"""Key in ``config.json`` that holds the pruning's settings, fingerprinted. transformers keeps it through training."""

_IDENTITY_KEYS = ("format", "seed", "settings", "calibration_text", "general_text", "metric_code", "drop_layers")
_KEPT_KEYS = (*_IDENTITY_KEYS, "seed_model", "num_layers_before", "num_layers_after")
_PRUNED_NAME = re.compile(r".*-drop\d+-[0-9a-f]{12}")
_MAX_ANCESTORS = 6
"""So many folders above a trained model are looked through for a checkpoint that was moved with it."""


@dataclass(frozen=True)
class TrainedOn:
    """The checkpoint that training started from."""

    folder: Path
    """The trained model."""
    name: str
    """The checkpoint's folder name, or what the adapter calls its base."""
    places: tuple[Path, ...]
    """Where the checkpoint may be, the most likely first."""
    provenance: Mapping[str, Any] | None = None
    """How it was pruned, as its provenance file says; None where it was not pruned, or that is not known."""
    is_recorded: bool = False
    """Whether the record of that training says so, not the adapter alone."""
    revision: str | None = None
    """``revision_of_model`` at that time, where it is recorded."""

    @property
    def is_pruned(self) -> bool:
        """Whether the checkpoint is known to be pruned."""
        return self.provenance is not None or _PRUNED_NAME.fullmatch(self.name) is not None

    @property
    def identity(self) -> dict[str, Any] | None:
        """All that tells the pruned checkpoint from others; None where that is not known."""
        return None if self.provenance is None else pruning_identity(self.provenance)

    def is_at(self, folder: Path) -> bool:
        """Tell whether a folder is this checkpoint, or a copy of it."""
        if self.identity is not None:
            return _identity_at(folder) == self.identity
        return folder.resolve() in [place.resolve() for place in self.places]

    def find(self, more_places: Sequence[Path] = ()) -> Path:
        """Return the folder of the checkpoint.

        Args:
            more_places: Looked at last.

        Raises:
            CheckpointError: It is nowhere; the message names it and where it was looked for. Or another checkpoint has
                taken its place, or whether one has can't be told.
        """
        places = list(dict.fromkeys([*self.places, *more_places]))
        there = [place for place in places if (place / "config.json").is_file()]
        for place in there:
            if self.provenance is None or _identity_at(place) == self.identity:
                return place
        trained = f"the model in {self.folder} was trained on the checkpoint {self.name}"
        if there and not (there[0] / PROVENANCE_FILE).is_file():
            raise CheckpointError(
                f"{trained}, but whether {there[0]} is that one can't be told: its {PROVENANCE_FILE} is missing, which "
                "belongs to the checkpoint as its weights do; put it back, or train again (axolotl train)"
            )
        if there:
            raise CheckpointError(
                f"{trained}, but {there[0]} is another one by now: its {PROVENANCE_FILE} differs; put the checkpoint "
                "back that the model was trained on, or train again (axolotl train)"
            )
        looked = ", ".join(map(str, places)) or "nowhere, since no path is recorded"
        raise CheckpointError(
            f"{trained}, which is gone; it was looked for at: {looked}. Put it back at one of these places, or train "
            "again (axolotl train)"
        )


def pruning_identity(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells one pruned checkpoint from another, out of its provenance."""
    return {key: provenance.get(key) for key in _IDENTITY_KEYS}


def trained_on(folder: Path) -> TrainedOn | None:
    """Return what the model in a folder started from; None where no model is there, or nothing tells.

    Raises:
        ArtifactError: A file that should tell is broken.
    """
    found, base = read_record(folder), named_base(folder)
    if found is not None and found.is_previous:
        return _from_previous(folder, found)
    if base is not None:
        is_told = found is not None and found.content["name"] == Path(base).name
        return _from_record(folder, found, base) if found is not None and is_told else _from_adapter(folder, base)
    if found is not None and found.content["name"] and found.content["marker"] == pruning_marker(folder):
        return _from_record(folder, found)
    return None


def moved_base(adapter_dir: Path) -> Path | None:
    """Return the folder of an adapter's base model where that is not where the adapter says; else None.

    Raises:
        CheckpointError: The base is gone, or another checkpoint has taken its place.
    """
    named, trained = named_base(adapter_dir), trained_on(adapter_dir)
    if named is None or trained is None or not trained.places:
        return None
    place = Path(named).expanduser()
    return None if place.is_dir() and trained.is_at(place) else trained.find()


def weights_dir(model_dir: Path) -> Path:
    """Return the folder of a model's weights: its own, or for an adapter that of its base model, moved or not.

    Raises:
        CheckpointError: The base model is nowhere, or another one has taken its place.
    """
    if not is_adapter(model_dir):
        return model_dir
    moved = moved_base(model_dir)
    if moved is not None:
        return moved
    key, settings = f"base_model_name_or_path in {model_dir / ADAPTER_CONFIG}", read_adapter_config(model_dir)
    if not settings.get("base_model_name_or_path"):
        raise CheckpointError(f"{key} is not set; write the folder of its base model there")
    return resolve_seed(settings["base_model_name_or_path"], settings.get("revision"), key)


def pruning_marker(folder: Path) -> str | None:
    """Return what ``config.json`` says of a pruning that the model in a folder has been through; None for none."""
    path = folder / "config.json"
    return read_json(path).get(PRUNED_KEY) if path.is_file() else None


def seed_dir_of_pruned(folder: Path, needed_by: str, way_out: str, seed_model: str | Path | None = None) -> Path:
    """Return the folder of the seed model that a checkpoint was pruned from.

    Args:
        folder: The pruned checkpoint, with its provenance.
        needed_by: What needs the seed model, and ``way_out`` what else the user may do; both for the message.
        seed_model: Where it is by now; None: where it was when the checkpoint was made.

    Raises:
        CheckpointError: It is gone, or another model has taken its place.
    """
    provenance = read_json(folder / PROVENANCE_FILE)
    named, recorded = provenance.get("seed_model"), provenance.get("seed_dir")
    is_there = recorded is not None and Path(str(recorded)).expanduser().is_dir()
    wanted = str(seed_model or (recorded if is_there else named))
    key = f"seed_model in {PROVENANCE_FILE}" if seed_model is None else f"{needed_by}.seed_model"
    needs = f"{needed_by} needs the seed model that {folder} was pruned from"
    try:
        seed_dir = resolve_seed(wanted, key=key)
    except CheckpointError as err:
        raise CheckpointError(
            f"{needs}, {wanted}, which is gone or was moved: {err}. Put it back, or {way_out}"
        ) from err
    expected = provenance.get("seed")
    if expected is not None and model_identity(seed_dir) != expected:
        raise CheckpointError(
            f"{needs}, but {seed_dir} holds another model by now; put the previous one back, or prune this one "
            "(axolotl prune-layers)"
        )
    return seed_dir


def record_training(
    output_dir: Path,
    pruned_dir: Path | None,
    revision: str | None = None,
    datasets: Sequence[Path | None] = (),
    test_datasets: Sequence[Path] = (),
    held_out: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Say in ``output_dir`` which checkpoint a training starts from. The record is written whole.

    Weights that an earlier training left there, and the checkpoints of whole models that it saved, stay known as
    trained on what they were trained on, until new ones take their place.

    Args:
        output_dir: Where the trained model will be.
        pruned_dir: The pruned checkpoint; None where the model is trained as it is.
        revision: ``revision_of_model``.
        datasets: Folders that took the place of entries of ``datasets``.
        test_datasets: Folders of held-out rows.
        held_out: Entries that read the rows which are not trained on, each from a folder of its own.

    Raises:
        ArtifactError: The record can't be written.
    """
    record: dict[str, Any] = {"name": None}
    if pruned_dir is not None:
        provenance = read_json(pruned_dir / PROVENANCE_FILE)
        record = {
            "name": pruned_dir.name,
            "path": relative_path(pruned_dir, output_dir),
            "marker": pruning_marker(pruned_dir),
            "provenance": {key: provenance.get(key) for key in _KEPT_KEYS},
            "revision_of_model": revision,
        }
    if any(datasets):
        record["datasets"] = [None if path is None else relative_path(path, output_dir) for path in datasets]
        record["test_datasets"] = [relative_path(path, output_dir) for path in test_datasets]
    if held_out:
        record["held_out"] = [{**entry, "path": relative_path(Path(entry["path"]), output_dir)} for entry in held_out]
    replaced, checkpoints = replaced_weights(output_dir, record), earlier_checkpoints(output_dir, record)
    if replaced is not None:
        record["replaced"] = replaced
    if checkpoints:
        record["checkpoints"] = checkpoints
    if len(record) > 1 or (output_dir / RECORD_FILE).exists():
        replace_json(output_dir / RECORD_FILE, record)


def _from_previous(folder: Path, record: Record) -> TrainedOn | None:
    if "adapter_base" in record.content:
        return _from_adapter(folder, record.content["adapter_base"])
    return _from_record(folder, record) if record.content["name"] else None


def _from_record(folder: Path, record: Record, adapter_base: str | None = None) -> TrainedOn:
    content, start = record.content, record.folder
    places = [joined_path(start, content["path"]), start.parent / content["name"]]
    if adapter_base is not None:
        places += [Path(adapter_base), *_moved(start, Path(adapter_base))]
    return TrainedOn(
        folder=folder,
        name=content["name"],
        places=tuple(dict.fromkeys(places)),
        provenance=content["provenance"],
        is_recorded=True,
        revision=content.get("revision_of_model"),
    )


def _from_adapter(folder: Path, base: str) -> TrainedOn:
    path = Path(base).expanduser()
    is_path = path.is_absolute() or path.is_dir()  # else it may be a Hub id
    places = list(dict.fromkeys([path.absolute(), *_moved(folder.absolute(), path)])) if is_path else []
    found = next((place for place in places if (place / "config.json").is_file()), None)
    provenance = found / PROVENANCE_FILE if found is not None else None
    known = read_json(provenance) if provenance is not None and provenance.is_file() else None
    name = path.name if path.is_absolute() else base
    return TrainedOn(folder, name, tuple(places), known)


def _moved(start: Path, path: Path) -> Iterator[Path]:
    """Yield where a checkpoint would be that was moved together with a trained model: same names, other folders above.

    A folder's name alone is trusted only where it tells one checkpoint from another.
    """
    if not path.is_absolute():
        return
    parts = path.parts[1:]
    fewest = 1 if _PRUNED_NAME.fullmatch(path.name) else 2
    for count in range(min(len(parts), _MAX_ANCESTORS), fewest - 1, -1):
        for ancestor in [start, *start.parents][:_MAX_ANCESTORS]:
            yield ancestor.joinpath(*parts[-count:])


def _identity_at(place: Path) -> dict[str, Any] | None:
    path = place / PROVENANCE_FILE
    return pruning_identity(read_json(path)) if path.is_file() else None
