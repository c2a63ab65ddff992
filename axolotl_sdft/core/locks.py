"""Lets one process at a time make something, on any file system, and says what the others wait for.

The lock is the kernel's where the file system has such locks: a process that dies lets go of it. Elsewhere it is a file
that its owner touches all the time, and that others take away once it has not been touched for long.
"""

import errno
import json
import logging
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from axolotl_sdft.core.errors import ArtifactError
from axolotl_sdft.core.runtime import is_multi_node, world_size

LOG = logging.getLogger(__name__)

PATIENCE_VARIABLE = "AXOLOTL_SDFT_PATIENCE_SECONDS"
_PATIENCE_S = 1800.0
_REMIND_S = 60.0
_POLL_S = 0.2
_HEARTBEAT_S = 10.0
_STALE_S = 120.0
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def patience_s(usual_s: float = _PATIENCE_S) -> float | None:
    """Return how long another machine may give no sign of life; None where all processes are surely on this one."""
    is_sure = "LOCAL_WORLD_SIZE" in os.environ or world_size() == 1
    return None if is_sure and not is_multi_node() else float(os.environ.get(PATIENCE_VARIABLE, usual_s))


class Heartbeat:
    """Touches a file in a thread of its own, so that others see that this process lives."""

    def __init__(self, path: Path) -> None:
        self._path, self._is_over = path, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="sdft-heartbeat", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._is_over.wait(_HEARTBEAT_S):
            with suppress(OSError):
                os.utime(self._path)

    def stop(self) -> None:
        """End the thread."""
        self._is_over.set()
        self._thread.join()


class Watch:
    """Tells for how long files have not changed, by this process's own clock: those of other machines may differ."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._states = self._look()
        self._changed = time.monotonic()

    def silent_s(self) -> float:
        """Return the seconds since any of the files last changed."""
        states = self._look()
        if states != self._states:
            self._states, self._changed = states, time.monotonic()
        return time.monotonic() - self._changed

    def _look(self) -> list[Any]:
        states: list[Any] = []
        for path in self._paths:
            try:
                found = path.stat()
                states.append((found.st_mtime_ns, found.st_size, found.st_ino))
            except OSError:
                states.append(None)
        return states


def identify() -> dict[str, Any]:
    """Return who this process is, for others to read."""
    return {"host": socket.gethostname(), "process": os.getpid(), "id": uuid.uuid4().hex}


@contextmanager
def only_one(path: Path, what: str, busy: str | None = None) -> Iterator[None]:
    """Hold a lock while the block runs; wait for it as long as its owner lives, and say so every minute.

    Args:
        path: The lock file.
        what: What the lock is for, as messages call it.
        busy: Don't wait, but raise this where another process holds the lock.

    Raises:
        ArtifactError: Another process holds it and ``busy`` is given; or that process is on another machine and has
            given no sign of life for long; or the file can't be made.
    """
    owner_path = path.with_name(f"{path.name}.owner")
    try:
        lock = FileLock(path) if _has_locks(path.parent) else _TouchedFile(path.with_name(f"{path.name}.held"))
        _acquire(lock, path, owner_path, what, busy)
    except OSError as err:
        if isinstance(err, ArtifactError | Timeout):
            raise
        raise ArtifactError(f"{path}: the lock for {what} can't be had ({err.strerror or err})") from err
    heartbeat = None
    try:
        with suppress(OSError):  # it is for messages alone
            owner_path.write_text(json.dumps(identify()), encoding="utf-8")
            heartbeat = Heartbeat(owner_path)
        yield
    finally:
        if heartbeat is not None:
            heartbeat.stop()
        with suppress(OSError):
            owner_path.unlink()
        lock.release()


def _acquire(lock: Any, path: Path, owner_path: Path, what: str, busy: str | None) -> None:
    waiting = Waiting(what, f"the lock {path}", lambda: _described(owner_path), Watch(owner_path))
    while True:
        try:
            lock.acquire(timeout=1.0 if busy is not None else _POLL_S, poll_interval=0.05)
            return
        except Timeout:
            if busy is not None:
                raise ArtifactError(busy) from None
        waiting.go_on()


class Waiting:
    """What a process waits for; says so every minute, and gives up on another machine that seems to be gone.

    Args:
        what: What is waited for.
        where: The file or folder that shows when the wait is over.
        who: Describes who is to bring it.
        watch: The files in which they give signs of life.
        usual_s: How long other machines may give none where ``AXOLOTL_SDFT_PATIENCE_SECONDS`` is not set.
    """

    def __init__(
        self, what: str, where: str, who: Callable[[], str], watch: Watch, usual_s: float = _PATIENCE_S
    ) -> None:
        self._what, self._where, self._who, self._watch, self._usual_s = what, where, who, watch, usual_s
        self._started = self._reminded = time.monotonic()

    def go_on(self) -> None:
        """Return when it is worth waiting on.

        Raises:
            ArtifactError: There was no sign of life for longer than ``AXOLOTL_SDFT_PATIENCE_SECONDS``, and other
                machines take part.
        """
        now, limit_s, silent_s = time.monotonic(), patience_s(self._usual_s), self._watch.silent_s()
        if limit_s is not None and silent_s > limit_s:
            raise ArtifactError(
                f"waited {now - self._started:.0f} s for {self._what} ({self._who()}; {self._where}), the last "
                f"{silent_s:.0f} s without a sign of life. {_others()}: this folder must be on a disk that all of them "
                "share. Name such a folder, or make what is needed on one machine first and copy the folder to the "
                f"others, or raise {PATIENCE_VARIABLE} where they need more time"
            )
        if now - self._reminded > _REMIND_S:
            self._reminded = now
            LOG.info("waiting for %s since %.0f s: %s; %s", self._what, now - self._started, self._who(), self._where)


def _others() -> str:
    world, local = os.environ.get("WORLD_SIZE"), os.environ.get("LOCAL_WORLD_SIZE")
    if local is None:
        return f"WORLD_SIZE is {world} and LOCAL_WORLD_SIZE is not set, so other machines may take part"
    return f"WORLD_SIZE {world} is larger than LOCAL_WORLD_SIZE {local}, so other machines take part"


def _described(owner_path: Path) -> str:
    try:
        owner = json.loads(owner_path.read_bytes())
        return f"process {int(owner['process'])} on {str(owner['host'])!r} is at it"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process is at it"


def _has_locks(folder: Path) -> bool:
    """Say whether the file system of a folder has locks; where it has none, log what is used instead."""
    try:
        import fcntl
    except ImportError:  # Windows has locks of another kind
        return True
    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except NotImplementedError:
            pass
        except OSError as err:
            if err.errno not in _NO_LOCKS:
                raise
        else:
            return True
    LOG.warning(
        "the file system of %s has no locks; files are used instead, and one whose process gives no sign of life for "
        "%.0f s is taken away",
        *(folder, _STALE_S),
    )
    return False


class _TouchedFile:
    """A lock for file systems that have none: a file that its owner touches and the others don't make while it is."""

    def __init__(self, path: Path) -> None:
        self._path, self._own = path, json.dumps(identify())
        self._heartbeat: Heartbeat | None = None
        self._seen: tuple[str, Watch] | None = None

    def acquire(self, timeout: float, poll_interval: float) -> None:
        """Return when the file is this process's own.

        Raises:
            Timeout: It was not to be had in time.
        """
        end = time.monotonic() + timeout
        while not self._made():
            if self._is_abandoned():
                self._take_away()
            elif time.monotonic() > end:
                raise Timeout(str(self._path))
            else:
                time.sleep(poll_interval)
        self._heartbeat = Heartbeat(self._path)

    def release(self) -> None:
        """Remove the file, if nobody has taken it away."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        with suppress(OSError):
            if self._path.read_text(encoding="utf-8") == self._own:
                self._path.unlink()

    def _made(self) -> bool:
        try:
            with self._path.open("x", encoding="utf-8") as file:
                file.write(self._own)
        except FileExistsError:
            return False
        return True

    def _is_abandoned(self) -> bool:
        """Say whether the owner has died here, or was silent too long wherever it is."""
        try:
            owner = self._path.read_text(encoding="utf-8")
        except OSError:
            return False
        if self._seen is None or self._seen[0] != owner:
            self._seen = owner, Watch(self._path)
        return _has_died_here(owner) or self._seen[1].silent_s() > _STALE_S

    def _take_away(self) -> None:
        """Remove the file of the owner that was looked at; another process may have been faster and made its own."""
        assert self._seen is not None
        aside = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}")
        with suppress(OSError):
            self._path.rename(aside)
            if aside.read_text(encoding="utf-8") != self._seen[0]:
                os.link(aside, self._path)
            aside.unlink()
            LOG.warning("%s was left behind by a process that is gone; it is taken away", self._path)


def _has_died_here(owner: str) -> bool:
    try:
        entry = json.loads(owner)
        if entry["host"] != socket.gethostname():
            return False
        os.kill(int(entry["process"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return False
