"""Refuses what can't be rewritten because of the kind of dataset it is, before anything else is looked at."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from axolotl_sdft.core.errors import DatasetError, SdftError, first_line
from axolotl_sdft.core.runtime import rank
from axolotl_sdft.core.terminal import quiet_datasets
from axolotl_sdft.core.texts import shortened
from axolotl_sdft.distillation.interfaces import RowLimit

if TYPE_CHECKING:
    from datasets import Dataset

LOG = logging.getLogger(__name__)

TOKENIZED = {"input_ids", "attention_mask", "labels"}
"""Columns by which Axolotl knows rows that are tokenized already; then it reads no ``type``."""

SAYS_TOKENIZED = {"input_ids", "labels"}
"""Columns that show a person the same."""

_FEW_ROWS = 1000  # that one process counts sooner than several start
_PREFERENCE = {"chosen", "rejected"}


def require_whole_dataset(dataset: Any, where: str) -> None:
    """Raise :class:`DatasetError` unless this is one ``datasets.Dataset``: not streamed, not several splits."""
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    if isinstance(dataset, Dataset):
        return
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        raise DatasetError(f"{where} holds the splits {', '.join(dataset)}; pass one of them, such as dataset['train']")
    if isinstance(dataset, IterableDataset):
        raise DatasetError(
            f"{where} is streamed, but rewriting goes through all rows several times and keeps what it has written by "
            "row; load it with streaming=False"
        )
    raise DatasetError(
        f"{where} is a {type(dataset).__name__}, not a datasets.Dataset; Dataset.from_list makes one of a list of rows"
    )


def stored_rows(dataset: "Dataset", where: str) -> "Dataset":
    """Return a dataset whose rows read as they are stored.

    A format (pandas, arrow, torch, ...) or a transform is taken off, which is logged. Pictures and sounds stay in the
    bytes of their files.
    """
    kind = dataset.format["type"]
    if kind == "custom":
        LOG.warning(
            "%s has a transform (with_transform), which is left out: rows are taken as they are stored; to have its "
            "result rewritten, apply it with dataset.map first",
            where,
        )
    elif kind is not None:
        LOG.info("%s has the format %r; rows are taken as they are stored", where, kind)
    rows = dataset if kind is None else dataset.with_format(None)
    for name, feature in list(rows.features.items()):
        bare = _undecoded(feature)
        if bare is not feature:
            rows = rows.cast_column(name, bare)
    return rows


def _undecoded(feature: Any) -> Any:
    """Return the type of a column that gives files as they are; itself where there are none."""
    from dataclasses import replace

    if getattr(feature, "decode", False) and hasattr(feature, "embed_storage"):  # of files; JSON has none
        return replace(feature, decode=False)
    if isinstance(feature, dict):
        bare = {name: _undecoded(inner) for name, inner in feature.items()}
        return bare if any(bare[name] is not inner for name, inner in feature.items()) else feature
    inner = getattr(feature, "feature", None)  # of a list
    if inner is None or _undecoded(inner) is inner:
        return feature
    return replace(feature, feature=_undecoded(inner))


def shown_features(dataset: "Dataset") -> dict[str, Any]:
    """Return the types of the columns; of one that holds JSON, which may be anything, what its first value shows.

    The datasets library reads JSON lines as such where rows or messages differ in their keys.
    """
    features = dict(dataset.features)
    for name in [name for name, feature in features.items() if _holds_json(feature)]:
        values = dataset.with_format(None)[name]
        features[name] = _shown_type(next((value for value in values if value is not None), None))
    return features


def _holds_json(feature: Any) -> bool:
    if isinstance(feature, dict):
        return any(map(_holds_json, feature.values()))
    inner = getattr(feature, "feature", None)
    return _is_json(feature) if inner is None else _holds_json(inner)


def _is_json(feature: Any) -> bool:
    return getattr(feature, "_type", None) == "Json"  # a class that older versions of the library lack


def _shown_type(value: Any) -> Any:
    from datasets import Value

    if isinstance(value, Mapping):
        return {key: _shown_type(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shown_type(inner) for inner in value[:1]]
    dtypes = {str: "string", bool: "bool", int: "int64", float: "float64"}
    return Value(dtypes.get(type(value), "null"))


def storable(values: list[Any], feature: Any) -> list[Any]:
    """Return the values of a column so that its type stores them as they are.

    Where it holds JSON, the datasets library would take a text such as ``42`` for the number that it spells.
    """
    return [_encoded(value, feature) for value in values] if _holds_json(feature) else values


def _encoded(value: Any, feature: Any) -> Any:
    if value is None or not _holds_json(feature):
        return value
    if _is_json(feature):
        return json.dumps(value)
    if isinstance(feature, dict):
        return {key: _encoded(value.get(key), inner) for key, inner in feature.items()}
    return [_encoded(inner, feature.feature) for inner in value]


def refuse_tokenized(columns: Sequence[str], where: str) -> None:
    """Raise :class:`DatasetError` for rows that Axolotl takes as tokenized, whatever their type says."""
    if set(columns) >= TOKENIZED:
        raise DatasetError(
            f"{where} holds rows that are tokenized already (columns input_ids, attention_mask, labels), which Axolotl "
            "trains on as they are, whatever their type; rewriting needs their text: name the dataset that they were "
            "made of, or leave this one alone with self_distillation: {enabled: false}"
        )


def require_text(features: Mapping[str, Any], row_format: Any, kind: Any, where: str) -> None:
    """Raise :class:`DatasetError` where a column that a row format reads as text holds something else.

    A question may be a number, which becomes text as in Axolotl; an answer may not. Row formats say which columns
    these are with ``question_columns`` and ``answer_columns``; others are not looked at.
    """
    answers = getattr(row_format, "answer_columns", ())
    for name in (*answers, *getattr(row_format, "question_columns", ())):
        if name not in features:
            continue
        dtype = getattr(features[name], "dtype", None)
        if is_messages(features[name]):
            raise DatasetError(
                f"{where}: column {name!r} holds lists of messages, but its type {kind!r} reads text there; join the "
                "messages of the prompt and of the answer in one column, such as dataset.map(lambda row: "
                "{'messages': row['prompt'] + row['completion']}), and use type: chat_template"
            )
        if not _is_text(features[name]) and (name in answers or not _is_scalar(dtype)):
            raise DatasetError(
                f"{where}: column {name!r} holds {dtype or type(features[name]).__name__}, but its type {kind!r} needs "
                f"{'text' if name in answers else 'text or numbers'} there, and Axolotl can't train on anything else; "
                "make it text in the data, or name another column"
            )


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string", "string_view", "null") and not hasattr(
        feature, "names"
    )


def _is_scalar(dtype: Any) -> bool:
    return isinstance(dtype, str) and dtype.startswith(("int", "uint", "float", "bool", "double"))


def is_messages(feature: Any, role: str = "role", content: str = "content") -> bool:
    """Say whether a column holds lists of messages with these keys; False for None, a column that is not there."""
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else None)
    return isinstance(inner, dict) and {role, content} <= set(inner)


def require_columns(missing: Sequence[str], columns: Sequence[str], kind: Any, where: str) -> None:
    """Raise :class:`DatasetError` when a row format misses columns; the message says why where it can be told."""
    if not missing:
        return
    if set(columns) >= _PREFERENCE:
        why = "; rows of chosen and rejected answers are compared in training, and rewriting one would undo that"
    elif set(columns) >= SAYS_TOKENIZED:
        why = "; its rows are tokenized already, and rewriting needs their text"
    else:
        why = ". Set another type or the field names"
    raise DatasetError(
        f"{where} has no column {missing[0]!r}, which its type {kind!r} needs; its columns: {', '.join(columns)}{why}"
    )


def row_lengths(
    dataset: "Dataset", limit: RowLimit, kind: Any, where: str, indices: Sequence[int] | None = None
) -> NDArray[np.int64]:
    """Return the tokens of each row in training. Many rows are counted by several processes.

    Args:
        dataset: Whose rows.
        limit: Counts them.
        kind: The type of the rows, as messages name it.
        where: What messages call the dataset.
        indices: Which rows; None: all.

    Raises:
        DatasetError: A row can't be tokenized.
    """
    from datasets import Features, Value

    chosen = range(len(dataset)) if indices is None else indices
    dataset = dataset if indices is None else dataset.select(indices)
    is_long = len(dataset) > _FEW_ROWS
    if is_long and rank() == 0:
        LOG.info("%s: counting the tokens of %d rows", where, len(dataset))
    with nullcontext() if is_long and rank() == 0 and sys.stderr.isatty() else quiet_datasets():
        counted = dataset.map(
            _counted,
            fn_kwargs={"limit": limit},
            remove_columns=dataset.column_names,
            features=Features({"num_tokens": Value("int64"), "fault": Value("string")}),
            num_proc=limit.num_processes if is_long and limit.num_processes > 1 else None,
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint="counted",  # what counts need not be something that can be hashed
            desc=f"Counting the tokens of {where}",
        )
    faulty = [index for index, fault in enumerate(counted["fault"]) if fault is not None]
    if faulty:
        raise DatasetError(
            f"{where}: Axolotl can't tokenize row {chosen[faulty[0]]} as type {kind!r} "
            f"({counted['fault'][faulty[0]]}), which would stop the training after the rewriting (rows like that: "
            f"{len(faulty)} of {len(dataset)}): "
            f"{shortened(repr(dataset[faulty[0]]), 200)}; correct or remove them, or set another type or chat_template"
        )
    return np.asarray(counted["num_tokens"], np.int64)


def _counted(row: Mapping[str, Any], limit: RowLimit) -> dict[str, Any]:
    try:
        return {"num_tokens": limit.count_tokens(dict(row)), "fault": None}
    except SdftError:  # of the type, not of the row
        raise
    except Exception as err:  # whatever a template or a strategy raises
        return {"num_tokens": 0, "fault": f"{type(err).__name__}: {first_line(err)}"}
