"""Finds the function calls that a text makes, written in Python or as JSON with a name and arguments.

A call may stand in prose, between backticks or in fenced code. ``f(x=1)`` is one call; ``f(g(1))`` is one as well, with
a call as its argument. The markup that agents parse is in ``call_markup``.
"""

import ast
import bisect
import json
import re
import warnings
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_HEAD = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*\s?\(")
JSON_BEGIN = re.compile(r"\{\s*\"|\[\s*[{\[]")
"""Where JSON with a name in it may begin."""

MOST_JSON = 200
"""No more brackets that might begin JSON, and hold nothing that is looked for, are tried in a text."""

_DEFINITION = re.compile(r"\b(?:def|class|function|func|fn)\s+$")
_NAME_KEYS, _ARGUMENT_KEYS = ("name", "function"), ("arguments", "parameters", "args", "input")
_LONGEST_CALL = 4000  # characters
_MOST_UNCLOSED = 50  # a text with more of them is broken beyond reading
MOST_CALLS = 500
"""No more are read from a text; an answer with as many is rejected."""

_TAG = re.compile(r"<[^<>\s]{1,60}>")  # such as <tool_call>
_SEPARATORS = re.compile(r"[\s;,]+")


@dataclass(frozen=True)
class Call:
    """A function call; values are in a form in which 1 equals 1.0 and the order of a mapping does not matter."""

    name: str
    positional: tuple[Hashable, ...]
    keywords: tuple[tuple[str, Hashable], ...]
    """Sorted by name."""

    source: str
    """As it is written."""

    def same_as(self, other: "Call", parameters: Sequence[str] = ()) -> bool:
        """Say whether two calls hand over the same values.

        ``parameters`` are the function's in order, as far as they are known. Without them, a positional argument of one
        call may be any keyword argument of the other that has its value.
        """
        mine, theirs = self._bound(parameters), other._bound(parameters)
        if self.name != other.name or any(mine[name] != theirs[name] for name in mine.keys() & theirs.keys()):
            return False
        left = {name: value for name, value in mine.items() if name not in theirs}
        right = {name: value for name, value in theirs.items() if name not in mine}
        if any(isinstance(name, str) for name in left) and any(isinstance(name, str) for name in right):
            return False  # each names a parameter that the other does not
        return Counter(left.values()) == Counter(right.values())

    def _bound(self, parameters: Sequence[str]) -> dict[str | int, Hashable]:
        """Return the values by parameter; positional ones whose parameter is not known are counted from 0."""
        bound: dict[str | int, Hashable] = dict(self.keywords)
        for place, value in enumerate(self.positional):
            bound[parameters[place] if place < len(parameters) else place] = value
        return bound


def find_calls(text: str) -> list[Call]:
    """Return the calls of a text, in order; those that are arguments of others are part of them."""
    found: list[tuple[int, Call]] = []
    end, num_unclosed = 0, 0
    json_calls = list(_json_calls(text))
    taken = [span for span, _ in json_calls]
    starts = [start for start, _ in taken]
    for head in _HEAD.finditer(text):
        if head.start() < end or _is_inside(head.start(), starts, taken):
            continue
        if _DEFINITION.search(text[max(0, head.start() - 12) : head.start()]):
            end = len(text) if (line_end := text.find("\n", head.end())) < 0 else line_end
            continue
        source = _balanced(text, head)
        num_unclosed += source is None
        if num_unclosed > _MOST_UNCLOSED or len(found) >= MOST_CALLS:
            break
        call = _python_call(source) if source else None
        if source and call:
            found.append((head.start(), call))
            end = head.start() + len(source)
    found += [(start, call) for (start, _), calls in json_calls for call in calls]
    return [call for _, call in sorted(found, key=lambda item: item[0])]


def _is_inside(place: int, starts: list[int], spans: list[tuple[int, int]]) -> bool:
    before = bisect.bisect_right(starts, place) - 1
    return before >= 0 and place < spans[before][1]


def _balanced(text: str, head: re.Match[str]) -> str | None:
    """Return the text from a head to the bracket that closes it, or None where none does."""
    depth, quote, place = 0, "", head.end() - 1
    while place < min(len(text), head.start() + _LONGEST_CALL):
        character = text[place]
        if quote:
            place += character == "\\"
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0:
                return text[head.start() : place + 1]
        place += 1
    return None


def _python_call(source: str) -> Call | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            node = ast.parse(source, mode="eval").body
        return _call(node, source) if isinstance(node, ast.Call) else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # prose in brackets, most often
        return None


def _call(node: ast.Call, source: str) -> Call:
    # Keywords of a mapping that is unpacked have no name.
    keywords = sorted((keyword.arg or "**", _value(keyword.value)) for keyword in _by_name(node.keywords))
    return Call(ast.unparse(node.func), tuple(_value(argument) for argument in node.args), tuple(keywords), source)


def _by_name(keywords: list[ast.keyword]) -> list[ast.keyword]:
    return list({keyword.arg: keyword for keyword in keywords}.values())


def _value(node: ast.AST) -> Hashable:
    """Return an expression in a form that compares by value: 1 and 1.0, "a" and 'a', [1, 2] and (1, 2) are equal."""
    match node:
        case ast.Constant(value=value):
            return _literal(value)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return _literal(-value)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return ("list", tuple(_value(item) for item in items))
        case ast.Set(elts=items):
            return ("set", frozenset(_value(item) for item in items))
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return ("dict", frozenset((_value(key) if key else "**", _value(value)) for key, value in pairs))
        case ast.Call():
            call = _call(node, "")
            return ("call", call.name, call.positional, call.keywords)
    return ("expression", ast.unparse(node))


def _literal(value: Any) -> Hashable:
    """Return a literal with its kind, so that True is not 1."""
    return ("number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__, value)


def _json_calls(text: str) -> Iterator[tuple[tuple[int, int], list[Call]]]:
    """Yield where JSON with calls stands, and the calls."""
    decoder, place, num_without, num_calls = json.JSONDecoder(), 0, 0, 0
    while (begin := JSON_BEGIN.search(text, place)) and num_without < MOST_JSON and num_calls < MOST_CALLS:
        start = begin.start()
        place = start + 1
        try:
            value, end = decoder.raw_decode(text, start)
            calls = list(_calls_in_json(value, text[start:end]))
        except (ValueError, RecursionError):
            calls = []
        num_without, num_calls = num_without + (not calls), num_calls + len(calls)
        if calls:
            yield (start, end), calls
            place = end


def _calls_in_json(value: Any, source: str) -> Iterator[Call]:
    if isinstance(value, list):
        for item in value:
            yield from _calls_in_json(item, source)
    elif isinstance(value, Mapping):
        name = next((value[key] for key in _NAME_KEYS if isinstance(value.get(key), str)), None)
        arguments = next((_mapping(value[key]) for key in _ARGUMENT_KEYS if key in value), None)
        if name is not None and arguments is not None:
            keywords = tuple(sorted((str(key), _json_value(item)) for key, item in arguments.items()))
            yield Call(name, (), keywords, source)
            return
        for item in value.values():
            yield from _calls_in_json(item, source)


def _mapping(arguments: Any) -> Mapping[str, Any] | None:
    """Return arguments that are a mapping, or a text that holds one as JSON."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    return arguments if isinstance(arguments, Mapping) else None


def _json_value(value: Any) -> Hashable:
    if isinstance(value, list):
        return ("list", tuple(_json_value(item) for item in value))
    if isinstance(value, Mapping):
        return ("dict", frozenset((_literal(key), _json_value(item)) for key, item in value.items()))
    return _literal(value)


def text_around_calls(text: str, calls: Sequence[Call]) -> str:
    """Return what a text holds beside its calls, without the spaces, commas and semicolons that may part them."""
    for source in dict.fromkeys(call.source for call in calls):
        text = text.replace(source, " ")
    return _SEPARATORS.sub("", text)


def is_calls_alone(text: str) -> bool:
    """Whether a text makes calls and says nothing else: at most brackets or tags stand around them."""
    calls = find_calls(text)
    return bool(calls) and not re.search(r"\w", _TAG.sub("", text_around_calls(text, calls)))
