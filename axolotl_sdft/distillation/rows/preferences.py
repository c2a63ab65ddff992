"""Reads rows of preferences: a prompt with a chosen and a rejected answer, or an answer with a label.

Such rows train by ``rl: dpo`` and its relatives, or a reward model. They are never rewritten, but pruning is calibrated
on them, and a report measures them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from axolotl_sdft.core.errors import DatasetError, UnknownNameError
from axolotl_sdft.distillation.rows.formats import resolve_row_format

_PREFERRED = ("chosen", "chosen_response")
_ASKED = ("prompt", "input", "question", "instruction")


def holds_preferences(row: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Tell whether a row of a dataset entry holds a preference: by its columns, and a type of none but such rows."""
    return _answer_column(row, entry) is not None


def chats_of_preferences(
    rows: Sequence[Mapping[str, Any]], entry: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return rows of preferences as chats that end in the preferred answer, and the dataset entry that reads them."""
    chats = [{"messages": _preferred(row, entry)} for row in rows]
    return chats, {**entry, "type": "chat_template", "field_messages": "messages"}


def _answer_column(row: Mapping[str, Any], entry: Mapping[str, Any]) -> str | None:
    """Return the column of the answer that preference training (``rl``) or a reward model prefers; None in other rows.

    Rows of a type that supervised training knows are never read so, whatever else they hold.
    """
    kind = entry.get("type")
    if kind and _is_supervised(entry):
        return None
    found = _first_of((entry.get("field_chosen"), *_PREFERRED, "completion" if "label" in row else None), row)
    is_preference = kind or found == "completion" or any(name.startswith("rejected") for name in row)
    is_asked = found is not None and (_asked_column(row, entry) is not None or isinstance(row[found], list))
    return found if is_preference and is_asked else None


def _is_supervised(entry: Mapping[str, Any]) -> bool:
    try:
        resolve_row_format(entry)
    except (DatasetError, UnknownNameError):
        return False
    return True


def _asked_column(row: Mapping[str, Any], entry: Mapping[str, Any]) -> str | None:
    return _first_of((entry.get("field_messages"), "messages", *_ASKED), row)


def _first_of(columns: Sequence[str | None], row: Mapping[str, Any]) -> str | None:
    return next((column for column in columns if column and column in row), None)


def _preferred(row: Mapping[str, Any], entry: Mapping[str, Any]) -> list[Any]:
    """Return a conversation that ends in the preferred answer, in the roles and keys that the entry names."""
    answer = row[_answer_column(row, entry) or ""]
    if isinstance(answer, list) and len(answer) > 1:  # the whole conversation once more
        return answer
    asked = row.get(_asked_column(row, entry) or "")
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
