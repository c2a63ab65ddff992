"""Calls in the markup that agents parse: where an answer makes one, and when a rewritten answer lost or gained it."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.inference.call_markup import call_marks, is_call_token, markup_fault

TIDE = '{"name": "tide", "arguments": {"port": "Brest"}}'

CALLS = [
    f"<tool_call>\n{TIDE}\n</tool_call>",
    f"Let me look that up. <tool_call>{TIDE}</tool_call>",
    f"[TOOL_CALLS] [{TIDE}]",
    f"<|python_tag|>{TIDE}",
    '<function=tide>{"port": "Brest"}</function>',
    "<tool_call>\n<function=tide>\n<parameter=port>\nBrest\n</parameter>\n</function>\n</tool_call>",
    f"<|tool_call|>[{TIDE}]",
    f"<TOOLCALL>[{TIDE}]</TOOLCALL>",
    f"<functioncall> {TIDE}",
    "<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>function<\uff5ctool\u2581sep\uff5c>tide",
    '<|tool_calls_section_begin|><|tool_call_begin|>functions.tide:0<|tool_call_argument_begin|>{"port": "Brest"}',
    '<function_calls>\n<invoke name="tide">\n<parameter name="port">Brest</parameter>\n</invoke>\n</function_calls>',
    '<steptml:toolcall><steptml:invoke name="tide"><port>Brest</port></steptml:invoke></steptml:toolcall>',
    '\u273fFUNCTION\u273f: tide\n\u273fARGS\u273f: {"port": "Brest"}',
    "<start_function_call>call:tide{port:Brest}<end_function_call>",
    '<|channel|>commentary to=functions.tide <|constrain|>json<|message|>{"port": "Brest"}<|call|>',
    '>>>tide\n{"port": "Brest"}',
    "<seed:tool_call><function=tide><parameter=port>Brest</parameter></function></seed:tool_call>",
    '<|tool_call_start|>[tide(port="Brest")]<|tool_call_end|>',
    f"<|START_ACTION|>[{TIDE}]<|END_ACTION|>",
    '```tool_code\nprint(tide(port="Brest"))\n```',
    "Thought: I need the table.\nAction: tide\nAction Input: Brest",
    f"functools[{TIDE}]",
    TIDE,
    f"[{TIDE}, {TIDE}]",
    f"{TIDE}; {TIDE}",
    '{"type": "function", "function": {"name": "tide", "parameters": {"port": "Brest"}}}',
    '[tide(port="Brest"), now()]',
]
NO_CALLS = [
    "",
    "High water is at noon.",
    'Call tide(port="Brest") for it.',
    'tide(port="Brest")',
    f"```json\n{TIDE}\n```",
    "A model writes `<tool_call>` before its JSON.",
    'It starts with "[TOOL_CALLS]".',
    "List<ToolCall> calls = new ArrayList<>();",
    ">>> tide\n[1, 2]",
    '{"name": "Ann", "age": 7}',
    '{"name": "Ann", "parameters": 3}',
    '{"name": "tide", "parameters": {"type": "object", "properties": {"port": {"type": "string"}}}}',
    "[1, 2]",
    "[]",
    "[len(x)]",
    "[max(1, 2), x]",
    "Action: stop here.\nThe input follows.",
]


@pytest.mark.parametrize("text", CALLS)
def test_a_call_in_the_markup_of_an_agent_has_marks(text):
    assert call_marks(text)


@pytest.mark.parametrize("text", NO_CALLS)
def test_a_text_that_calls_nothing_or_only_speaks_of_it_has_none(text):
    assert not call_marks(text)


@pytest.mark.parametrize("text", CALLS)
def test_an_answer_that_lost_the_markup_is_told_from_one_that_kept_it(text):
    assert markup_fault(text, text) is None
    assert markup_fault('tide(port="Brest")', text).startswith("no ")
    assert markup_fault(f"```json\n{TIDE}\n```", text).startswith("no ")


@pytest.mark.parametrize("text", CALLS)
def test_an_answer_that_calls_where_the_original_did_not_is_found(text):
    assert markup_fault(text, "High water is at noon.").startswith("makes a call")


def test_every_mark_must_be_there_as_often_as_in_the_original():
    both = f"<tool_call>{TIDE}</tool_call><tool_call>{TIDE}</tool_call>"
    assert markup_fault(f"<tool_call>{TIDE}</tool_call>", both) == "no <tool_call>, in which the original's call stands"
    assert markup_fault(f"<tool_call>{TIDE}", f"<tool_call>{TIDE}</tool_call>").startswith("no </tool_call>")
    assert markup_fault(f"I call it. {both}", f"<tool_call>{TIDE}</tool_call>") is None


def test_what_stood_between_the_marks_as_json_must_stay_json():
    spoken = '<tool_call>tide(port="Brest")</tool_call>'
    assert "not JSON" in markup_fault(spoken, f"<tool_call>{TIDE}</tool_call>")
    assert markup_fault(spoken, spoken) is None


def test_texts_without_calls_have_no_fault():
    assert markup_fault("At noon.", "High water is at noon.") is None


def test_tokens_that_mark_calls_are_known():
    assert all(map(is_call_token, ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>")))
    assert not any(map(is_call_token, ("<|im_end|>", "</s>", "tool", "<|tool_response|>")))


@given(st.text(st.sampled_from('<>[]{}|"`: \nAaction tool_call(=)'), max_size=60))
def test_any_text_can_be_read_and_has_no_fault_beside_itself(text):
    assert markup_fault(text, text) is None


@pytest.mark.parametrize("piece", ["<tool", "[", "{", '{"a":', "Action:\n", "<|", "[f(", ">>>a\n", "to=functions."])
def test_long_texts_are_read_in_linear_time(piece):
    started = time.monotonic()
    call_marks(piece * (100_000 // len(piece)))
    assert time.monotonic() - started < 60  # a quadratic reading takes many minutes
