"""Answers in raw text, and what stands around an answer."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.distillation.rows.formats import resolve_row_format
from axolotl_sdft.inference.reasoning import framed_raw
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
