"""The journal: what a seed model answered, and what the checks said of it, each under a digest of its content.

One folder holds all answers of a model with the same settings, whatever dataset asked. Each process appends to a file
of its own and reads the files of all. An answer is on disk before more are asked for. A batch is written in one piece
and its last line says so: one that a kill has torn is known by the missing end and made again, so that a run that was
killed ends with the same answers as one that was not. Answers stay on disk: memory holds only where each one stands.
"""

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path
from typing import Any

from axolotl_sdft.core.errors import ArtifactError, first_line
from axolotl_sdft.distillation.generation.journal_files import (
    AnswerIndex,
    Entry,
    Keys,
    Place,
    StoredAnswer,
    StoredVerdict,
    parse,
)
from axolotl_sdft.inference.interfaces import Answer

LOG = logging.getLogger(__name__)

_SYNC_S = 0.5  # a kill loses nothing that was written; a power cut loses at most what this time brought
_OFFSET_BITS = 44  # of a place; the rest is the number of the file
_MAX_OPEN_FILES = 64
_PREFIX, _SUFFIX = "answers-", ".jsonl"


@dataclass
class _Scanned:
    """How far a file has been read."""

    path: Path
    number: int
    is_own_run: bool
    end: int = 0
    """Up to the end of its last whole batch."""

    num_damaged: int = 0
    first_damaged: int = -1
    """Where the first damaged line starts."""

    is_unreadable: bool = False


@dataclass
class _Batch:
    """Answers that were read, with their places, before the line that ends their batch."""

    answers: list[tuple[StoredAnswer, Place]] = field(default_factory=list)
    num_damaged: int = 0


class Journal:
    """All answers and verdicts that are stored in a folder, by whatever process, read from disk one by one.

    An answer that failed belongs to the run in which it failed: in any other it is unknown, and asked for again. The
    same goes for a verdict that a check could not give.

    Args:
        folder: Where the files are.
        runs: Ids of the processes that work together in this run.
    """

    def __init__(self, folder: Path, runs: Collection[str] = ()) -> None:
        self._folder, self._runs = folder, frozenset(runs)
        self._answers, self._verdicts = AnswerIndex(), AnswerIndex()
        self._scanned: dict[str, _Scanned] = {}
        self._by_number: list[_Scanned] = []
        self._open: OrderedDict[int, FileIO] = OrderedDict()
        self.num_new = 0
        """Answers that this run has brought."""

    def __getitem__(self, key: bytes) -> Answer:
        """Return an answer: of several the first that did not fail, else the failure.

        Raises:
            KeyError: It is not there.
        """
        failed: Answer | None = None
        for place in self._answers.find(key):
            entry = self._read(place)
            if isinstance(entry, StoredAnswer) and entry.key == key:
                if not entry.is_failure:
                    return entry.answer
                failed = failed or entry.answer
        if failed is None:
            raise KeyError(key.hex())
        return failed

    def __contains__(self, key: bytes) -> bool:
        return key in self._answers

    def __len__(self) -> int:
        """Return how many answers were stored or failed in this run."""
        return len(self._answers)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the key of each answer."""
        return iter(self._answers)

    def holds(self, keys: Keys) -> Any:
        """Return for each key whether its answer is there, as an array of booleans."""
        return self._answers.holds(keys)

    def verdicts(self, key: bytes) -> dict[str, StoredVerdict]:
        """Return what is known about an answer by each check, by the check's identity."""
        known: dict[str, StoredVerdict] = {}
        for place in self._verdicts.find(key):
            entry = self._read(place)
            for verdict in entry if isinstance(entry, list) else []:
                if verdict.key == key and (verdict.check not in known or known[verdict.check].is_outage):
                    known[verdict.check] = verdict
        return known

    def refresh(self) -> None:
        """Read what was added since the last time. What is not of a journal is skipped, and counted in the log."""
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            names = []
        except OSError as err:
            raise ArtifactError(f"{self._folder} can't be read ({err.strerror or err})") from err
        names = [name for name in names if name.startswith(_PREFIX) and name.endswith(_SUFFIX)]
        # Answers of this run come first, so that all its ranks take the same one where another run asked as well.
        for name in sorted(names, key=lambda name: not self._is_own(name)):
            self._scan(name)

    def close(self) -> None:
        """Close the files; they are opened again when something is read."""
        while self._open:
            self._open.popitem()[1].close()

    def _is_own(self, name: str) -> bool:
        return name.removeprefix(_PREFIX).removesuffix(_SUFFIX) in self._runs

    def _file(self, name: str) -> _Scanned:
        if name not in self._scanned:
            self._scanned[name] = _Scanned(self._folder / name, len(self._by_number), self._is_own(name))
            self._by_number.append(self._scanned[name])
        return self._scanned[name]

    def _scan(self, name: str) -> None:
        scanned = self._file(name)
        if scanned.is_unreadable:
            return
        before = scanned.num_damaged
        try:
            if scanned.path.stat().st_size > scanned.end:
                with scanned.path.open("rb") as file:
                    self._take_in(file, scanned)
        except FileNotFoundError:
            return
        except OSError as err:
            scanned.is_unreadable = True
            LOG.warning("%s is skipped: %s; answers in it are generated again", scanned.path, err.strerror or err)
        if scanned.num_damaged > before:
            LOG.warning(
                "%s: %d lines are damaged or not of a journal, the first at byte %d; they are skipped, and answers "
                "that stood in them are generated again",
                *(scanned.path, scanned.num_damaged - before, scanned.first_damaged),
            )

    def _take_in(self, file: Any, scanned: _Scanned) -> None:
        offset, batch = file.seek(scanned.end), _Batch()
        for line in file:
            if not line.endswith(b"\n"):  # torn by a kill, or still being written
                break
            entry, place = parse(line), (scanned.number << _OFFSET_BITS | offset, len(line))
            offset += len(line)
            if entry is None:
                batch.num_damaged += 1
                scanned.first_damaged = offset - len(line) if scanned.first_damaged < 0 else scanned.first_damaged
            elif isinstance(entry, StoredAnswer):
                batch.answers.append((entry, place))
            if batch.answers and not (isinstance(entry, list) or (isinstance(entry, StoredAnswer) and entry.ends)):
                continue  # the rest of the batch follows
            self._index(batch, scanned)
            if isinstance(entry, list):
                self._add_verdicts(entry, place, scanned)
            scanned.end, batch = offset, _Batch()

    def _index(self, batch: _Batch, scanned: _Scanned) -> None:
        scanned.num_damaged += batch.num_damaged
        for entry, place in batch.answers:
            if scanned.is_own_run or not entry.is_failure:
                self._answers.add(entry.key, *place)
                self.num_new += scanned.is_own_run and not entry.is_failure

    def _add_verdicts(self, entry: Sequence[StoredVerdict], place: Place, scanned: _Scanned) -> None:
        if scanned.is_own_run or not any(verdict.is_outage for verdict in entry):
            self._verdicts.add(entry[0].key, *place)

    def _read(self, place: Place) -> Entry | None:
        number, offset = place[0] >> _OFFSET_BITS, place[0] & (1 << _OFFSET_BITS) - 1
        path = self._by_number[number].path
        try:
            if number not in self._open:
                if len(self._open) >= _MAX_OPEN_FILES:
                    self._open.popitem(last=False)[1].close()
                self._open[number] = FileIO(path)
            return parse(os.pread(self._open[number].fileno(), place[1], offset))
        except OSError as err:
            raise ArtifactError(
                f"{path} can't be read any more ({err.strerror or err}); start again, what it held is generated again"
            ) from err

    @contextmanager
    def writer(self, run: str) -> Iterator["JournalWriter"]:
        """Give the writer of one process, under an id that no other one ever has."""
        self.refresh()
        writer = JournalWriter(self, self._file(f"{_PREFIX}{run}{_SUFFIX}"))
        try:
            yield writer
        finally:
            writer.close()


class JournalWriter:
    """Appends to the file of one process, which is made when there is something to write."""

    def __init__(self, journal: Journal, scanned: _Scanned) -> None:
        self._journal, self._scanned = journal, scanned
        self._file: FileIO | None = None
        self._synced = time.monotonic()

    def append(self, keys: Sequence[bytes], answers: Sequence[Answer], seconds: float) -> list[Answer]:
        """Store a batch and return its answers as they were stored; when this returns, a kill can't lose them.

        Raises:
            ArtifactError: The disk refuses, for example because it is full. What was written before stays.
        """
        share = seconds / len(answers)
        entries = [
            StoredAnswer.of(key, replace(answer, seconds=share)) for key, answer in zip(keys, answers, strict=True)
        ]
        entries[-1] = replace(entries[-1], ends=True)
        batch = _Batch(list(zip(entries, self._write([entry.to_line() for entry in entries]), strict=True)))
        self._journal._index(batch, self._scanned)
        return [entry.answer for entry in entries]

    def add_verdicts(self, verdicts: Sequence[Sequence[StoredVerdict]]) -> None:
        """Store what checks said of some answers: one sequence for each.

        Raises:
            ArtifactError: The disk refuses.
        """
        told = [list(each) for each in verdicts if each]
        lines = [StoredVerdict.to_line(each) for each in told]
        for each, place in zip(told, self._write(lines) if lines else [], strict=True):
            self._journal._add_verdicts(each, place, self._scanned)

    def sync(self) -> None:
        """Put everything on disk, where others can read it."""
        if self._file is not None:
            with _disk_errors(self._scanned.path):
                os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Put everything on disk and close the file."""
        try:
            self.sync()
        finally:
            if self._file is not None:
                self._file.close()

    def _write(self, lines: Sequence[bytes]) -> list[Place]:
        """Write lines and return where they stand."""
        with _disk_errors(self._scanned.path):
            if self._file is None:
                self._file = FileIO(self._scanned.path, "a")  # a buffer would try to write again when it is closed
            _write_all(self._file, b"".join(lines))
            if time.monotonic() - self._synced >= _SYNC_S:
                self.sync()
        places = []
        for line in lines:
            places.append((self._scanned.number << _OFFSET_BITS | self._scanned.end, len(line)))
            self._scanned.end += len(line)
        return places


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except ArtifactError:
        raise
    except OSError as err:
        raise ArtifactError(
            f"{path}: the last batch could not be written ({err.strerror or first_line(err)}); "
            "make room and start again, all earlier batches are kept"
        ) from err


def _write_all(file: FileIO, content: bytes) -> None:
    unwritten = memoryview(content)
    while unwritten:  # a disk that is nearly full takes a part
        unwritten = unwritten[file.write(unwritten) :]
