"""The ``function_call`` check: the answer makes other calls than the original."""

import re

from axolotl_sdft.core.texts import shortened
from axolotl_sdft.distillation.checks.calls import MOST_CALLS, Call, find_calls
from axolotl_sdft.distillation.checks.documented import documented_parameters
from axolotl_sdft.distillation.checks.fenced_code import fenced_blocks
from axolotl_sdft.inference.interfaces import Answer, Target


def function_call(answer: Answer, target: Target) -> str | None:
    """Reject an answer without one of the original's function calls, or with another.

    Calls are parsed and compared by value, wherever they stand: in prose, in code, as JSON. Keyword arguments have no
    order; positional ones are matched to the parameters that the conversation documents, else to any keyword argument
    of the same value.
    """
    expected = find_calls(target.reference)
    if not expected:
        return "the reference holds no call"
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
    for call in unmatched:  # the same call again is no other call
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
