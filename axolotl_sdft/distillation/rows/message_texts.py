"""The content of a chat message as text: a text as it is, a list of text parts joined as Axolotl joins them."""

from collections.abc import Mapping
from typing import Any

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
