"""Brings the processes of one run together by files in a folder that all of them see, and keeps them in step.

Files rather than torch.distributed: this works before that is set up, on machines without a GPU, and a wait may take as
long as the work does. Each process writes a file of its own that says who it is and how far it has come. That all of
them belong to the same start follows from the ids that they have seen of each other: an id is new with each start, so
one who has seen mine is alive now.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from axolotl_sdft.core.errors import ArtifactError, first_line
from axolotl_sdft.core.locks import Heartbeat, Waiting, Watch, identify, only_one
from axolotl_sdft.core.runtime import is_multi_node

LOG = logging.getLogger(__name__)

_MIN_POLL_S, _MAX_POLL_S = 0.02, 0.5
_LOOK_ASIDE_S = 5.0
_ARRIVAL_S, _WORK_S = 300.0, 1800.0  # all ranks have come from the same work; later one may take long for its share
_LAUNCH_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


class RankGroup:
    """The processes of one run. Get it from :func:`together`."""

    def __init__(self, folder: Path, rank: int, world_size: int, what: str) -> None:
        self.rank, self.world_size = rank, world_size
        self._folder, self._what = folder, what
        self._own: dict[str, Any] = {**identify(), "world_size": world_size, "seen": {}, "reached": {}}
        self._own |= {"launch": _launch(), "has_met": False}
        self._ids: dict[int, str] = {rank: self._own["id"]}

    @property
    def run_id(self) -> str:
        """Id of this process, new with each start."""
        return str(self._own["id"])

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Ids of all processes of this run, by rank."""
        return tuple(self._ids[rank] for rank in sorted(self._ids))

    def reach(self, point: str, value: str = "") -> dict[int, str]:
        """Return when all ranks have reached a point of their work, with the value that each has brought there.

        Raises:
            ArtifactError: Another rank has stopped, or its machine seems to be gone.
        """
        if self.world_size == 1:
            return {self.rank: value}
        self._own["reached"][point] = value
        self._write()
        return self._wait(lambda rank: self._value(rank, point), point)

    def meet(self) -> None:
        """Return when all ranks are there.

        Raises:
            ArtifactError: One waits in another folder, since what it is about to make is another thing; or one does not
                come, on another machine, for longer than one is patient.
        """
        if self.world_size == 1:
            return
        self._write()
        self._wait(self._met, "the start", self._look_aside(), _ARRIVAL_S)
        self._own["has_met"] = True
        self._ids |= {int(rank): seen for rank, seen in self._own["seen"].items()}

    def end(self, error: BaseException | None) -> None:
        """Tell the others that this rank stops, and why, so that they don't wait for it."""
        if self.world_size > 1 and error is not None:
            self._own["ended"] = f"{type(error).__name__}: {first_line(error)}"
            with suppress(OSError):
                self._write()

    def _wait(
        self,
        look: Callable[[int], str | None],
        point: str,
        meanwhile: Callable[[list[int]], None] = lambda missing: None,
        usual_s: float = _WORK_S,
    ) -> dict[int, str]:
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        found: dict[int, str] = {self.rank: self._own["reached"].get(point, "")}
        missing = list(others)
        waiting = Waiting(
            f"{self._what}, {point}",
            f"files in {self._folder}",
            lambda: self._described(missing),
            Watch(*(self.path(rank) for rank in others)),
            usual_s,
        )
        poll_s = _MIN_POLL_S
        while True:
            for rank in list(missing):
                value = look(rank)
                if value is not None:
                    found[rank] = value
                    missing.remove(rank)
            if not missing:
                return found
            waiting.go_on()
            meanwhile(missing)
            time.sleep(poll_s)
            poll_s = min(_MAX_POLL_S, 1.5 * poll_s)

    def _met(self, rank: int) -> str | None:
        """Return the id of a rank that has seen this one."""
        entry = self._entry(rank)
        if entry is None or entry.get("world_size") != self.world_size:
            return None
        if self._own["seen"].get(str(rank)) != entry["id"]:
            self._own["seen"][str(rank)] = entry["id"]
            self._write()
        seen = entry.get("seen")
        return entry["id"] if isinstance(seen, dict) and seen.get(str(self.rank)) == self.run_id else None

    def _look_aside(self) -> Callable[[list[int]], None]:
        """Return what finds ranks that wait in other folders: the folder's name says what is to be made."""
        first_seen: dict[Path, int] = {}
        looked, started = time.monotonic(), self.path(self.rank).stat().st_mtime_ns

        def look(missing: list[int]) -> None:
            nonlocal looked
            if time.monotonic() - looked < _LOOK_ASIDE_S:
                return
            looked = time.monotonic()
            for rank in missing:
                for path in self._folder.parent.glob(f"*/{self.path(rank).name}"):
                    if path.parent != self._folder and self._is_lost(path, first_seen, started):
                        raise ArtifactError(self._apart(rank, path.parent))

        return look

    def _is_lost(self, path: Path, first_seen: dict[Path, int], started: int) -> bool:
        """Say whether a file is of a rank of this start that lives, or has just ended, and has met nobody."""
        entry = _read(path)
        if entry is None or entry.get("has_met") is not False or entry.get("world_size") != self.world_size:
            return False
        if not self._own["launch"] or entry.get("launch") != self._own["launch"]:
            return False
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            return False
        if entry.get("ended") and changed > started:  # it found out first, and told so
            return True
        return first_seen.setdefault(path, changed) != changed  # one that was killed leaves its file as it is

    def _apart(self, rank: int, folder: Path) -> str:
        return (
            f"{self._what}: rank {self.rank} waits in {self._folder} and rank {rank} in {folder}, since they don't see "
            "the same rows, settings or seed model. Let all ranks read the same files, whole, and rows whose content "
            "and order are the same in each process (no set, no hash() of a text), and start all of them again"
        )

    def _value(self, rank: int, point: str) -> str | None:
        entry = self._entry(rank)
        if entry is None:
            return None
        if entry["id"] != self._ids[rank]:
            raise ArtifactError(f"{self._what}: rank {rank} was started anew; start all ranks again")
        reached = entry.get("reached")
        if isinstance(reached, dict) and isinstance(reached.get(point), str):
            return str(reached[point])
        if entry.get("ended"):
            raise ArtifactError(f"{self._what}: rank {rank} on {entry.get('host')!r} has stopped: {entry['ended']}")
        return None

    def path(self, rank: int) -> Path:
        """Return the file of a rank."""
        return self._folder / f"rank-{rank:05d}.json"

    def _entry(self, rank: int) -> dict[str, Any] | None:
        """Return what a rank has written; None where there is nothing that can be read."""
        return _read(self.path(rank))

    def _described(self, missing: list[int]) -> str:
        said = []
        for rank in missing:
            entry = self._entry(rank)
            seen = f"rank {rank} on {entry.get('host')!r}" if entry else f"rank {rank}, of which there is no file"
            said.append(seen)
        return f"of {self.world_size} ranks there lack {', '.join(said[:8])}" + (" and more" if said[8:] else "")

    def _write(self) -> None:
        path = self.path(self.rank)
        temporary = path.with_name(f".{path.name}.{self.run_id}")
        try:
            temporary.write_text(json.dumps(self._own), encoding="utf-8")
            os.replace(temporary, path)
        except OSError as err:
            raise ArtifactError(f"{path} can't be written ({err.strerror or err}); make room and start again") from err


def _read(path: Path) -> dict[str, Any] | None:
    try:
        entry = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("id"), str) else None


def _launch() -> list[str | int]:
    """Return what all ranks of one start have in common, and no other ones that live; empty where nothing tells."""
    common: list[str | int] = [os.environ[name] for name in _LAUNCH_VARIABLES if name in os.environ]
    return common if is_multi_node() else [*common, socket.gethostname(), os.getppid()]


@contextmanager
def together(folder: Path, rank: int, world_size: int, what: str, busy: str) -> Iterator[RankGroup]:
    """Give the group of all ranks of this run, once all of them are there.

    Args:
        folder: Where they meet.
        rank: That of this process.
        world_size: How many there are.
        what: What they do, as messages call it.
        busy: What is said where another run is at the same work.

    Raises:
        ArtifactError: Another run is at the same work; or a rank is about to make another thing; or one on another
            machine does not come.
    """
    folder.mkdir(parents=True, exist_ok=True)
    group = RankGroup(folder, rank, world_size, what)
    numbers = {int(path.stem[5:]) for path in folder.glob("rank-*.json") if path.stem[5:].isdecimal()}
    with ExitStack() as stack:
        # Ranks that this run lacks are guarded as well: their run may still be alive.
        for number in sorted({rank} | {number for number in numbers if number % world_size == rank}):
            stack.enter_context(only_one(folder / f"rank-{number:05d}.lock", what, busy))
        group._write()
        heartbeat = Heartbeat(group.path(rank))
        stack.callback(heartbeat.stop)
        try:
            group.meet()
            yield group
        except BaseException as err:
            group.end(err)
            raise
