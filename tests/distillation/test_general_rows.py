"""Rows from outside the task: general prompts with the seed model's own answers."""

import logging

import pytest
from datasets import Dataset

from axolotl_sdft import SelfDistillationConfig, distill_dataset, distill_general_rows
from axolotl_sdft.config import GeneralPromptsConfig
from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.distillation.general_rows import NO_REFERENCE, answering
from axolotl_sdft.evaluation.spec import general_prompts as measured_prompts
from axolotl_sdft.inference.interfaces import Answer
from axolotl_sdft.pruning.general_answers import calibration_prompts
from tests.distillation import echo_backend

pytestmark = pytest.mark.usefixtures("echo_plugin")


def config(tmp_path, **settings):
    settings = {"general_rows": 3, "generation": {"backend": "echo"}} | settings
    return SelfDistillationConfig(output_dir=str(tmp_path / "out"), **settings)


def test_the_first_prompts_of_the_package_are_answered_as_they_stand(tmp_path, seed_dir):
    rows = distill_general_rows(config(tmp_path), seed_model=seed_dir)

    for row, prompt in zip(rows, calibration_prompts()[:3], strict=True):
        assert row["messages"] == [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": f"1 messages, the last ends in {prompt.split()[-1]}"},
        ]


def test_no_prompt_is_one_that_the_recovery_report_measures_on():
    assert set(calibration_prompts()).isdisjoint(measured_prompts(GeneralPromptsConfig()))


def test_a_prompt_without_a_good_answer_is_left_out(tmp_path, seed_dir, monkeypatch):
    first, second, third = calibration_prompts()[:3]
    cut_off = Answer("and so on, and", "length", 4)
    said = {first: [Answer("Fine.", "stop", 2)], second: [cut_off], third: [Answer("", "stop", 0)]}
    monkeypatch.setattr(
        echo_backend.AskedBackend,
        "answer",
        lambda self, prompt: said[prompt.messages[-1]["content"]][prompt.attempt],
    )

    asked_once = config(tmp_path, generation={"backend": "asked"}, max_attempts=1)
    rows = distill_general_rows(asked_once, seed_model=seed_dir)

    assert [row["messages"][1]["content"] for row in rows] == ["Fine."]
    assert NO_REFERENCE not in str(rows[:])


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            Answer("and so on, and", "length", 4),
            r"all 3 rows were rejected \(truncated 3\) and .*raise .*max_new_tokens;",
        ),
        (Answer("", "stop", 0), "the seed model answered none of 3 prompts"),
    ],
)
def test_where_no_answer_is_good_the_ways_out_are_those_of_such_rows(tmp_path, seed_dir, monkeypatch, answer, told):
    monkeypatch.setattr(echo_backend.AskedBackend, "answer", lambda self, prompt: answer)
    asked_once = config(tmp_path, generation={"backend": "asked"}, max_attempts=1)
    with pytest.raises(DatasetError, match=rf"general_rows: {told}.*remove general_rows") as caught:
        distill_general_rows(asked_once, seed_model=seed_dir)
    assert "on_reject" not in str(caught.value)
    assert "entry of datasets" not in str(caught.value)


def test_what_is_for_the_task_alone_does_not_count(tmp_path, seed_dir):
    plain = distill_general_rows(config(tmp_path), seed_model=seed_dir)
    task = {
        "template": "reference",
        "checks": ["no_seven", "length_ratio"],
        "answer_prefix": "Well,",
        "examples": [{"instruction": "a", "reference": "b", "answer": "c"}],
        "on_reject": "original",
    }

    assert distill_general_rows(config(tmp_path, **task), seed_model=seed_dir)[:] == plain[:]


@pytest.mark.parametrize(("of_the_task", "room"), [(64, 256), (700, 700)])
def test_general_answers_have_room_for_256_tokens_or_more(of_the_task, room):
    settings = SelfDistillationConfig(general_rows=1, generation={"max_new_tokens": of_the_task})

    assert answering(settings).generation.max_new_tokens == room


def test_no_rows_are_nothing_to_ask_for(tmp_path, seed_dir):
    with pytest.raises(DatasetError, match=r"self_distillation.general_rows has no rows"):
        distill_general_rows(config(tmp_path, general_rows=0), seed_model=seed_dir)


def test_distilling_a_dataset_says_that_it_adds_none(tmp_path, seed_dir, caplog):
    rows = Dataset.from_list([{"prompt": "Question 4", "completion": "Answer 4"}])

    with caplog.at_level(logging.WARNING):
        distilled = distill_dataset(rows, config(tmp_path), seed_model=seed_dir)

    assert len(distilled) == 1
    assert "general_rows is 3, but distill_dataset returns the rows of its dataset alone" in caplog.text
