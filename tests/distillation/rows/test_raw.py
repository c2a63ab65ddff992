"""Answers in raw text, and what stands around an answer."""

import re
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.distillation.rows.formats import resolve_row_format
from axolotl_sdft.inference.reasoning import framed_raw, plain
from tests.distillation.rows.test_formats import says, texts


def segments(*pieces: tuple[bool, str]) -> dict[str, Any]:
    return {"segments": [{"label": label, "text": text} for label, text in pieces]}


RAW = segments(
    (False, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
    (True, "Hello.<|im_end|>"),
    (False, "\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"),
    (True, "See "),
    (True, "you.<|im_end|>\n"),
)


def test_trained_segments_are_answers_to_the_plain_text_before_them():
    row_format = resolve_row_format({"type": "input_output"})
    assert row_format.num_targets(RAW) == 2
    first, second = row_format.target(RAW, 0), row_format.target(RAW, 1)
    assert (first.context, first.reference) == ((says("user", "Be brief.\n\nHi"),), "Hello.")
    assert (second.context, second.reference) == ((says("user", "Be brief.\n\nHi\n\nHello.\n\nBye"),), "See you.")
    assert row_format.missing_columns(["text"]) == ["segments"]


def test_a_new_answer_stands_between_the_control_tokens_of_the_old_one():
    replaced = resolve_row_format({"type": "input_output"}).with_answer(RAW, 1, "Farewell.")
    texts = [segment["text"] for segment in replaced["segments"]]
    assert texts[:3] == [segment["text"] for segment in RAW["segments"][:3]]
    assert texts[3:] == ["Farewell.<|im_end|>\n", ""]


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nWhy? [/INST]", "Be kind.\n\nWhy?"),
        ("<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n", "Why?"),
        ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>", "Why?"),
        (
            "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n"
            "<|start_of_role|>user<|end_of_role|>Why?<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
            "Be brief.\n\nWhy?",
        ),
        ("<|header_start|>user<|header_end|>\n\nWhy?<|eot|><|header_start|>assistant<|header_end|>\n\n", "Why?"),
        ("<|im_user|>user<|im_middle|>Why?<|im_end|><|im_assistant|>assistant<|im_middle|>", "Why?"),
        ("<|start|>user<|message|>Why?<|end|><|start|>assistant<|channel|>final<|message|>", "Why?"),
        ("<bos><|turn>user\nWhy?<turn|>\n<|turn>model\n", "Why?"),
        ("[|user|]Why?\n[|assistant|]", "Why?"),
        ("[gMASK]<sop><|user|>\nWhy?<|assistant|>\n", "Why?"),
        ("<|begin_turn|>user<|body|>Why?<|end_turn|><|begin_turn|>assistant<|body|>", "Why?"),
        ("### Question:\nIs a < b?\n### Answer:\n", "### Question:\nIs a < b?\n### Answer:"),
    ],
)
def test_the_marks_of_chat_templates_are_taken_out_of_what_is_shown(prompt: str, shown: str):
    row = segments((False, prompt), (True, " Because.</s>"))
    row_format = resolve_row_format({"type": "input_output"})
    assert row_format.target(row, 0).instruction == shown
    assert row_format.with_answer(row, 0, "So.")["segments"][1]["text"] == " So.</s>"


@pytest.mark.parametrize(
    "row",
    [
        segments((True, "Once upon a time.")),
        segments((False, "<s>"), (True, "Once upon a time.")),
        segments((False, "Only a question?")),
        {"segments": None},
        {"segments": [{"label": True, "text": None}]},
    ],
)
def test_segments_without_a_prompt_or_an_answer_are_left_alone(row: dict[str, Any]):
    assert resolve_row_format({"type": "input_output"}).num_targets(row) == 0


def test_a_completion_with_a_prompt_column_is_rewritten_after_its_prompt():
    row_format = resolve_row_format({"type": "completion", "field": "story", "prompt_field": "start"})
    row = {"start": "[INST] Hi [/INST]", "story": "[INST] Hi [/INST] Hello.</s>"}
    target = row_format.target(row, 0)
    assert (target.instruction, target.reference) == ("Hi", "Hello.")
    assert row_format.with_answer(row, 0, "Good day.") == {**row, "story": "[INST] Hi [/INST] Good day.</s>"}
    assert row_format.missing_columns(["story"]) == ["start"]
    for story in ("Another text.", row["start"], None):
        assert row_format.num_targets({**row, "story": story}) == 0


@given(texts.map(str.strip), st.sampled_from(["", " ", "<s> ", "<think>Hm.</think>\n"]), st.sampled_from(["", "</s>"]))
def test_what_stands_around_an_answer_stays(text: str, before: str, after: str):
    frame = framed_raw(f"{before}{text}{after}")
    assert "".join(frame) == f"{before}{text}{after}"
    if re.fullmatch(r"\w.*\w", text):
        assert frame == (before, text, after)


def test_the_markers_of_a_solution_stay_around_it():
    thought = "<|begin_of_thought|>Hm.<|end_of_thought|>\n\n"
    answer = f"{thought}<|begin_of_solution|>Four.<|end_of_solution|>"
    row_format, row = resolve_row_format({"type": "alpaca"}), {"instruction": "2+2", "output": answer}
    assert row_format.target(row, 0).reference == "Four."
    assert row_format.with_answer(row, 0, "4.")["output"] == answer.replace("Four.", "4.")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<|start_of_role|>assistant<|end_of_role|>", "<|end_of_text|>\n"),
        ("<|header_start|>assistant<|header_end|>\n\n", "<|eot|>"),
        ("<|im_assistant|>assistant<|im_middle|>", "<|im_end|>"),
        ("<|start|>assistant<|channel|>final<|message|>", "<|return|>"),
        ("<|start|>assistant<|message|>", "<|end|>"),
        ("<|turn>model\n", "<turn|>\n"),
        ("[|assistant|]", "[|endofturn|]\n"),
    ],
)
def test_the_header_and_the_end_of_a_turn_stay_around_its_answer(before: str, after: str):
    assert framed_raw(f"{before}Because.{after}") == (before, "Because.", after)


@pytest.mark.parametrize(
    "call", ["<|tool_call|>[{}]", "<|python_tag|>f(x)", "<|start|>assistant to=functions.f<|message|>{}"]
)
def test_raw_text_that_calls_a_function_is_left_alone(call: str):
    row_format = replace(resolve_row_format({"type": "input_output"}), leaves_calls=True)
    [why] = row_format.left_alone(segments((False, "Why?"), (True, call)))
    assert why.reason == "calls a function, written as text"


BLANKS = " " * 50_000


@pytest.mark.parametrize(
    "text",
    [
        f"<s>[INST] A table:{BLANKS}total [/INST]",
        f"<|start_header_id|>{BLANKS}user",
        f"Five.{BLANKS}Six.</s>{BLANKS}",
        f"A table:{BLANKS}total</think>{BLANKS}Five.",
        f"<answer>A table:{BLANKS}total</answer>",
    ],
)
def test_a_run_of_blanks_takes_no_longer_than_other_text(text: str):
    started = time.process_time()
    plain(text)
    assert "".join(framed_raw(text)) == text
    assert time.process_time() - started < 1  # quadratic time would be minutes
