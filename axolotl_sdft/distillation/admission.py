"""Refuses what can't be rewritten because of the kind of dataset it is, before anything else is looked at."""

from collections.abc import Sequence
from typing import Any

from axolotl_sdft.errors import DatasetError

_TOKENIZED = {"input_ids", "labels"}
_PREFERENCE = {"chosen", "rejected"}


def require_whole_dataset(dataset: Any, where: str) -> None:
    """Raise :class:`DatasetError` unless this is one ``datasets.Dataset``: not streamed, not several splits."""
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    if isinstance(dataset, Dataset):
        return
    if isinstance(dataset, IterableDataset | IterableDatasetDict):
        raise DatasetError(
            f"{where} is streamed, but rewriting goes through all rows several times and keeps what it has written by "
            "row; load it with streaming=False"
        )
    if isinstance(dataset, DatasetDict):
        raise DatasetError(f"{where} holds the splits {', '.join(dataset)}; pass one of them, such as dataset['train']")
    raise DatasetError(
        f"{where} is a {type(dataset).__name__}, not a datasets.Dataset; Dataset.from_list makes one of a list of rows"
    )


def require_columns(missing: Sequence[str], columns: Sequence[str], kind: Any, where: str) -> None:
    """Raise :class:`DatasetError` when a row format misses columns; the message says why where it can be told."""
    if not missing:
        return
    if set(columns) >= _PREFERENCE:
        why = "; rows of chosen and rejected answers are compared in training, and rewriting one would undo that"
    elif set(columns) >= _TOKENIZED:
        why = "; its rows are tokenized already, and rewriting needs their text"
    else:
        why = ". Set another type or the field names"
    raise DatasetError(
        f"{where} has no column {missing[0]!r}, which its type {kind!r} needs; its columns: {', '.join(columns)}{why}"
    )
