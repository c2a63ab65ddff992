"""The ``function_call`` check: the answer makes other calls than the original, or says more than calls."""

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from axolotl_sdft.core.texts import shortened
from axolotl_sdft.distillation.checks.fenced_code import fenced_blocks
from axolotl_sdft.distillation.checks.options import NOTHING_TO_COMPARE
from axolotl_sdft.inference.call_markup import call_marks
from axolotl_sdft.inference.function_calls import (
    JSON_BEGIN,
    MOST_CALLS,
    MOST_JSON,
    Call,
    find_calls,
    is_calls_alone,
    text_around_calls,
)
from axolotl_sdft.inference.interfaces import Answer, Target

_HEADING = re.compile(r"\b(?:parameters|arguments|args)\b[^\n]*\n", re.IGNORECASE)
_ITEM = re.compile(r"\s*(?:(?P<number>\d+)[.)]|[-*\u2022])\s*[`*]*(?P<name>[A-Za-z_]\w*)")
_SECTION = re.compile(r"\s*\W*(?:required|returns?|format|function|examples?)\b[^\n]{0,20}:", re.IGNORECASE)
_SCHEMA_KEYS = ("parameters", "arguments", "properties", "api_arguments")


def documented_parameters(name: str, text: str) -> list[str]:
    """Return the parameters of a function in the order in which a text documents them, or none where it does not.

    Understood are JSON with a name and its parameters, a numbered or bulleted list under the heading "Parameters" that
    comes next after the name, and a signature such as ``def name(a, b=1)``.
    """
    return _from_json(name, text) or _from_list(name, text) or _from_signature(name, text)


def _from_json(name: str, text: str) -> list[str]:
    decoder = json.JSONDecoder()
    if name not in text:
        return []
    place, num_tries = 0, 0
    while (begin := JSON_BEGIN.search(text, place)) and num_tries < MOST_JSON:
        place, num_tries = begin.start() + 1, num_tries + 1
        try:
            value, place = decoder.raw_decode(text, begin.start())
        except (ValueError, RecursionError):
            continue
        for function in _mappings(value):
            if name in function.values():
                parameters = next((_names(function[key]) for key in _SCHEMA_KEYS if key in function), [])
                if parameters:
                    return parameters
    return []


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield all mappings that are nested in a JSON value, outer ones first."""
    if isinstance(value, Mapping):
        yield value
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _mappings(item)


def _names(schema: Any) -> list[str]:
    """Return the names of a JSON schema, a mapping by name, or a list of named entries."""
    if isinstance(schema, Mapping):
        properties = schema.get("properties")
        return list(properties if isinstance(properties, Mapping) else schema)
    entries = schema if isinstance(schema, list) else []
    return [entry["name"] for entry in entries if isinstance(entry, Mapping) and isinstance(entry.get("name"), str)]


def _from_list(name: str, text: str) -> list[str]:
    mention = text.find(name)
    heading = _HEADING.search(text, mention + len(name)) if mention >= 0 else None
    if heading is None:
        return []
    items: list[str] = []
    for line in text[heading.end() :].splitlines():
        item = _ITEM.match(line)
        if item is not None and item["number"] in (None, str(len(items) + 1)):
            items.append(item["name"])
        elif item is not None or not line.strip() or _SECTION.match(line):
            break
    return items


def _from_signature(name: str, text: str) -> list[str]:
    found = re.search(rf"\bdef\s+{re.escape(name)}\s*\([^)]*\)", text)
    if found is None:
        return []
    try:
        definition = ast.parse(f"{found.group()}: pass").body[0]
    except SyntaxError:
        return []
    return [argument.arg for argument in definition.args.args] if isinstance(definition, ast.FunctionDef) else []


def function_call(answer: Answer, target: Target, *, allow_text: bool = False) -> str | None:
    """Reject an answer without one of the original's function calls, or with another.

    Calls are parsed and compared by value, wherever they stand: in prose, in code, as JSON. Keyword arguments have no
    order; positional ones are matched to the parameters that the conversation documents, else to any keyword argument
    of the same value. Where the original is calls and nothing else, so must be the answer, in the same notation: what
    parses the calls would find none behind a sentence. ``allow_text`` lets words stand around them all the same.
    """
    expected = find_calls(target.reference)
    if not expected:
        return f"{NOTHING_TO_COMPARE} call"
    by_value = _other_calls(answer, target, expected)
    if by_value is not None or allow_text or not is_calls_alone(target.reference):
        return by_value
    return _said_beside(answer.text, target.reference, expected)


def _said_beside(text: str, reference: str, expected: Sequence[Call]) -> str | None:
    """Return what an answer says or does beside its calls, unlike an original that is calls alone."""
    if call_marks(reference) - call_marks(text):
        return None  # whoever looks at the markup says so
    around = text_around_calls(text, find_calls(text))
    if around != text_around_calls(reference, expected):
        return f"more than the call: {shortened(text.strip())}"
    if text.lstrip()[:1] in "{[" and reference.lstrip()[:1] not in "{[":
        return "the call is written as JSON, unlike the original's"
    return None


def _other_calls(answer: Answer, target: Target, expected: Sequence[Call]) -> str | None:
    """Return which of the original's calls an answer lacks, or which it makes besides."""
    found = _made_calls(answer.text, {call.name for call in expected})
    if not found:
        return f"no call, reference {shortened(expected[0].source)}"
    if len(found) >= MOST_CALLS:
        return None if answer.text.strip() == target.reference.strip() else f"{len(found)} calls or more"
    documentation = "\n".join(message["content"] for message in target.context)
    names = {call.name for call in expected}
    parameters = {name: documented_parameters(name, documentation) for name in names}
    unmatched = list(found)
    for call in expected:
        match = next((each for each in unmatched if call.same_as(each, parameters[call.name])), None)
        if match is None:
            return f"no {shortened(call.source)}"
        unmatched.remove(match)
    for call in unmatched:  # the same call again is not another call
        if not any(call.same_as(each, parameters[each.name]) for each in expected):
            return f"also {shortened(call.source)}"
    return None


def _made_calls(text: str, names: set[str]) -> list[Call]:
    """Return the calls that an answer makes: those in its code blocks, or without such blocks those in all of it."""
    in_blocks = [call for block in fenced_blocks(text) for call in find_calls(block.code)]
    if in_blocks:
        return in_blocks
    alone = {line.strip(" \t`*->;,.") for line in text.splitlines()} | set(re.findall(r"`([^`\n]+)`", text))
    return [call for call in find_calls(text) if call.name in names or _is_made(call, alone)]


def _is_made(call: Call, alone: set[str]) -> bool:
    """Say whether a call that nobody expects is one, and not prose in brackets such as "cup(s)" or "Paris (France)".

    ``close()`` is how one speaks of a function. Brackets behind a space, or around nothing but names, are a call where
    they have a line or backticks of their own.
    """
    if not call.positional and not call.keywords:
        return False
    if call.keywords or call.source in alone:
        return True
    only_names = all(isinstance(value, tuple) and value[:1] == ("expression",) for value in call.positional)
    return not only_names and not call.source.partition("(")[0].endswith(" ")
