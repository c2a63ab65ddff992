import json

import pytest
from datasets import Dataset

from axolotl_sdft.distillation.output.unchecked import UncheckedResults, unchecked_sentences
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.spec import DistillationSpec
from axolotl_sdft.inference.interfaces import Answer, Target
from tests.distillation.echo_backend import SCRIPT
from tests.distillation.test_pipeline import echo_config


def pair(answer: str, original: str) -> tuple[Answer, Target]:
    return Answer(answer, "stop", 1), Target(({"role": "user", "content": "Well?"},), original)


@pytest.mark.parametrize(
    ("answer", "original", "told"),
    [
        ("So it is 16.", "48 + 24 = 72. The answer is 72.", "numeric_answer would reject it: answer 16, reference 72"),
        ("So it is 72.", "48 + 24 = 72. The answer is 72.", ""),
        ("I can't say.", "#### 72", "numeric_answer would reject it: no number, reference 72"),
        ("f(x=2)", "f(x=1)", "function_call would reject it: no f(x=1)"),
        ("Call f(x=1)", "f(x=1)", "function_call would reject it: more than the call: Call f(x=1)"),
        ("f(x=1)", "f(x=1)", ""),
    ],
)
def test_an_accepted_answer_is_compared_with_an_original_whose_result_can_not_be_mistaken(answer, original, told):
    unchecked = UncheckedResults(("empty",))
    assert unchecked.add(*pair(answer, original)) == told
    [counts] = unchecked.to_json().values()
    assert counts == {"compared": 1, "others": int(bool(told))}


@pytest.mark.parametrize(
    "original", ["Water boils at 100 degrees.", "Use f(x=1) for that.", "The answer is Paris.", ""]
)
def test_an_original_that_holds_a_number_or_a_call_by_the_way_is_not_compared(original):
    unchecked = UncheckedResults(())
    assert unchecked.add(*pair("Whatever.", original)) == ""
    assert unchecked.to_json() == {}


def test_what_a_check_of_the_run_compares_is_not_compared_again():
    unchecked = UncheckedResults(("numeric_answer",))
    assert unchecked.add(*pair("16", "#### 72")) == ""
    assert unchecked.add(*pair("f(x=2)", "f(x=1)")) != ""
    assert list(unchecked.to_json()) == ["function_call"]


def test_a_sentence_names_the_check_that_is_lacking_where_any_answer_is_another():
    counts = {"numeric_answer": {"compared": 9, "others": 0}, "function_call": {"compared": 4, "others": 3}}
    assert list(unchecked_sentences(counts)) == [
        "3 of 4 accepted answers that were compared make other calls than their original, or say more, and no check "
        "looks at that: add function_call to self_distillation.checks"
    ]


@pytest.mark.usefixtures("echo_plugin")
def test_a_run_counts_them_in_its_summary_and_warns(tmp_path, seed_dir, caplog):
    SCRIPT.clear()
    SCRIPT.update({(row, 0, 0): Answer("So 16 clips.", "stop", 1) for row in range(50)})
    originals = ["#### 72"] * 30 + ["#### 16"] * 10 + ["no number"] * 10
    questions = [f"Question {row}?" for row in range(50)]
    rows = Dataset.from_dict({"instruction": questions, "input": [""] * 50, "output": originals})
    config = echo_config(tmp_path, generation={"backend": "scripted"})

    dataset_dir = run_distillation(DistillationSpec(rows, config, seed_dir, {"type": "alpaca"}, "org/seed"))

    summary = json.loads((dataset_dir / "summary.json").read_text(encoding="utf-8"))
    assert summary["unchecked_results"] == {"numeric_answer": {"compared": 40, "others": 30}}
    assert any("30 of 40 accepted answers that were compared state another result" in line for line in caplog.messages)
