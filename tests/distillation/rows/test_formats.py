"""Where Axolotl's dataset types keep the answers that are trained."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.core.errors import DatasetError, UnknownNameError
from axolotl_sdft.distillation.rows.formats import resolve_row_format
from tests.distillation.rows.test_chat import says

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
        *(
            ({"format": f"{ask}Hi{answer}Hello{ask}{{input}}"}, r"type\.format holds a turn of the assistant before")
            for ask, answer in (
                ("<|start_of_role|>user<|end_of_role|>", "<|start_of_role|>assistant<|end_of_role|>"),
                ("<|im_user|>user<|im_middle|>", "<|im_assistant|>assistant<|im_middle|>"),
                ("<|start|>user<|message|>", "<|start|>assistant<|channel|>final<|message|>"),
                ("<|turn>user\n", "<|turn>model\n"),
                ("[|user|]", "[|assistant|]"),
            )
        ),
        ({"no_input_format": "[|{instruction}"}, r"type\.no_input_format .*whose words can't be told from its control"),
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


@given(texts, texts, texts.map(str.strip), st.integers())
def test_a_replaced_alpaca_answer_reads_back_and_changes_nothing_else(instruction: str, output: str, new: str, id: int):
    row_format = resolve_row_format({"type": "alpaca"})
    row = {"id": id, "instruction": instruction, "output": output}
    before = copy.deepcopy(row)
    replaced = row_format.with_answer(row, 0, new)
    assert row_format.target(replaced, 0).reference == new
    assert row == before
    assert {**replaced, "output": output} == before


@pytest.mark.parametrize(
    ("output", "shown", "replaced"),
    [
        (" blue.", "blue.", " NEW"),
        ("    return 2 * x\n", "return 2 * x", "    NEW\n"),
        (" Because.<|im_end|>\n", "Because.", " NEW<|im_end|>\n"),
        ("Because.</s>", "Because.", "NEW</s>"),
        (
            "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>So.<|END_RESPONSE|>",
            *("So.", "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>NEW<|END_RESPONSE|>"),
        ),
    ],
)
@pytest.mark.parametrize("kind", ["alpaca", "metharme", {"field_instruction": "instruction", "field_output": "output"}])
def test_space_and_end_of_turn_tokens_around_an_answer_stay(kind, output: str, shown: str, replaced: str):
    row_format = resolve_row_format({"type": kind})
    row = {"instruction": "Why?", "prompt": "Why?", row_format.output: output}
    assert row_format.target(row, 0).reference == shown
    assert row_format.with_answer(row, 0, "NEW")[row_format.output] == replaced


def test_an_answer_that_ends_within_its_thinking_part_is_left_alone():
    row_format = resolve_row_format({"type": "alpaca"})
    for thought in ("<think>Hm.", " <|START_THINKING|>Hm.", "<|channel|>analysis<|message|>Hm."):
        [why] = row_format.left_alone({"instruction": "Why?", "output": thought})
        assert why.reason == "its thinking part has no end"


def test_a_thinking_part_stays_in_front_of_the_answer():
    row_format = resolve_row_format({"type": "alpaca"})
    row = {"instruction": "2+2", "output": "<think>\nTwo pairs.\n</think>\n\n4"}
    assert row_format.target(row, 0).reference == "4"
    assert row_format.with_answer(row, 0, "It is 4.")["output"] == "<think>\nTwo pairs.\n</think>\n\nIt is 4."


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
        ({"type": "chat_template"}, {"messages": [says("user", "Hi"), says("assistant", "Hello.")] * 2}),
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
def test_axolotl_trains_exactly_the_targets(tokenizer_dir, config: dict[str, Any], row: dict[str, Any]):
    strategies = pytest.importorskip("axolotl.prompt_strategies")
    from axolotl.utils.dict import DictDefault
    from transformers import AutoTokenizer

    row_format = resolve_row_format(config)
    answers = [f"Entirely new answer {index}" for index in range(row_format.num_targets(row))]
    for index, answer in enumerate(answers):
        row = row_format.with_answer(row, index, answer)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    strategy = strategies.load(config["type"], tokenizer, DictDefault(sequence_len=512), DictDefault(config))
    trained = [token for token in strategy.tokenize_prompt(row)["labels"] if token != -100]
    spoken = tokenizer.decode(trained).replace("<|im_end|>", "\n").split("\n")
    assert [line for line in spoken if line] == answers
