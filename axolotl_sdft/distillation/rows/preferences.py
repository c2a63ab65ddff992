"""Reads rows of preferences: a prompt with a chosen and a rejected answer, or an answer with a label.

Such rows train by ``rl: dpo`` and its relatives, or a reward model. They are never rewritten, but pruning is calibrated
on them, and a report measures them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from axolotl_sdft.core.errors import DatasetError, UnknownNameError
from axolotl_sdft.distillation.rows.formats import resolve_row_format

_PREFERRED = ("chosen", "chosen_response")
_ASKED = ("prompt", "input", "question", "instruction")
_OF_RL = ("field_prompt", "field_chosen", "field_rejected", "field_completion", "field_label")
"""Keys under a user-defined ``type`` that only preferences have."""


@dataclass(frozen=True)
class _Columns:
    """Where a row of preferences holds what; None where it doesn't."""

    answer: str
    asked: str | None
    system: str
    label: str | None
    """Whether the answer is desirable: there is one answer to a row then."""


def chats_of_preferences(
    rows: Sequence[Mapping[str, Any]], entry: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
    """Return rows of preferences as chats that end in the preferred answer, and the dataset entry that reads them.

    The columns tell, and a type that supervised training does not know. None for rows of another kind.
    """
    columns = _columns(rows[0], entry)
    if columns is None:
        return None
    chats = [{"messages": _preferred(row, entry, columns)} for row in rows]
    return chats, {**entry, "type": "chat_template", "field_messages": "messages"}


def without_undesirable(rows: Any, entry: Mapping[str, Any]) -> Any:
    """Return rows, a dataset or a list, without those whose completion is labelled undesirable, as in ``rl: kto``.

    Training drives a model away from such answers, so they are neither text to calibrate on nor references.
    """
    columns = _columns(rows[0], entry) if len(rows) else None
    if columns is None or columns.label is None:
        return rows
    labels = [row[columns.label] for row in rows] if isinstance(rows, list) else list(rows[columns.label])
    if any(label not in (False, True, None) for label in labels):  # such as the number or the name of a class
        return rows
    kept = [place for place, label in enumerate(labels) if label or label is None]
    return [rows[place] for place in kept] if isinstance(rows, list) else rows.select(kept)


def _columns(row: Mapping[str, Any], entry: Mapping[str, Any]) -> _Columns | None:
    """Return where a row of preferences holds what; None where it holds no preference."""
    kind = entry.get("type")
    named = kind if isinstance(kind, Mapping) and any(kind.get(key) for key in _OF_RL) else {}
    if kind and not named and _is_supervised(entry):
        return None
    chosen = _first_of((named.get("field_chosen"), entry.get("field_chosen"), *_PREFERRED), row)
    label = _first_of((named.get("field_label"), "label"), row) if chosen is None else None
    answer = chosen if label is None else _first_of((named.get("field_completion"), "completion"), row)
    asked = _first_of((named.get("field_prompt"), entry.get("field_messages"), "messages", *_ASKED), row)
    if answer is None or (asked is None and not isinstance(row[answer], list)):
        return None
    if not (kind or label or any(name.startswith("rejected") for name in row)):
        return None
    return _Columns(answer, asked, named.get("field_system") or "system", label)


def _is_supervised(entry: Mapping[str, Any]) -> bool:
    try:
        resolve_row_format(entry)
    except (DatasetError, UnknownNameError):
        return False
    return True


def _first_of(columns: Sequence[str | None], row: Mapping[str, Any]) -> str | None:
    return next((column for column in columns if column and column in row), None)


def _preferred(row: Mapping[str, Any], entry: Mapping[str, Any], columns: _Columns) -> list[Any]:
    """Return a conversation that ends in the preferred answer, in the roles and keys that the entry names."""
    answer = row[columns.answer]
    if isinstance(answer, list) and len(answer) > 1:  # the whole conversation once more
        return answer
    asked = row[columns.asked] if columns.asked is not None else None
    said = [*_as_messages(asked, "user", entry), *_as_messages(answer, "assistant", entry)]
    if isinstance(asked, list | Mapping):
        return said
    return [*_as_messages(row.get(columns.system), "system", entry), *said]


def _as_messages(value: Any, role: str, entry: Mapping[str, Any]) -> list[Any]:
    """Return one message or more: a list and a mapping as they are, a text under a role."""
    if isinstance(value, list):
        return value
    if isinstance(value, Mapping):
        return [value]
    names = entry.get("message_property_mappings") or {}
    is_said = isinstance(value, str) and value
    return [{names.get("role", "role"): role, names.get("content", "content"): value}] if is_said else []
