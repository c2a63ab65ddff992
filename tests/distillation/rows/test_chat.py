"""Where a conversation keeps the answers that are trained."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.distillation.rows.formats import resolve_row_format

CHAT = {"type": "chat_template"}


def says(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def references(row: dict[str, Any], **config: Any) -> list[str]:
    row_format = resolve_row_format({**CHAT, **config})
    return [row_format.target(row, index).reference for index in range(row_format.num_targets(row))]


TWO_TURNS = [says("user", "Hi"), says("assistant", "Hello."), says("user", "Bye"), says("assistant", "See you.")]


def test_each_assistant_turn_is_a_target_after_the_turns_before_it():
    row_format = resolve_row_format(CHAT)
    row = {"messages": TWO_TURNS}
    assert row_format.num_targets(row) == 2
    assert row_format.target(row, 0).context == (says("user", "Hi"),)
    assert row_format.target(row, 1).context == tuple(TWO_TURNS[:3])
    assert row_format.target(row, 1).reference == "See you."


def test_a_later_turn_sees_the_new_answer_of_an_earlier_one():
    row_format = resolve_row_format(CHAT)
    replaced = row_format.with_answer({"messages": TWO_TURNS}, 0, "Good day.")
    assert row_format.target(replaced, 1).context[1] == says("assistant", "Good day.")


def test_other_field_names_and_roles_are_followed():
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
    config = {"field_messages": "conversations", "message_property_mappings": {"role": "from", "content": "value"}}
    legacy = {"field_messages": "conversations", "message_field_role": "from", "message_field_content": "value"}
    for names in (config, legacy):
        assert references(row, **names) == ["Hello."]
        assert resolve_row_format({**CHAT, **names}).target(row, 0).context == (says("user", "Hi"),)
    assert references(row, **config, roles={"user": ["human"], "assistant": ["bot"]}) == []


def test_roles_to_train_without_the_assistant_leaves_nothing_to_rewrite():
    assert references({"messages": TWO_TURNS}, roles_to_train=["user"]) == []
    assert references({"messages": TWO_TURNS}, roles_to_train=["gpt"]) == ["Hello.", "See you."]
    assert references({"messages": TWO_TURNS}, roles_to_train=None) == ["Hello.", "See you."]


def test_a_message_that_says_whether_it_is_trained_has_the_last_word():
    first = [says("user", "Hi"), says("assistant", "Hello.", train=False)]
    second = [says("user", "Bye"), says("assistant", "See you.", train=True), says("user", "?"), says("assistant", "!")]
    row = {"messages": first + second}
    assert references(row, message_field_training="train") == ["See you.", "!"]
    assert references(row, message_field_training="train", roles_to_train=[]) == ["See you."]
    assert references(row) == ["Hello.", "See you.", "!"]


def test_a_turn_with_training_marks_inside_is_left_alone():
    marks = [{"begin_offset": 0, "end_offset": 2, "train": False}]
    row = {"messages": [says("user", "Hi"), says("assistant", "Hello.", marks=marks), *TWO_TURNS[2:]]}
    assert references(row, message_field_training_detail="marks") == ["See you."]


@pytest.mark.parametrize("content", [None, [{"type": "image", "url": "x.png"}], [], 7])
def test_a_turn_whose_content_is_no_text_is_left_alone(content: Any):
    assert references({"messages": [says("user", "Hi"), says("assistant", content)]}) == []


def test_a_turn_without_a_user_turn_right_before_it_is_left_alone():
    assert references({"messages": [says("assistant", "Welcome."), *TWO_TURNS]}) == ["Hello.", "See you."]
    assert references({"messages": [says("system", "S"), says("assistant", "Welcome.")]}) == []
    assert references({"messages": [*TWO_TURNS, says("assistant", "Still here?")]}) == ["Hello.", "See you."]


def test_turns_after_what_can_not_be_shown_as_text_are_left_alone():
    picture = says("user", [{"type": "image", "url": "x.png"}, {"type": "text", "text": "What is it?"}])
    for odd in (picture, says("narrator", "Meanwhile."), says("user", None)):
        assert references({"messages": [*TWO_TURNS[:2], odd, *TWO_TURNS[2:]]}) == ["Hello."]
    assert references({"messages": TWO_TURNS, "images": ["x.png"]}) == []


def test_an_answer_in_text_parts_is_joined_and_replaced_by_one_part():
    parts = [{"type": "text", "text": "Good "}, {"type": "text", "text": "day."}]
    row = {"messages": [says("user", "Hi"), says("assistant", parts)]}
    assert references(row) == ["Good day."]
    replaced = resolve_row_format(CHAT).with_answer(row, 0, "Hello.")
    assert replaced["messages"][1] == says("assistant", [{"type": "text", "text": "Hello."}])


@pytest.mark.parametrize("mark", [{"train": False}, {"train": True}, {"weight": 0}])
def test_an_answer_in_parts_that_say_whether_they_are_trained_is_left_alone(mark: dict[str, Any]):
    parts = [{"type": "text", "text": "Good "}, {"type": "text", "text": "day.", **mark}]
    assert references({"messages": [says("user", "Hi"), says("assistant", parts), *TWO_TURNS]}) == [
        "Hello.",
        "See you.",
    ]


def test_a_user_turn_made_of_text_parts_is_joined():
    row = {"messages": [says("user", [{"type": "text", "text": "Good "}, {"text": "day"}]), says("assistant", "Hi.")]}
    assert resolve_row_format(CHAT).target(row, 0).instruction == "Good day"


def test_a_system_column_opens_a_conversation_that_has_no_system_message():
    row = {"system": "Be brief.", "messages": TWO_TURNS}
    own = {"system": "Be brief.", "messages": [says("system", "Be long."), *TWO_TURNS]}
    row_format = resolve_row_format(CHAT)
    assert row_format.target(row, 0).context == (says("system", "Be brief."), says("user", "Hi"))
    assert row_format.target(own, 0).context == (says("system", "Be long."), says("user", "Hi"))
    for either in (row, own):
        dropped = resolve_row_format({**CHAT, "drop_system_message": True}).target(either, 0)
        assert dropped.context == (says("user", "Hi"),)


def test_messages_that_are_json_text_stay_json_text():
    row_format = resolve_row_format(CHAT)
    row = {"messages": json.dumps(TWO_TURNS)}
    replaced = row_format.with_answer(row, 1, "Tschüß.")
    assert json.loads(replaced["messages"]) == [*TWO_TURNS[:3], says("assistant", "Tschüß.")]
    assert row_format.target(replaced, 1).reference == "Tschüß."


def test_messages_that_are_broken_json_are_refused():
    with pytest.raises(
        DatasetError, match=r"column 'messages' holds a text that is not JSON .*'hello'.*field_messages"
    ):
        resolve_row_format(CHAT).num_targets({"messages": "hello"})


def test_a_conversation_without_messages_has_no_target():
    for value in (None, [], {}, ["hello"]):
        assert references({"messages": value}) == []
    assert resolve_row_format(CHAT).missing_columns(["conversations"]) == ["messages"]


texts = st.text(max_size=30)

message = st.builds(
    says,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.text(max_size=5) | st.none(),
    train=st.booleans() | st.none(),
)


@given(st.lists(message, max_size=8), texts, st.booleans())
def test_a_replaced_turn_reads_back_and_changes_nothing_else(messages: list[dict[str, Any]], new: str, is_json: bool):
    row_format = resolve_row_format({**CHAT, "message_field_training": "train"})
    row: dict[str, Any] = {"id": 3, "messages": json.dumps(messages) if is_json else messages}
    before, count = copy.deepcopy(row), row_format.num_targets(row)
    for index in range(count):
        replaced = row_format.with_answer(row, index, new)
        assert row_format.num_targets(replaced) == count
        assert row_format.target(replaced, index).reference == new
        assert row_format.with_answer(replaced, index, row_format.target(row, index).reference) == before
        assert row == before


@pytest.mark.parametrize(("kind", "role", "assistant"), [("llama2_chat", "from", "gpt"), ("pygmalion", "role", "bot")])
def test_older_chat_types_have_fixed_names(kind: str, role: str, assistant: str):
    row = {"conversations": [{role: "human", "value": "Hi"}, {role: assistant, "value": "Hello."}]}
    target = resolve_row_format({"type": kind}).target(row, 0)
    assert (target.context[-1], target.reference) == (says("user", "Hi"), "Hello.")


def test_the_system_message_of_an_older_chat_type_is_shown_as_it_is_trained():
    turns = [{"role": "human", "value": "Hi"}, {"role": "bot", "value": "Hello."}]
    pygmalion = resolve_row_format({"type": "pygmalion"})
    assert pygmalion.target({"conversations": turns}, 0).context == (says("user", "Hi"),)
    persona = {"conversations": [{"role": "system", "value": "A pirate."}, *turns]}
    assert pygmalion.target(persona, 0).context[0] == says("system", "Persona: A pirate.")
    llama2 = resolve_row_format({"type": "llama2_chat"})
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    own = {"conversations": [{"from": "system", "value": "Be brief."}, *turns]}
    assert llama2.target(own, 0).context[0] == says("system", "Be brief.")
    default = llama2.target({"conversations": turns}, 0).context[0]
    assert default["role"] == "system"
    assert default["content"].startswith("You are a helpful, respectful and honest assistant.")
