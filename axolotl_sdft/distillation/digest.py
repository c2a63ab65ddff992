"""Reads a dataset in slices, and what of it shapes the result."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from axolotl_sdft.core.callables import plain_value
from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.distillation.interfaces import RowFormat, Template
from axolotl_sdft.distillation.rows.left_alone import LeftAloneCounts, targets_of
from axolotl_sdft.inference.interfaces import question_digest

if TYPE_CHECKING:
    from datasets import Dataset

_SLICE_ROWS = 1024
_SCALARS = (str, int, float)
_ENCODER = json.JSONEncoder(sort_keys=True, default=plain_value)  # json.dumps would make one for each row


@dataclass(frozen=True)
class DatasetDigest:
    """What a dataset holds, in short."""

    rows_digest: str
    """Of all rows."""

    requests_digest: str
    """Of what the seed model is asked about them, with the original answers in place."""

    num_targets: NDArray[np.int32]
    """Trained answers of each row that can be rewritten."""

    left_alone: LeftAloneCounts
    """Trained answers that can't be, by reason."""

    first_questions: NDArray[np.uint8]
    """Digest of what the seed model is asked for the first trained answer of each row, by the first template, 32 bytes;
    zeros without one."""

    @property
    def most_targets(self) -> int:
        """The most trained answers in one row."""
        return int(self.num_targets.max(initial=0))


def digest_dataset(dataset: "Dataset", row_format: RowFormat, templates: Sequence[Template]) -> DatasetDigest:
    """Read all rows once."""
    rows, requests = hashlib.sha256(), hashlib.sha256()
    num_targets, left_alone = np.zeros(len(dataset), np.int32), LeftAloneCounts()
    first_questions = np.zeros((len(dataset), 32), np.uint8)
    for start in range(0, len(dataset), _SLICE_ROWS):
        columns = dataset[start : min(start + _SLICE_ROWS, len(dataset))]
        rows.update(encoded(sorted(columns.items())))  # all at once: row by row takes several times as long
        for index, row in enumerate(as_rows(columns), start):
            num_targets[index], reasons = targets_of(row_format, row)
            left_alone.add(reasons)
            for turn in range(num_targets[index]):
                target = row_format.target(row, turn)
                digests = [question_digest(template(target)) for template in templates]
                requests.update(b"".join(digests))
                if turn == 0:
                    first_questions[index] = np.frombuffer(digests[0], np.uint8)
    return DatasetDigest(rows.hexdigest(), requests.hexdigest(), num_targets, left_alone, first_questions)


def encoded(value: Any) -> bytes:
    """Return a row, or what is trained of it, as bytes that are the same wherever and whenever they are made.

    A picture or another file counts by its bytes, not by its path; a null like a key that is not there.

    Raises:
        DatasetError: It holds an object that can't be told in bytes.
    """
    try:
        return _ENCODER.encode(_plain(value)).encode()
    except TypeError as err:
        raise DatasetError(
            f"a row can't be told from others ({err}); make it text or numbers with dataset.map"
        ) from err


def _plain(value: Any) -> Any:
    if isinstance(value, _SCALARS):  # most are, and to ask for a mapping takes ten times as long
        return value
    if isinstance(value, Mapping):
        if len(value) == 2 and set(value) == {"bytes", "path"}:
            return _file_digest(value)
        # Tables fill up keys that only some rows have.
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _file_digest(file: Mapping[str, Any]) -> Any:
    """Return the digest of a file as the datasets library stores it: its bytes, or where they are."""
    content, path = file["bytes"], file["path"]
    if content is None and isinstance(path, str) and Path(path).is_file():
        content = Path(path).read_bytes()
    return path if content is None else hashlib.sha256(content).hexdigest()


def rows_between(dataset: "Dataset", start: int, stop: int) -> Iterator[dict[str, Any]]:
    """Yield a slice of the rows, read at once: one by one they cost several times as much."""
    yield from as_rows(dataset[start : min(stop, len(dataset))])


def slices(dataset: "Dataset") -> Iterator[list[dict[str, Any]]]:
    """Yield all rows, so many at a time as are read at once."""
    for start in range(0, len(dataset), _SLICE_ROWS):
        yield list(rows_between(dataset, start, start + _SLICE_ROWS))


def all_rows(dataset: "Dataset") -> Iterator[dict[str, Any]]:
    """Yield the rows, read in slices."""
    for rows in slices(dataset):
        yield from rows


def as_rows(columns: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table that is given by its columns."""
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
