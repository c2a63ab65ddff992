"""Where Axolotl's dataset types keep the answers that are trained."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.core.errors import DatasetError, UnknownNameError
from axolotl_sdft.distillation.rows.formats import resolve_row_format

CHAT = {"type": "chat_template"}


def says(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def references(row: dict[str, Any], **config: Any) -> list[str]:
    row_format = resolve_row_format({**CHAT, **config})
    return [row_format.target(row, index).reference for index in range(row_format.num_targets(row))]


# --- one instruction, one answer ---


WRITE = "Write a response that appropriately completes the request."
TASK = f"Below is an instruction that describes a task. {WRITE}"
TASK_WITH_INPUT = (
    f"Below is an instruction that describes a task, paired with an input that provides further context. {WRITE}"
)
CONCISELY = (
    "Below is an instruction from a USER that describes a task. The ASSISTANT writes a response that appropriately and "
    "concisely completes the request."
)
FROM_CONTEXT = "Use the following contextual information to concisely answer the question."
CREATIVELY = (
    "Answer the following question in a comprehensive, in-depth, and creative way. Additionally your response should "
    "be relevant, accurate, and free of any ambiguity."
)


def test_an_alpaca_row_asks_with_its_preamble_its_instruction_and_its_input():
    target = resolve_row_format({"type": "alpaca"}).target(
        {"instruction": "Add.", "input": "2 and 3", "output": "5"}, 0
    )
    assert target.context == (says("system", TASK_WITH_INPUT), says("user", "Add.\n\n2 and 3"))
    assert target.reference == "5"


@pytest.mark.parametrize("row", [{}, {"input": ""}, {"input": None}])
def test_an_alpaca_row_does_without_an_input(row: dict[str, Any]):
    row_format = resolve_row_format({"type": "alpaca:chat"})
    context = row_format.target({"instruction": "Hi", "output": "Hello", **row}, 0).context
    assert context == (says("system", TASK), says("user", "Hi"))
    assert row_format.missing_columns(["instruction", "output"]) == []


@pytest.mark.parametrize(
    ("kind", "row", "context", "reference"),
    [
        ("alpaca_chat.load_no_prompt", {"instruction": "Q", "output": "A"}, ["Q"], "A"),
        ("alpaca_chat.load_qa", {"question": "Q", "answer": "A"}, [CONCISELY, "Q"], "A"),
        ("alpaca_chat.load_camel_ai", {"message_1": "Q", "message_2": "A"}, [CONCISELY, "Q"], "A"),
        ("alpaca_w_system", {"system": "S", "instruction": "Q", "output": "A"}, ["S", "Q"], "A"),
        ("alpaca_w_system.load_open_orca", {"system_prompt": "S", "question": "Q", "response": "A"}, ["S", "Q"], "A"),
        ("orcamini", {"system_prompt": "S", "question": "Q", "response": "A"}, ["S", "Q"], "A"),
        ("gpteacher:instruct", {"instruction": "Q", "input": "I", "response": "A"}, [TASK_WITH_INPUT, "Q\n\nI"], "A"),
        ("oasst", {"INSTRUCTION": "Q", "RESPONSE": "A"}, [TASK, "Q"], "A"),
        ("metharme", {"prompt": "<|system|>S<|user|>Q<|model|>", "generation": "A"}, ["S\n\nQ"], "A"),
        ("context_qa.load", {"article": "T", "question": "Q", "answer": "A"}, [FROM_CONTEXT, "T\n===\nQ"], "A"),
        ("context_qa.load_v2", {"context": "T", "question": "Q", "answer": "A"}, ["Context: T\nQuestion: Q"], "A"),
        ("creative_acr.load_answer", {"instruction": "Q", "revision": "A"}, [CREATIVELY, "Q"], "A"),
        (
            "summarizetldr:chat",
            {"article": "T", "summary": "A"},
            ["Summarize the following article as a TL;DR.\nT"],
            "A",
        ),
    ],
)
def test_each_instruction_type_asks_in_its_own_words(
    kind: str, row: dict[str, Any], context: list[str], reference: str
):
    row_format = resolve_row_format({"type": kind})
    target = row_format.target(row, 0)
    assert [message["content"] for message in target.context] == context
    assert target.reference == reference
    assert row_format.missing_columns(list(row)) == []
    assert len(row_format.missing_columns([])) >= 2


def test_a_style_that_axolotl_does_not_know_is_refused():
    with pytest.raises(DatasetError, match=r"type is 'alpaca:vicuna', but Axolotl knows the styles instruct, chat,"):
        resolve_row_format({"type": "alpaca:vicuna"})


def test_a_user_defined_type_reads_the_columns_it_names():
    fields = {"field_instruction": "q", "field_input": "more", "field_output": "a", "system_prompt": "Be kind."}
    row_format = resolve_row_format({"type": fields})
    assert row_format.missing_columns(["q"]) == ["a"]
    target = row_format.target({"q": "Why?", "more": "Really.", "a": "So."}, 0)
    assert [message["content"] for message in target.context] == ["Be kind.", "Why? Really."]
    own = row_format.target({"q": "Why?", "a": "So.", "system": "Be rude."}, 0)
    assert own.context[0] == {"role": "system", "content": "Be rude."}


@pytest.mark.parametrize(
    ("fields", "row", "context"),
    [
        (
            {"format": "Classify: {instruction}\nChoices: {input}\nLabel:"},
            {"input": "a, b"},
            ["Classify: Q\nChoices: a, b\nLabel:"],
        ),
        (
            {"format": "{instruction} / {input}", "no_input_format": "[INST] Shorten this.\n{instruction} [/INST]"},
            {"input": ""},
            ["Shorten this.\nQ"],
        ),
        (
            {"system_format": "<<SYS>>\nYou speak {system}.\n<</SYS>>\n\n", "no_input_format": "[INST] {instruction}"},
            {"system": "Danish"},
            ["You speak Danish.", "Q"],
        ),
        ({"system_format": ""}, {"system": "Danish"}, ["Q"]),
        (
            {
                "no_input_format": "<|im_start|>system\nTranslate.<|im_end|>\n"
                "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n"
            },
            {},
            ["Translate.\n\nQ"],
        ),
        ({"no_input_format": '{{"question": "{instruction}"}}'}, {}, ['{"question": "Q"}']),
        (
            {"no_input_format": "### Instruction:\n{instruction}\n\n### Response:\n"},
            {},
            ["### Instruction:\nQ\n\n### Response:"],
        ),
    ],
)
def test_a_user_defined_format_is_shown_without_its_control_tokens(fields, row, context):
    row_format = resolve_row_format({"type": fields})
    target = row_format.target({"instruction": "Q", "output": "A", **row}, 0)
    assert [message["content"] for message in target.context] == context


def test_what_looks_like_a_control_token_within_a_column_stays():
    row_format = resolve_row_format({"type": {"no_input_format": "<s>[INST] {instruction} [/INST]"}})
    target = row_format.target({"instruction": "What does <s> mean in HTML, and {this}?", "output": "Struck."}, 0)
    assert target.instruction == "What does <s> mean in HTML, and {this}?"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "{instruction} {question}"}, r"datasets\[1\]\.type\.format is .*can't be filled in \(KeyError"),
        (
            {"no_input_format": "{instruction} {input}"},
            r"type\.no_input_format is .*KeyError: 'input'.*may hold \{instr",
        ),
        ({"format": "{instruction"}, r"type\.format is .*ValueError.*a brace of its own is written twice"),
        ({"system_format": "{}"}, r"type\.system_format is '\{\}', which can't be filled in \(IndexError"),
        ({"format": "{instruction.real}"}, r"type\.format .*AttributeError"),
        ({"format": "{instruction[0]}"}, r"type\.format .*IndexError"),
        ({"format": "[INST] [/INST]"}, r"type\.format is .*which holds neither words nor \{instruction\} and \{input"),
        (
            {"no_input_format": "<|{instruction}|>"},
            r"type\.no_input_format .*whose words can't be told from its control tok",
        ),
        ({"format": 7}, r"type\.format is 7, which is not a text"),
        (
            {
                "format": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
                "<|im_start|>user\n{input}"
            },
            r"type\.format holds a turn of the assistant before the last question.*use type: chat_template",
        ),
    ],
)
def test_a_format_that_can_not_be_told_in_words_is_refused_by_its_key(fields, message):
    with pytest.raises(DatasetError, match=message):
        resolve_row_format({"type": fields}, "datasets[1]")


def test_a_number_in_a_question_becomes_text_as_in_axolotl():
    row_format = resolve_row_format({"type": {"no_input_format": "Is {instruction} prime?"}})
    assert row_format.target({"instruction": 7, "output": "Yes."}, 0).instruction == "Is 7 prime?"
    assert row_format.num_targets({"instruction": None, "output": "Yes."}) == 0


def test_an_answer_that_is_no_text_is_left_alone():
    assert resolve_row_format({"type": "alpaca"}).num_targets({"instruction": "Hi", "output": None}) == 0


texts = st.text(max_size=30)


@given(texts, texts, texts, st.integers())
def test_a_replaced_alpaca_answer_reads_back_and_changes_nothing_else(instruction: str, output: str, new: str, id: int):
    row_format = resolve_row_format({"type": "alpaca"})
    row = {"id": id, "instruction": instruction, "output": output}
    before = copy.deepcopy(row)
    replaced = row_format.with_answer(row, 0, new)
    assert row_format.target(replaced, 0).reference == new
    assert row == before
    assert {**replaced, "output": output} == before


def test_a_thinking_part_stays_in_front_of_the_answer():
    row_format = resolve_row_format({"type": "alpaca"})
    row = {"instruction": "2+2", "output": "<think>\nTwo pairs.\n</think>\n\n4"}
    assert row_format.target(row, 0).reference == "4"
    assert row_format.with_answer(row, 0, "It is 4.")["output"] == "<think>\nTwo pairs.\n</think>\n\nIt is 4."


# --- conversations ---

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
    assert (target.context, target.reference) == ((says("user", "Hi"),), "Hello.")


# --- types ---


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("completion", "running text.*prompt_field: prompt.*field_instruction: prompt, field_output: answer"),
        ("pretrain", "running text"),
        ("sharegpt.load_role", "type: chat_template, field_messages: conversations.*role: from, content: value"),
        ("creative_acr.load_critique", "scores and critiques"),
        ("chatml.intel", "compare answers"),
        ("bradley_terry.chat_template", "compare answers"),
        ("stepwise_supervised", "steps"),
        ("reflection:chat", "three columns"),
    ],
)
def test_a_type_with_nothing_to_rewrite_is_refused_with_the_reason(kind: str, reason: str):
    with pytest.raises(DatasetError, match=rf"datasets\[1\]\.type is '{kind}', which can't .*{reason}"):
        resolve_row_format({"type": kind}, "datasets[1]")


def test_an_unknown_type_is_refused_with_the_known_ones_named():
    with pytest.raises(UnknownNameError, match=r"datasets\[0\]\.type is 'alpacca'.*known: .*alpaca, .*chat_template"):
        resolve_row_format({"type": "alpacca"}, "datasets[0]")


def test_a_missing_type_is_refused():
    with pytest.raises(DatasetError, match=r"datasets\[0\]\.type is missing"):
        resolve_row_format({"path": "x"}, "datasets[0]")


def test_user_defined_needs_its_field_names():
    with pytest.raises(DatasetError, match="type is 'user_defined'; write the field names under it"):
        resolve_row_format({"type": "user_defined"})


# --- against Axolotl itself ---


@pytest.mark.parametrize(
    ("config", "row"),
    [
        ({"type": "alpaca_chat.load_qa"}, {"question": "Hi", "answer": "Hello."}),
        ({"type": "alpaca_w_system"}, {"system": "S", "instruction": "Hi", "output": "Hello."}),
        ({"type": "chat_template"}, {"messages": TWO_TURNS}),
        (
            {"type": "chat_template", "message_field_training": "train"},
            {
                "messages": [
                    says("user", "Hi"),
                    says("assistant", "No.", train=False),
                    says("user", "So?"),
                    says("assistant", "Yes."),
                ]
            },
        ),
    ],
)
def test_axolotl_trains_exactly_the_targets(smollm2_dir, config: dict[str, Any], row: dict[str, Any]):
    strategies = pytest.importorskip("axolotl.prompt_strategies")
    from axolotl.utils.dict import DictDefault
    from transformers import AutoTokenizer

    row_format = resolve_row_format(config)
    answers = [f"Entirely new answer {index}" for index in range(row_format.num_targets(row))]
    for index, answer in enumerate(answers):
        row = row_format.with_answer(row, index, answer)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    strategy = strategies.load(config["type"], tokenizer, DictDefault(sequence_len=512), DictDefault(config))
    trained = [token for token in strategy.tokenize_prompt(row)["labels"] if token != -100]
    spoken = tokenizer.decode(trained).replace("<|im_end|>", "\n").split("\n")
    assert [line for line in spoken if line] == answers
