"""The journal: every generated answer is on disk, one line each, before more are asked for.

A batch is written in one piece and its last line says how long it took, so a batch that a kill has torn is known by
the missing end; it is cut off and made again. Since a batch is the unit both of generation and of the journal, a run
that was killed ends with the same answers as one that was not. Each rank writes files of its own, and all ranks read
all files. Answers stay on disk: memory holds only where each one stands.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from axolotl_sdft.distillation.answer_index import AnswerIndex, Key, Keys, pack, unpack
from axolotl_sdft.distillation.interfaces import Answer, Prompt
from axolotl_sdft.errors import ArtifactError

LOG = logging.getLogger(__name__)

_SYNC_S = 0.5  # a kill loses nothing that was written; a power cut loses at most what this time brought
_LOCK_PATIENCE_S = 1.0
_OFFSET_BITS = 44  # of a place; the rest is the number of the file
_BATCH_END = "batch_seconds"
_NEEDED = {"row", "turn", "attempt", "text", "finish_reason", "num_tokens"}


@dataclass
class _Scanned:
    """How far a file has been read: up to the end of its last whole batch."""

    number: int
    end: int = 0
    lines: int = 0


class Journal(Mapping[Key, Answer]):
    """All answers that were generated so far, by all ranks, read from disk one by one.

    Args:
        folder: Where the files are.
        chain: What decides who is asked again. First attempts are shared among all chains; those after them stand in
            files of their own.
    """

    def __init__(self, folder: Path, chain: str = "") -> None:
        self._folder, self._chain = folder, chain
        self._index = AnswerIndex()
        self._scanned: dict[Path, _Scanned] = {}
        self._open: dict[int, FileIO] = {}
        self._seconds, self._num_tokens = 0.0, 0

    def __getitem__(self, key: Key) -> Answer:
        found = self._index.find(pack(*key))
        if found is None:
            raise KeyError(key)
        place, length = found
        number, offset = place >> _OFFSET_BITS, place & (1 << _OFFSET_BITS) - 1
        entry = json.loads(os.pread(self._open[number].fileno(), length, offset))
        return Answer(
            entry["text"], entry["finish_reason"], entry["num_tokens"], entry.get("mean_logprob"), entry.get("error")
        )

    def __contains__(self, key: object) -> bool:
        return isinstance(key, tuple) and self._index.find(pack(*key)) is not None

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[Key]:
        return map(unpack, self._index)

    def holds(self, keys: Keys) -> Any:
        """Return for each packed key whether its answer is there, as an array of booleans."""
        return self._index.holds(keys)

    def answers(self) -> "Journal":
        """Return every answer on disk, by row, turn and attempt."""
        self.refresh()
        return self

    def seconds(self) -> float:
        """Return the time that generating took, summed over batches and ranks."""
        self.refresh()
        return self._seconds

    def num_tokens(self) -> int:
        """Return how many tokens were generated."""
        self.refresh()
        return self._num_tokens

    def refresh(self) -> None:
        """Read what was added since the last time.

        Raises:
            ArtifactError: A line in the middle of a file is no journal line.
        """
        patterns = ("journal-*.jsonl", f"again-{self._chain}-*.jsonl")
        for path in sorted(path for pattern in patterns for path in self._folder.glob(pattern)):
            self._scan(path)

    def close(self) -> None:
        """Close the files; afterwards no answer can be read."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _scan(self, path: Path) -> _Scanned:
        if path not in self._scanned:
            self._scanned[path] = _Scanned(len(self._scanned))
            self._open[self._scanned[path].number] = FileIO(path)
        scanned = self._scanned[path]
        batch: list[tuple[dict[str, Any], int, int]] = []
        with path.open("rb") as file:
            offset = file.seek(scanned.end)
            for number, line in enumerate(file, start=scanned.lines + 1):
                if not line.endswith(b"\n"):  # torn by a kill, or still being written
                    break
                batch.append((_entry(line, path, number), offset, len(line)))
                offset += len(line)
                if _BATCH_END in batch[-1][0]:
                    self._add(batch, scanned)
                    batch = []
        return scanned

    def _add(self, batch: Sequence[tuple[dict[str, Any], int, int]], scanned: _Scanned) -> None:
        """Take in a whole batch: its lines, where they start and how long they are."""
        for entry, offset, length in batch:
            key = pack(entry["row"], entry["turn"], entry["attempt"])
            self._index.add(key, scanned.number << _OFFSET_BITS | offset, length)
            self._num_tokens += entry["num_tokens"]
        self._seconds += batch[-1][0][_BATCH_END]
        scanned.end = batch[-1][1] + batch[-1][2]
        scanned.lines += len(batch)

    @contextmanager
    def writer(self, rank: int, world_size: int = 1) -> Iterator["JournalWriter"]:
        """Give the writer of one rank.

        Raises:
            ArtifactError: Another run is generating into the folder.
        """
        ranks = {int(path.stem.rsplit("-", 1)[1]) for path in self._folder.glob("*.jsonl")}
        with ExitStack() as locks:
            # Files of ranks that this run lacks are guarded as well: their run may still be alive.
            for number in sorted({rank} | {number for number in ranks if number % world_size == rank}):
                locks.enter_context(self._locked(number))
            self.refresh()
            writer = JournalWriter(self, rank)
            try:
                yield writer
            finally:
                writer.close()

    @contextmanager
    def _locked(self, rank: int) -> Iterator[None]:
        lock = FileLock(self._folder / f"journal-{rank:05d}.lock")
        try:
            lock.acquire(timeout=_LOCK_PATIENCE_S)
        except Timeout as err:
            raise ArtifactError(
                f"{self._folder} is being filled by another run; let it end, or stop it, and start again (what it made "
                "is kept), or name another self_distillation.output_dir"
            ) from err
        try:
            yield
        finally:
            lock.release()


class JournalWriter:
    """Appends batches to one rank's files: one for first attempts, one for those after them."""

    def __init__(self, journal: Journal, rank: int) -> None:
        self._journal, self._rank = journal, rank
        self._files: dict[bool, tuple[FileIO, _Scanned]] = {}
        self._synced = time.monotonic()

    def append(self, batch: Sequence[Prompt], answers: Sequence[Answer], seconds: float) -> None:
        """Put a batch into the journal; when this returns, a kill can't lose it.

        Raises:
            ArtifactError: The disk refuses, for example because it is full. What was written before stays.
        """
        file, scanned = self._file(batch[0].attempt > 0)
        entries = [_to_json(prompt, answer) for prompt, answer in zip(batch, answers, strict=True)]
        entries[-1][_BATCH_END] = round(seconds, 6)
        lines = [(json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass") for entry in entries]
        with _disk_errors(file.name):
            _write(file, b"".join(lines))
            if time.monotonic() - self._synced >= _SYNC_S:
                self._sync()
        placed, offset = [], scanned.end
        for entry, line in zip(entries, lines, strict=True):
            placed.append((entry, offset, len(line)))
            offset += len(line)
        self._journal._add(placed, scanned)

    def close(self) -> None:
        """Put everything on disk and close the files."""
        try:
            with _disk_errors(self._journal._folder):
                self._sync()
        finally:
            for file, _ in self._files.values():
                file.close()

    def _sync(self) -> None:
        for file, _ in self._files.values():
            os.fsync(file.fileno())
        self._synced = time.monotonic()

    def _file(self, is_again: bool) -> tuple[FileIO, _Scanned]:
        """Return the file of an attempt, cut off after its last whole batch, and how far it is known."""
        if is_again not in self._files:
            stem = f"again-{self._journal._chain}" if is_again else "journal"
            path = self._journal._folder / f"{stem}-{self._rank:05d}.jsonl"
            file = FileIO(path, "a")  # a buffer would try to write again when it is closed
            scanned = self._journal._scan(path)
            file.truncate(scanned.end)
            self._files[is_again] = file, scanned
        return self._files[is_again]


@contextmanager
def _disk_errors(path: Any) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise ArtifactError(
            f"{path}: the last batch could not be written ({err.strerror or err}); "
            "make room and start again, all earlier batches are kept"
        ) from err


def _write(file: FileIO, content: bytes) -> None:
    unwritten = memoryview(content)
    while unwritten:  # a disk that is nearly full takes a part
        unwritten = unwritten[file.write(unwritten) :]


def _to_json(prompt: Prompt, answer: Answer) -> dict[str, Any]:
    entry: dict[str, Any] = {"row": prompt.key[0], "turn": prompt.key[1], "attempt": prompt.attempt}
    entry |= {"text": answer.text, "finish_reason": answer.finish_reason, "num_tokens": answer.num_tokens}
    for name in ("mean_logprob", "error"):
        if getattr(answer, name) is not None:
            entry[name] = getattr(answer, name)
    return entry


def _entry(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict) or not entry.keys() >= _NEEDED:
        raise ArtifactError(
            f"{path}, line {number} is no journal line; restore the file, or delete it to generate its rows again"
        )
    return entry
