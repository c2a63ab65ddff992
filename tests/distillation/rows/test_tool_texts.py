"""What of a conversation with functions is rewritten, and how the seed model is shown the rest."""

import json
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.distillation.rows.formats import resolve_row_format
from axolotl_sdft.distillation.rows.message_texts import described_calls
from tests.distillation.rows.test_chat import CHAT, TWO_TURNS, references, says

ROME = {"name": "weather", "arguments": {"city": "Rome", "unit": None}}
CALL = [{"id": "1", "type": "function", "function": ROME}]
EXCHANGE = [
    says("user", "How warm is it in Rome?"),
    says("assistant", "I look.", tool_calls=CALL),
    says("tool", "21 C", name="weather"),
]


def test_the_answer_to_the_result_of_a_call_is_rewritten_with_the_call_and_the_result_in_sight():
    row = {"messages": [*EXCHANGE, says("assistant", "21 degrees."), *TWO_TURNS[2:]]}
    row_format = resolve_row_format(CHAT)
    assert references(row) == ["21 degrees.", "See you."]
    shown = 'How warm is it in Rome?\n\nI look.\nFunction call: weather({"city": "Rome"})\n\nResult of weather: 21 C'
    assert row_format.target(row, 0).context == (says("user", shown),)
    assert [message["role"] for message in row_format.target(row, 1).context] == ["user", "assistant", "user"]
    assert row_format.with_answer(row, 0, "It is warm.")["messages"][:3] == EXCHANGE


def test_a_turn_that_calls_functions_is_left_alone():
    assert references({"messages": EXCHANGE}) == []
    assert references({"messages": [*TWO_TURNS[:2], says("user", "?"), EXCHANGE[1]]}) == ["Hello."]


@pytest.mark.parametrize("as_json", [False, True])
def test_the_functions_of_a_row_join_its_system_message(as_json: bool):
    tools: Any = [{"type": "function", "function": {"name": "weather", "description": None}}]
    row = {"messages": TWO_TURNS[:2], "tools": json.dumps(tools) if as_json else tools}
    described = 'These functions can be called:\n{"type": "function", "function": {"name": "weather"}}'
    row_format = resolve_row_format(CHAT)
    assert row_format.target(row, 0).context == (says("system", described), says("user", "Hi"))
    own = row_format.target({**row, "messages": [says("system", "Be brief."), *TWO_TURNS[:2]]}, 0)
    assert own.context[0] == says("system", f"Be brief.\n\n{described}")


def test_tools_that_are_broken_json_are_refused():
    row = {"messages": TWO_TURNS, "functions": "weather()"}
    row_format = resolve_row_format({**CHAT, "field_tools": "functions"})
    with pytest.raises(DatasetError, match=r"column 'functions' holds a text that is not JSON .*list of functions"):
        row_format.target(row, 0)


def test_what_a_call_holds_is_shown_in_the_same_words_in_every_run():
    shown = described_calls([{"name": "book", "arguments": {"on": date(2026, 5, 1), "at": Decimal("9.50")}}], "")
    assert shown == 'Function call: book({"on": "2026-05-01", "at": "9.50"})'
    with pytest.raises(DatasetError, match=r"can't be shown as text: a builtins\.object has no plain form"):
        described_calls([{"name": "book", "arguments": {"on": object()}}], "")
