"""A list of templates is tried in turn: the next one asks only about what no answer of those before it passed."""

import json

import pytest
from datasets import Dataset, load_from_disk
from pydantic import ValidationError

from axolotl_sdft import SelfDistillationConfig
from axolotl_sdft.core.errors import UnknownNameError
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.spec import DistillationSpec
from axolotl_sdft.inference.interfaces import Answer
from tests.distillation import echo_backend

HINT = "Hint: {{ reference }}"


@pytest.fixture
def says(echo_plugin):
    """What the seed model answers to a question, by attempt; emptied for each test."""
    echo_backend.SAYS.clear()
    echo_backend.ASKED.clear()
    return echo_backend.SAYS


def spec_of(tmp_path, seed_dir, num_rows=1, **settings):
    settings = {"template": ("unaided", HINT), "checks": ("good",), "max_attempts": 1} | settings
    settings = {"generation": {"backend": "asked"}} | settings
    config = SelfDistillationConfig(output_dir=str(tmp_path / "out"), **settings)
    rows = Dataset.from_list([{"instruction": f"What {row}?", "output": f"original {row}"} for row in range(num_rows)])
    return DistillationSpec(rows, config, seed_dir, {"type": "alpaca"}, "seed")


def rewritten(*args, **settings):
    folder = run_distillation(spec_of(*args, **settings))
    return load_from_disk(str(folder)), json.loads((folder / "summary.json").read_text())


def asked():
    return [(prompt.messages[-1]["content"], prompt.attempt) for prompt in echo_backend.ASKED]


def test_the_next_template_asks_only_about_what_was_rejected_and_the_last_resort_is_the_original(
    tmp_path, seed_dir, says
):
    says |= {"What 0?": ["good alone"], "What 1?": ["bad"], "What 2?": ["bad"]}
    says |= {"Hint: original 1": ["good with help"], "Hint: original 2": ["worse"]}

    distilled, summary = rewritten(tmp_path, seed_dir, num_rows=3)

    assert distilled["output"] == ["good alone", "good with help", "original 2"]
    assert distilled["sdft_reasons"] == [[""], [""], ["good: is worse"]]
    assert sorted(asked()) == sorted((question, 0) for question in says)
    assert summary["accepted_by_template"] == {"unaided": 1, HINT: 1}
    assert summary["attempts"] == 5


def test_templates_that_begin_alike_are_counted_apart(tmp_path, seed_dir, says):
    opening = "Answer the question in your own words, with this answer as a guide: {{ reference }}"
    asked_with = f"{opening.removesuffix('{{ reference }}')}original"
    says |= {f"{asked_with} 0 Be brief.": ["bad"], f"{asked_with} 0 Be kind.": ["good"]}
    says |= {f"{asked_with} 1 Be brief.": ["good"]}

    _, summary = rewritten(tmp_path, seed_dir, 2, template=(f"{opening} Be brief.", f"{opening} Be kind."))

    shown = "Answer the question in your own words, with this answer a..."
    assert summary["accepted_by_template"] == {f"{shown} (1)": 1, f"{shown} (2)": 1}


def test_each_template_has_all_its_attempts_and_begins_with_its_first(tmp_path, seed_dir, says):
    says |= {"What 0?": ["bad", "bad"], "Hint: original 0": ["bad", "good at last"]}
    distilled, _ = rewritten(tmp_path, seed_dir, max_attempts=2)
    assert distilled["output"] == ["good at last"]
    assert asked() == [("What 0?", 0), ("What 0?", 1), ("Hint: original 0", 0), ("Hint: original 0", 1)]


def test_a_question_that_failed_for_good_leads_to_the_next_template_at_once(tmp_path, seed_dir, says):
    too_long = Answer("", "error", 0, error="the prompt is too long", is_final=True)
    says |= {"What 0?": [too_long], "Hint: original 0": ["bad", "good at last"]}

    distilled, summary = rewritten(tmp_path, seed_dir, max_attempts=3)

    assert asked() == [("What 0?", 0), ("Hint: original 0", 0), ("Hint: original 0", 1)]
    assert distilled["output"] == ["good at last"]
    assert summary["accepted_by_template"] == {"unaided": 0, HINT: 1}


def test_the_most_likely_answers_are_compared_within_the_first_template(tmp_path, seed_dir, says):
    says |= {"What 0?": ["good", "good too"]}
    sampled = {"backend": "asked", "temperature": 0.7}
    distilled, _ = rewritten(tmp_path, seed_dir, max_attempts=2, selection="max_logprob", generation=sampled)
    assert distilled["output"] == ["good"]
    assert asked() == [("What 0?", 0), ("What 0?", 1)]


def test_answers_of_one_template_are_kept_when_another_is_added(tmp_path, seed_dir, says):
    says |= {"What 0?": ["bad"], "Hint: original 0": ["good"]}
    rewritten(tmp_path, seed_dir, template="unaided", on_reject="original")
    echo_backend.ASKED.clear()
    distilled, _ = rewritten(tmp_path, seed_dir)
    assert distilled["output"] == ["good"]
    assert asked() == [("Hint: original 0", 0)]


def test_another_list_of_templates_makes_another_dataset(tmp_path, seed_dir, says):
    names = {
        spec_of(tmp_path, seed_dir, template=template).dataset_dir.name
        for template in ("unaided", ("unaided", HINT), (HINT, "unaided"))
    }
    assert len(names) == 3


def test_one_template_in_a_list_is_that_template(tmp_path, seed_dir, says):
    dirs = [spec_of(tmp_path, seed_dir, template=template).dataset_dir for template in ("unaided", ("unaided",))]
    assert dirs[0] == dirs[1]


def test_templates_that_make_no_sense_together_are_refused(tmp_path, seed_dir, says):
    with pytest.raises(ValidationError, match="template is an empty list; name one, such as reference"):
        SelfDistillationConfig(template=[])
    with pytest.raises(ValidationError, match=r"template names one twice: .*raise max_attempts to ask it again"):
        SelfDistillationConfig(template=["unaided", "unaided"])
    with pytest.raises(ValidationError, match=r"a Jinja text without \{\{ reference \}\}"):
        SelfDistillationConfig(template=["unaided", "{{ instruction }}"])
    with pytest.raises(UnknownNameError, match=r"self_distillation\.template .*'unadied'"):
        spec_of(tmp_path, seed_dir, template=("unaided", "unadied"))
