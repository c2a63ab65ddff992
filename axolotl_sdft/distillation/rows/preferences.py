"""Reads rows of preferences: a prompt with a chosen and a rejected answer, or an answer with a label.

Such rows train by ``rl: dpo`` and its relatives, or a reward model. They are never rewritten, but pruning is calibrated
on them, and a report measures them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from axolotl_sdft.core.errors import DatasetError, UnknownNameError
from axolotl_sdft.distillation.rows.formats import resolve_row_format

_COMPLETION, _LABEL = "completion", "label"
_PREFERRED = ("chosen", "chosen_response")
_ASKED = ("prompt", "input", "question", "instruction")


def chats_of_preferences(
    rows: Sequence[Mapping[str, Any]], entry: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
    """Return rows of preferences as chats that end in the preferred answer, and the dataset entry that reads them.

    The columns tell, and a type that supervised training does not know. None for rows of another kind.
    """
    columns = _columns(rows[0], entry)
    if columns is None:
        return None
    chats = [{"messages": _preferred(row, entry, *columns)} for row in rows]
    return chats, {**entry, "type": "chat_template", "field_messages": "messages"}


def without_undesirable(rows: Any, entry: Mapping[str, Any]) -> Any:
    """Return rows, a dataset or a list, without those whose completion is labelled undesirable, as in ``rl: kto``.

    Training drives a model away from such answers, so they are neither text to calibrate on nor references.
    """
    columns = _columns(rows[0], entry) if len(rows) else None
    if columns is None or columns[0] != _COMPLETION:
        return rows
    labels = [row[_LABEL] for row in rows] if isinstance(rows, list) else list(rows[_LABEL])
    if any(label not in (False, True, None) for label in labels):  # such as the number or the name of a class
        return rows
    kept = [place for place, label in enumerate(labels) if label or label is None]
    return [rows[place] for place in kept] if isinstance(rows, list) else rows.select(kept)


def _columns(row: Mapping[str, Any], entry: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Return the columns of the preferred answer and of what was asked; None where a row holds no preference."""
    kind = entry.get("type")
    if kind and _is_supervised(entry):
        return None
    answer = _first_of((entry.get("field_chosen"), *_PREFERRED, _COMPLETION if _LABEL in row else None), row)
    asked = _first_of((entry.get("field_messages"), "messages", *_ASKED), row)
    if answer is None or (asked is None and not isinstance(row[answer], list)):
        return None
    is_preference = kind or answer == _COMPLETION or any(name.startswith("rejected") for name in row)
    return (answer, asked) if is_preference else None


def _is_supervised(entry: Mapping[str, Any]) -> bool:
    try:
        resolve_row_format(entry)
    except (DatasetError, UnknownNameError):
        return False
    return True


def _first_of(columns: Sequence[str | None], row: Mapping[str, Any]) -> str | None:
    return next((column for column in columns if column and column in row), None)


def _preferred(
    row: Mapping[str, Any], entry: Mapping[str, Any], answer_column: str, asked_column: str | None
) -> list[Any]:
    """Return a conversation that ends in the preferred answer, in the roles and keys that the entry names."""
    answer = row[answer_column]
    if isinstance(answer, list) and len(answer) > 1:  # the whole conversation once more
        return answer
    asked = row[asked_column] if asked_column is not None else None
    return [*_as_messages(asked, "user", row, entry), *_as_messages(answer, "assistant", {}, entry)]


def _as_messages(value: Any, role: str, row: Mapping[str, Any], entry: Mapping[str, Any]) -> list[Any]:
    """Return one message or more: a list and a mapping as they are, a text under a role."""
    if isinstance(value, list):
        return value
    if isinstance(value, Mapping):
        return [value]
    names = entry.get("message_property_mappings") or {}
    said = [("system", row.get("system")), (role, value)]
    return [
        {names.get("role", "role"): speaker, names.get("content", "content"): text}
        for speaker, text in said
        if isinstance(text, str) and text
    ]
