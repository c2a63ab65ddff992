"""Finds out before any work whether all ranks of a run see the same folder.

Ranks hand scores, answers and checkpoints on in files. Without a shared disk each would wait for files that never come.
So each writes a file, tells the others its name by the launcher's store, and looks for theirs.
"""

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.core.artifacts import ensure_writable
from axolotl_sdft.core.errors import ArtifactError, first_line
from axolotl_sdft.core.runtime import rank, world_size

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG = logging.getLogger(__name__)

# A name that was never looked up before is asked of the file server itself, not of a cache, so it is seen at once.
_VISIBLE_S = 20.0
_POLL_S = 0.05
_ARRIVAL_S = 1800.0
_turns = count()


@dataclass(frozen=True)
class _Place:
    """What a rank says of the folder that it takes for the common one."""

    rank: int
    host: str
    folder: str
    token: str
    is_finished: bool

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host!r} ({self.folder})"


def refuse_separate_folders(folder: Path, yaml_key: str, way_out: str, *, is_finished: bool) -> None:
    """Return once all ranks see each other's files in a folder, or none of them has anything to make there.

    All ranks must call this at the same point of their work. Returns at once with one rank, or where ranks can't talk
    to each other yet: the launcher has no store, and torch.distributed is not set up.

    Args:
        folder: Where artifacts are shared, as this rank calls it.
        yaml_key: The setting that names it, for messages.
        way_out: What else can be done, for messages.
        is_finished: Everything that this rank needs is in the folder already.

    Raises:
        ArtifactError: The ranks see different folders, and one of them has something to make; all ranks raise it. Or a
            rank does not come for half an hour.
    """
    if world_size() == 1 or not _can_talk():
        return
    with _token(folder, yaml_key, is_finished) as token:
        own = _Place(rank(), socket.gethostname(), str(folder), token, is_finished)
        places = [_Place(**entry) for entry in _exchange(asdict(own), yaml_key)]
        unseen = _exchange(_unseen(folder, places), yaml_key)
    lost = [(places[seer], [places[other] for other in others]) for seer, others in enumerate(unseen) if others]
    if not lost:
        return
    unfinished = [place for place in places if not place.is_finished]
    if unfinished:
        raise ArtifactError(_separate(lost, unfinished, yaml_key, way_out))
    LOG.warning("%s: the ranks have separate folders, each with all that is needed; they are used", yaml_key)


def _separate(
    lost: Sequence[tuple[_Place, Sequence[_Place]]], unfinished: Sequence[_Place], yaml_key: str, way_out: str
) -> str:
    seer, others = lost[0]
    lacking = ", ".join(str(place.rank) for place in unfinished[:8]) + (", ..." if unfinished[8:] else "")
    return (
        f"{yaml_key}: {seer} does not see the files of {others[0]} after {_VISIBLE_S:.0f} s, and not everything is "
        f"made yet (rank {lacking}). Ranks share their work in this folder, so it must be on a disk that all machines "
        f"share: {way_out}"
    )


@contextmanager
def _token(folder: Path, yaml_key: str, is_finished: bool) -> "Iterator[str]":
    """Give the name of a file in the folder that no other process has made."""
    name = f".rank-{rank():05d}-{uuid.uuid4().hex}"
    try:
        ensure_writable(folder, yaml_key)
        (folder / name).touch()
    except (ArtifactError, OSError):
        if not is_finished:  # a finished copy may be on a disk that can only be read
            raise
    try:
        yield name
    finally:
        with suppress(OSError):
            (folder / name).unlink()


def _unseen(folder: Path, places: Sequence[_Place]) -> list[int]:
    """Return the ranks whose files don't come into sight in this rank's folder."""
    end = time.monotonic() + _VISIBLE_S
    missing = [place for place in places if place.rank != rank()]
    while True:
        missing = [place for place in missing if not (folder / place.token).exists()]
        if not missing or time.monotonic() > end:
            return [place.rank for place in missing]
        time.sleep(_POLL_S)


def _can_talk() -> bool:
    return _is_group_set_up() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _is_group_set_up() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def _exchange(value: Any, yaml_key: str) -> list[Any]:
    """Return what each rank has brought, by rank."""
    import torch.distributed as dist

    if _is_group_set_up():  # as in a worker of Ray
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return values
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        limit = timedelta(seconds=_ARRIVAL_S)
        store = dist.TCPStore(address, port, is_master=False, timeout=limit)  # type: ignore[attr-defined]
        point = f"axolotl_sdft/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_turns)}"
        store.set(f"{point}/{rank()}", json.dumps(value))
        return [json.loads(store.get(f"{point}/{other}")) for other in range(world_size())]
    except RuntimeError as err:
        raise ArtifactError(
            f"{yaml_key}: the ranks could not be asked whether they share a folder, by the launcher's store at "
            f"{address}:{port} ({first_line(err)}); see whether all ranks have started, and start them again"
        ) from err
