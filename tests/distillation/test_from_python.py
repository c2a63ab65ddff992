"""What ``distill_dataset`` does for people who know TRL's columns and none of Axolotl's words."""

import pytest
from datasets import Dataset

from axolotl_sdft import SelfDistillationConfig, distill_dataset
from tests.distillation.echo_backend import EchoBackend

pytestmark = pytest.mark.usefixtures("echo_plugin")


def config(tmp_path, **settings):
    settings = {"template": "plain", "checks": (), "generation": {"backend": "echo"}} | settings
    return SelfDistillationConfig(output_dir=str(tmp_path / "out"), **settings)


def said(role, content):
    return {"role": role, "content": content}


def test_prompt_and_completion_as_texts_need_no_dataset_config(tmp_path, seed_dir):
    rows = Dataset.from_list([{"prompt": "Question 4", "completion": "Answer 4"}])
    distilled = distill_dataset(rows, config(tmp_path), seed_model=seed_dir)
    assert distilled["prompt"] == ["Question 4"]
    assert distilled["completion"] == ["1 messages, the last ends in 4"]


def test_of_prompt_and_completion_as_messages_the_completion_alone_is_rewritten(tmp_path, seed_dir):
    prompt = [said("user", "first 1"), said("assistant", "one 1"), said("user", "second 2")]
    rows = Dataset.from_list([{"prompt": prompt, "completion": [said("assistant", "two 2")], "id": 9}])

    distilled = distill_dataset(rows, config(tmp_path), seed_model=seed_dir)

    assert distilled.features["completion"] == rows.features["completion"]
    assert distilled[0]["prompt"] == prompt
    assert distilled[0]["completion"] == [said("assistant", "3 messages, the last ends in 2")]
    assert distilled[0]["sdft_reasons"] == [""]


def test_rejected_attempts_are_a_column_on_request(tmp_path, seed_dir):
    rows = Dataset.from_list([{"prompt": f"Question {n}", "completion": f"Answer {n}"} for n in (6, 7, 8)])
    settings = config(tmp_path, checks=("no_seven",), max_attempts=2)

    distilled = distill_dataset(rows, settings, seed_model=seed_dir, rejected_attempts=True)

    assert distilled["sdft_source"] == ["distilled", "original", "distilled"]
    assert [len(row) for row in distilled["sdft_rejected"]] == [0, 2, 0]
    assert distilled[1]["sdft_rejected"][0] == {
        "answer": 0,
        "attempt": 0,
        "text": "1 messages, the last ends in 7",
        "check": "no_seven",
        "reason": "holds 7",
    }
    assert "sdft_rejected" not in distill_dataset(rows, settings, seed_model=seed_dir).column_names


def test_rows_that_were_dropped_have_no_rejected_attempts_in_the_column(tmp_path, seed_dir):
    rows = Dataset.from_list([{"prompt": f"Question {n}", "completion": f"Answer {n}"} for n in (7, 8)])
    settings = config(tmp_path, checks=("no_seven",), on_reject="drop")
    distilled = distill_dataset(rows, settings, seed_model=seed_dir, rejected_attempts=True)
    assert distilled["prompt"] == ["Question 8"]
    assert distilled["sdft_rejected"] == [[]]


def test_rows_that_were_rewritten_before_are_warned_of(tmp_path, seed_dir, caplog):
    rows = Dataset.from_list([{"prompt": "Question 4", "completion": "Answer 4"}])
    once = distill_dataset(rows, config(tmp_path), seed_model=seed_dir)
    assert "rewritten before" not in caplog.text
    distill_dataset(once, config(tmp_path), seed_model=seed_dir)
    assert "dataset: its answers were rewritten before (column sdft_source)" in caplog.text
    assert "rewrite the original rows instead" in caplog.text


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(tmp_path, seed_dir, caplog, monkeypatch):
    def stopped(self, prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr(EchoBackend, "answer", stopped)
    rows = Dataset.from_list([{"prompt": "Question 4", "completion": "Answer 4"}])
    with pytest.raises(KeyboardInterrupt):
        distill_dataset(rows, config(tmp_path), seed_model=seed_dir)
    kept = next(tmp_path.glob("out/answers-*"))
    assert f"stopped: all answers that are there are kept in {kept}. To go on, start the same command" in caplog.text
