"""Finds function calls in the markup that agents parse, and tells when a rewritten answer lost or gained it.

A model that was trained on such text calls functions by writing it: ``<tool_call>{"name": ...}</tool_call>`` and its
like. The markup is as much part of the answer as the call: no parser finds a call that stands in prose.
"""

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

_NAME = r"[A-Za-z_][\w.-]*"
# Opening and closing tags alike: Hermes and Qwen, Granite, Phi, Kimi, Gemma, GLM, glaive, and with wide bars and low
# blocks of their own, DeepSeek. In lower or upper case, so that the class ToolCall of a program is none of them.
_TAG = (
    r"<[^<>\s]{0,40}(?:(?:tool|function)[_\u2581-]?calls?|TOOL_?CALLS?|tool_(?:code|use))[^<>\s]{0,30}>"
    r"|<\|(?:python_tag|START_ACTION|END_ACTION|action_start|action_end|tools_prefix|tools_suffix)\|>"
)
_TAGS = (
    rf"{_TAG}|<function={_NAME}>|</function>|<parameter={_NAME}>"  # Llama, Qwen-Coder
    r"|<(?:\uff5cDSML\uff5c|\w{1,20}:)?invoke[ ]name=|</(?:\uff5cDSML\uff5c|\w{1,20}:)?invoke>"  # Anthropic, Step
    rf"|<\|recipient\|>[ ]?(?!all\b){_NAME}"  # functionary
)
_MARKS = {
    "<": re.compile(_TAGS),
    "[TOOL_CALLS]": re.compile(r"\[TOOL_CALLS\]"),  # Mistral
    "to=functions.": re.compile(rf"\bto=functions\.{_NAME}"),  # gpt-oss
    "\u273fFUNCTION\u273f": re.compile(r"\u273fFUNCTION\u273f"),  # Qwen-Agent
    "functools[": re.compile(r"\bfunctools\["),  # Phi
    ">>>": re.compile(rf"^>>>(?!all\b){_NAME}[ \t]*$(?=\s*[{{\[])", re.MULTILINE),  # functionary
    "```tool_": re.compile(r"^[ \t]*```tool_(?:code|calls?)\b", re.MULTILINE),  # Gemma
    "Action Input": re.compile(  # ReAct
        r"^[ \t]*Action[ \t]*:[^\n]{0,200}\n+[ \t]*Action Input[ \t]*:", re.MULTILINE
    ),
}
"""Marks by what a text must hold before it is worth to look for them: a plain search is much faster."""

_QUOTES = frozenset("`'\"")
_NAME_KEYS, _ARGUMENT_KEYS = ("name", "function"), ("arguments", "parameters", "args")
_WRAPPERS = ("function", "function_call", "tool_calls")
_LONGEST_LIST = 20_000  # characters of a Python list of calls
_DECODER = json.JSONDecoder()
_MAY_BE_DATA = re.compile(r"\s*[{\[]")
_SEPARATORS = re.compile(r"[\s;,]*")
_BARE = "a bare list of calls"


def call_marks(text: str) -> Counter[str]:
    """Return the marks of the calls that a text makes, by how often each stands there; empty when it makes none.

    A text that is nothing but calls, as JSON or as a Python list such as ``[get_time(city="Oslo")]``, has a mark as
    well. Calls in running text, in a block of code or without a list around them have none.
    """
    if not _may_hold_calls(text):
        return Counter()
    marks = Counter(" ".join(found.group().split()) for found in _found(text))
    return marks if marks or not (_is_json_calls(text) or _is_python_calls(text)) else Counter({_BARE: 1})


def _may_hold_calls(text: str) -> bool:
    for hint in _MARKS:  # a generator in any() would cost more than the search
        if hint in text:
            return True
    return _MAY_BE_DATA.match(text) is not None


def markup_fault(answer: str, reference: str) -> str | None:
    """Return what is wrong with the marks of an answer's calls beside those of the original, or None.

    All marks of the original must be there as often; what stood between them as JSON must be JSON. Where the original
    makes no call in this way, neither may the answer.
    """
    expected, found = call_marks(reference), call_marks(answer)
    missing = next(iter(expected - found), None)
    if missing is not None:
        return f"no {missing}, in which the original's call stands"
    if expected and _num_json(answer) < _num_json(reference):
        return "what stands in its call is not JSON, as in the original"
    gained = next(iter(found), None) if not expected else None
    return None if gained is None else f"makes a call ({gained}), the original none"


def is_call_token(token: str) -> bool:
    """Whether a token of a vocabulary is a mark of calls."""
    return token == "[TOOL_CALLS]" or re.fullmatch(_TAG, token) is not None


def _found(text: str) -> list[re.Match[str]]:
    """Return the marks of a text in order. One that stands between quotes is only talked about."""
    found = [match for hint, marks in _MARKS.items() if hint in text for match in marks.finditer(text)]
    return sorted((match for match in found if not _is_quoted(match)), key=lambda match: match.start())


def _is_quoted(match: re.Match[str]) -> bool:
    return {match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]} <= _QUOTES


def _num_json(text: str) -> int:
    """Return how many of the pieces between a text's marks are JSON."""
    marks = _found(text)
    starts = [0, *(mark.end() for mark in marks)]
    ends = [*(mark.start() for mark in marks), len(text)]
    return sum(_is_json(text[start:end]) for start, end in zip(starts, ends, strict=True))


def _is_json(piece: str) -> bool:
    piece = piece.strip()
    if not piece.startswith(("{", "[")):
        return False
    try:
        json.loads(piece)
    except (ValueError, RecursionError):
        return False
    return True


def _is_json_calls(text: str) -> bool:
    """Whether a text is one or more calls as JSON, with nothing around them."""
    values = list(_json_values(text.strip()))
    return bool(values) and all(_is_call(value) for value in values)


def _json_values(text: str) -> Iterator[Any]:
    """Yield the JSON values that a text is made of, and None where it is something else."""
    place = 0
    while place < len(text):
        if text[place] not in "{[":
            yield None
            return
        try:
            value, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            yield None
            return
        yield value
        place = _SEPARATORS.match(text, place).end()  # type: ignore[union-attr]  # it matches an empty text as well


def _is_call(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_call(item) for item in value)
    if not isinstance(value, Mapping):
        return False
    if any(isinstance(value.get(key), Mapping | list) and _is_call(value[key]) for key in _WRAPPERS):
        return True
    has_name = any(isinstance(value.get(key), str) for key in _NAME_KEYS)
    return has_name and any(_is_arguments(value.get(key)) for key in _ARGUMENT_KEYS)


def _is_arguments(value: Any) -> bool:
    """Whether these are the arguments of a call; the parameters of a function that is described have properties."""
    return (isinstance(value, Mapping) and "properties" not in value) or (isinstance(value, str) and _is_json(value))


def _is_python_calls(text: str) -> bool:
    """Whether a text is a Python list of calls whose arguments all have names, with nothing around it."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith(")]")) or len(text) > _LONGEST_LIST:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return isinstance(node, ast.List) and all(isinstance(item, ast.Call) and not item.args for item in node.elts)
