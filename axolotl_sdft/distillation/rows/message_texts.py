"""Chat messages as text: their parts, functions, calls and results, which every chat template can show."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from axolotl_sdft.core.callables import plain_value
from axolotl_sdft.core.errors import DatasetError

_TEXT_KEYS = ("text", "content", "value")  # of a part; the first that says something counts


def text_of(content: Any) -> str | None:
    """Return the text of a message's content, or None when it is more than text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        return None
    texts = [_part_text(part) for part in content]
    return "".join(str(text) for text in texts) if all(isinstance(text, str) for text in texts) else None


def is_replaceable(content: Any) -> bool:
    """Whether the content is text that can be replaced: no part of it says whether it is trained."""
    if isinstance(content, list):
        has_marks = any(part.get(key) is not None for part in content for key in ("train", "weight"))
        return bool(content) and not has_marks and text_of(content) is not None
    return isinstance(content, str)


def replaced(content: Any, text: str) -> Any:
    """Return content with another text: of parts, the first one holds it all."""
    if isinstance(content, str):
        return text
    key = next(key for key in _TEXT_KEYS if content[0].get(key) is not None)
    return [{**content[0], key: text}]


def _part_text(part: Mapping[str, Any]) -> Any:
    said = [part[key] for key in _TEXT_KEYS if part.get(key) is not None]
    return next((value for value in said if value), said[0] if said else None)


def parsed_tools(value: Any, column: str) -> list[Any]:
    """Return the functions of a row: a list, or such a list as JSON text; empty when there are none.

    Raises:
        DatasetError: The column holds a text that is not JSON.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as err:
            raise DatasetError(
                f"column {column!r} holds a text that is not JSON ({err}): {value[:80]!r}; make it a list of functions"
            ) from err
    return list(value) if isinstance(value, list) else []


def described_tools(tools: Sequence[Any]) -> str:
    """Return the functions that can be called, one a line."""
    return "\n".join(["These functions can be called:", *(_json(tool) for tool in tools)])


def made_calls(calls: Any, function_call: Any) -> list[Any]:
    """Return the calls of a turn: a list, or a single one under the older key, each also as JSON text.

    A table may hold empty ones, which count for nothing.
    """
    calls, function_call = _from_text(calls), _from_text(function_call)
    if calls:
        return list(calls) if isinstance(calls, list) else [calls]
    is_empty = isinstance(function_call, Mapping) and function_call.get("name") is None
    return [function_call] if function_call and not is_empty else []


def _from_text(value: Any) -> Any:
    """Return what a text holds as JSON; the text itself where it holds none, and None for a blank one."""
    try:
        return (json.loads(value) if value.strip() else None) if isinstance(value, str) else value
    except ValueError:
        return value


def described_calls(calls: Sequence[Any], said: str) -> str:
    """Return the calls of a turn, one a line, after what it said beside them."""
    return "\n".join([*([said] if said else []), *(f"Function call: {_call(call)}" for call in calls)])


def described_result(message: Mapping[str, Any], text: str) -> str:
    """Return the result of a call, with the name of the function where the message tells it."""
    name = message.get("name")
    return f"Result of {name}: {text}" if isinstance(name, str) and name else f"Result: {text}"


def _call(call: Any) -> str:
    function = call.get("function") if isinstance(call, Mapping) and call.get("function") else call
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return _json(call)
    arguments = function.get("arguments")
    return f"{function['name']}({arguments if isinstance(arguments, str) else _json(arguments or {})})"


def _json(value: Any) -> str:
    try:
        return json.dumps(_without_nulls(value), ensure_ascii=False, default=plain_value)
    except TypeError as err:
        raise DatasetError(
            f"a function or call of a row can't be shown as text: {err}; make it JSON in the data"
        ) from err


def _without_nulls(value: Any) -> Any:
    """Drop keys without a value: a table gives every row the keys that any of its rows has."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
