"""Reads from a conversation which parameters a function has, and in which order."""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_HEADING = re.compile(r"\b(?:parameters|arguments|args)\b[^\n]*\n", re.IGNORECASE)
_ITEM = re.compile(r"\s*(?:(?P<number>\d+)[.)]|[-*\u2022])\s*[`*]*(?P<name>[A-Za-z_]\w*)")
_SECTION = re.compile(r"\s*\W*(?:required|returns?|format|function|examples?)\b[^\n]{0,20}:", re.IGNORECASE)
_JSON_BEGIN = re.compile(r"\{\s*\"|\[\s*[{\[]")
_MOST_JSON = 200  # brackets that might begin JSON
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
    while (begin := _JSON_BEGIN.search(text, place)) and num_tries < _MOST_JSON:
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
