"""The journal: every generated batch is on disk as one line before the next one starts.

A line is written whole or is torn by a kill; a torn line is dropped and its batch made again. Since a batch is the unit
both of generation and of the journal, a run that was killed ends with the same answers as one that was not. Each rank
writes a file of its own, and all ranks read all files.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from filelock import FileLock, Timeout

from axolotl_sdft.distillation.interfaces import Answer, Prompt
from axolotl_sdft.errors import ArtifactError

LOG = logging.getLogger(__name__)

Key = tuple[int, int]
"""Row and trained turn, each counted from 0."""


class JournalWriter:
    """Appends batches to one rank's file."""

    def __init__(self, file: FileIO) -> None:
        self._file = file

    def append(self, batch: Sequence[Prompt], answers: Sequence[Answer], seconds: float) -> None:
        """Put a batch on disk; when this returns, a kill can't lose it.

        Raises:
            ArtifactError: The disk refuses, for example because it is full. What was written before stays.
        """
        entries = [
            [*prompt.key, answer.text, answer.finish_reason, answer.num_tokens]
            for prompt, answer in zip(batch, answers, strict=True)
        ]
        line = json.dumps({"answers": entries, "seconds": round(seconds, 3)}, ensure_ascii=False) + "\n"
        unwritten = memoryview(line.encode())
        try:
            while unwritten:  # a disk that is nearly full takes a part
                unwritten = unwritten[self._file.write(unwritten) :]
            os.fsync(self._file.fileno())
        except OSError as err:
            raise ArtifactError(
                f"{self._file.name}: the last batch could not be written ({err.strerror or err}); "
                "make room and start again, all earlier batches are kept"
            ) from err


class Journal:
    """All answers that were generated so far, by all ranks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def answers(self) -> dict[Key, Answer]:
        """Return every answer on disk, by row and turn."""
        return {
            (row, turn): Answer(text, finish_reason, num_tokens)
            for line in self._lines()
            for row, turn, text, finish_reason, num_tokens in line["answers"]
        }

    def seconds(self) -> float:
        """Return the time that generating took, summed over batches and ranks."""
        return sum(line["seconds"] for line in self._lines())

    def _lines(self) -> Iterator[dict]:
        for path in sorted(self._folder.glob("journal-*.jsonl")):
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.endswith(b"\n"):  # torn by a kill, or still being written
                        break
                    try:
                        yield json.loads(line)
                    except ValueError as err:
                        raise ArtifactError(
                            f"{path}, line {number} is no journal line; restore the file, "
                            "or delete it to generate its rows again"
                        ) from err

    @contextmanager
    def writer(self, rank: int) -> Iterator[JournalWriter]:
        """Give the writer of one rank; a second run on the same folder waits until the first has ended."""
        path = self._folder / f"journal-{rank:05d}.jsonl"
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            LOG.info("another run is generating into %s; waiting for it to end", self._folder)
            lock.acquire()
        try:
            _drop_torn_line(path)
            with path.open("ab", buffering=0) as file:  # a buffer would try to write again when it is closed
                yield JournalWriter(file)
        finally:
            lock.release()


def _drop_torn_line(path: Path) -> None:
    """Cut a file off after its last whole line."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        whole = 0
        for line in file:
            if line.endswith(b"\n"):
                whole += len(line)
        file.truncate(whole)
