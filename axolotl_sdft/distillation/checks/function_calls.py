"""The ``function_call`` check: the answer makes other calls than the original."""

from axolotl_sdft.distillation.checks.calls import Call, find_calls
from axolotl_sdft.distillation.checks.documented import documented_parameters
from axolotl_sdft.distillation.checks.fenced_code import fenced_blocks
from axolotl_sdft.distillation.interfaces import Answer, Target
from axolotl_sdft.distillation.texts import shortened


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
    documentation = "\n".join(message["content"] for message in target.context)
    parameters = {call.name: documented_parameters(call.name, documentation) for call in expected}
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
    """Return the calls that an answer makes: those in its code blocks, or without such blocks those in all of it.

    In prose, ``close()`` is how one speaks of a function, unless the original calls it so.
    """
    in_blocks = [call for block in fenced_blocks(text) for call in find_calls(block.code)]
    spoken = find_calls(text)
    return in_blocks or [call for call in spoken if call.positional or call.keywords or call.name in names]
