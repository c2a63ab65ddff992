import json
from dataclasses import replace

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft import SelfDistillationConfig
from axolotl_sdft.distillation.generation.selection import SelectionPolicy
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.spec import DistillationSpec
from axolotl_sdft.inference.interfaces import Answer, Prompt, Target
from tests.distillation import echo_backend

SAMPLED = {"backend": "scripted", "temperature": 0.7}


@pytest.fixture
def script(echo_plugin):
    """What the seed model answers, by row, turn and attempt; emptied for each test."""
    echo_backend.SCRIPT.clear()
    echo_backend.ASKED.clear()
    return echo_backend.SCRIPT


def rewritten(tmp_path, seed_dir, num_rows=1, **settings):
    """Run the stage on rows whose answers are `original 0` and so on; return the dataset and its summary."""
    from datasets import load_from_disk

    settings = {"template": "plain", "checks": ("good",), "generation": SAMPLED} | settings
    config = SelfDistillationConfig(output_dir=str(tmp_path / "out"), **settings)
    rows = Dataset.from_list([{"instruction": f"What {row}?", "output": f"original {row}"} for row in range(num_rows)])
    folder = run_distillation(DistillationSpec(rows, config, seed_dir, {"type": "alpaca"}, "seed"))
    return load_from_disk(str(folder)), json.loads((folder / "summary.json").read_text())


def answer(text, mean_logprob=None):
    return Answer(text, "stop", 1, mean_logprob)


def asked():
    return sorted((*prompt.key, prompt.attempt) for prompt in echo_backend.ASKED)


def test_the_first_answer_that_passes_is_taken_and_no_later_one_is_asked_for(tmp_path, seed_dir, script):
    script[0, 0, 0] = answer("good at once")
    script |= {(1, 0, 0): answer("bad"), (1, 0, 1): answer("good then")}
    script |= {(2, 0, 0): answer("bad"), (2, 0, 1): answer("worse"), (2, 0, 2): answer("worst")}

    distilled, summary = rewritten(tmp_path, seed_dir, num_rows=3, max_attempts=3)

    assert distilled["output"] == ["good at once", "good then", "original 2"]
    assert distilled["sdft_reasons"] == [[""], [""], ["good: is worst"]]
    assert asked() == sorted(script)  # nothing but what stands above
    assert summary["attempts"] == 6
    assert summary["rejected_attempts"] == {"good": 4}
    assert summary["rejections"] == {"good": 1}
    assert summary["acceptance"] == round(2 / 3, 4)


def test_the_most_likely_of_those_that_pass_is_taken(tmp_path, seed_dir, script):
    script |= {
        (0, 0, 0): answer("good", -0.9),
        (0, 0, 1): answer("good and likely", -0.2),
        (0, 0, 2): answer("bad", -0.1),
    }

    distilled, summary = rewritten(tmp_path, seed_dir, max_attempts=3, selection="max_logprob")

    assert distilled["output"] == ["good and likely"]
    assert asked() == [(0, 0, 0), (0, 0, 1), (0, 0, 2)]
    assert summary["attempts"] == 3


def test_without_log_probabilities_the_first_is_taken_and_a_warning_says_so(tmp_path, seed_dir, script, caplog):
    script |= {(0, 0, 0): answer("bad"), (0, 0, 1): answer("good one"), (0, 0, 2): answer("good two")}

    distilled, _ = rewritten(tmp_path, seed_dir, max_attempts=3, selection="max_logprob")

    assert distilled["output"] == ["good one"]
    assert [record.message for record in caplog.records if "max_logprob" in record.message] == [
        "dataset: self_distillation.selection is max_logprob, but backend scripted gives no log-probabilities; "
        "taking the first answer that passes"
    ]


def test_after_a_rejection_it_is_asked_again_and_at_last_the_original_is_kept(tmp_path, seed_dir, script):
    script |= {(0, 0, 0): answer("bad"), (0, 0, 1): answer("good in the end")}
    script |= {(1, 0, attempt): answer(f"bad {attempt}") for attempt in range(4)}

    greedy = {"backend": "scripted", "temperature": 0.0}
    distilled, _ = rewritten(tmp_path, seed_dir, num_rows=2, max_attempts=4, generation=greedy)

    assert distilled["output"] == ["good in the end", "original 1"]
    assert distilled["sdft_source"] == ["distilled", "original"]
    assert distilled["sdft_reasons"] == [[""], ["good: is bad 3"]]


def test_beyond_min_attempts_it_is_asked_again_only_while_none_passes(tmp_path, seed_dir, script):
    script |= {(0, 0, 0): answer("good", -3.0), (0, 0, 1): answer("good too", -1.0)}
    script |= {(1, 0, 0): answer("bad", -1.0), (1, 0, 1): answer("bad", -1.0), (1, 0, 2): answer("good late", -9.0)}

    settings = {"max_attempts": 4, "min_attempts": 2, "selection": "max_logprob"}
    distilled, _ = rewritten(tmp_path, seed_dir, num_rows=2, **settings)

    assert distilled["output"] == ["good too", "good late"]
    assert (0, 0, 2) not in asked()


def test_the_first_answers_are_used_again_when_more_attempts_are_allowed(tmp_path, seed_dir, script):
    script |= {(0, 0, 0): answer("bad"), (0, 0, 1): answer("good")}
    first, _ = rewritten(tmp_path, seed_dir, max_attempts=1)
    echo_backend.ASKED.clear()

    second, _ = rewritten(tmp_path, seed_dir, max_attempts=3)

    assert (first["output"], second["output"]) == (["original 0"], ["good"])
    assert asked() == [(0, 0, 1)]


def test_other_checks_find_the_later_attempts_as_well_and_ask_only_for_further_ones(tmp_path, seed_dir, script):
    script |= {(0, 0, 0): answer("bad"), (0, 0, 1): answer("good 7"), (0, 0, 2): answer("good")}
    rewritten(tmp_path, seed_dir, max_attempts=3)
    echo_backend.ASKED.clear()

    distilled, _ = rewritten(tmp_path, seed_dir, max_attempts=3, checks=("good", "no_seven"))

    assert distilled["output"] == ["good"]
    assert asked() == [(0, 0, 2)]


def test_a_later_turn_is_asked_after_the_attempt_that_was_taken(tmp_path, seed_dir, script):
    script |= {(0, 0, 0): answer("bad"), (0, 0, 1): answer("good one"), (0, 1, 0): answer("good two")}
    turns = [("user", "first"), ("assistant", "one"), ("user", "second"), ("assistant", "two")]
    rows = Dataset.from_list([{"messages": [{"role": role, "content": content} for role, content in turns]}])
    settings = {"template": "plain", "checks": ("good",), "generation": SAMPLED, "max_attempts": 2}
    config = SelfDistillationConfig(output_dir=str(tmp_path), **settings)

    run_distillation(DistillationSpec(rows, config, seed_dir, {"type": "chat_template"}, "seed"))

    contents = [message["content"] for message in echo_backend.ASKED[-1].messages]
    assert contents == ["first", "good one", "Rewrite: two"]


def test_an_answer_that_failed_is_rejected_with_its_cause_before_any_check(tmp_path, seed_dir, script):
    script[0, 0, 0] = Answer("", "error", 0, error="the prompt is longer than the context")
    script[1, 0, 0] = answer("good")

    distilled, summary = rewritten(tmp_path, seed_dir, num_rows=2, max_attempts=1)

    assert distilled["output"] == ["original 0", "good"]
    assert distilled["sdft_reasons"] == [["failed: the prompt is longer than the context"], [""]]
    assert summary["rejections"] == {"failed": 1}


REFUSED = Answer("", "error", 0, error="the prompt is longer than the context", is_final=True)


@pytest.mark.parametrize("selection", ["first", "max_logprob"])
def test_a_question_that_failed_for_good_is_not_asked_again(tmp_path, seed_dir, script, selection):
    script |= {(0, 0, 0): REFUSED}
    script |= {(1, 0, 0): answer("bad"), (1, 0, 1): REFUSED}
    script |= {(2, 0, attempt): answer("bad") for attempt in range(4)}

    distilled, summary = rewritten(tmp_path, seed_dir, num_rows=3, max_attempts=4, selection=selection)

    assert asked() == sorted(script)
    assert distilled["sdft_reasons"] == [[f"failed: {REFUSED.error}"], [f"failed: {REFUSED.error}"], ["good: is bad"]]
    assert summary["attempts"] == 7
    assert summary["to_try_again"]["failed"] == 0


def test_a_request_that_may_succeed_yet_is_sent_in_every_attempt(tmp_path, seed_dir, script):
    script |= {(0, 0, 0): replace(REFUSED, is_final=False), (0, 0, 1): answer("good")}

    distilled, _ = rewritten(tmp_path, seed_dir, max_attempts=2)

    assert distilled["output"] == ["good"]


def test_the_embedded_backend_samples_each_later_attempt_differently_and_repeats_itself(tiny_llama_dir):
    from axolotl_sdft.config import TransformersGeneration
    from axolotl_sdft.inference.backends import transformers_backend

    def texts(attempt):
        backend = transformers_backend(tiny_llama_dir, TransformersGeneration(max_new_tokens=8, dtype="float32"))
        prompt = Prompt((3, 0), ({"role": "user", "content": "Name a river."},), attempt)
        ((_, answers),) = backend.generate([[prompt]])
        return answers[0].text

    attempts = [texts(attempt) for attempt in range(4)]

    assert len(set(attempts)) == 4
    assert [texts(attempt) for attempt in range(4)] == attempts


def test_a_row_none_of_whose_answers_passes_can_be_dropped_after_several_attempts(tmp_path, seed_dir, script):
    script |= {(0, 0, 0): answer("bad"), (0, 0, 1): answer("good")}
    script |= {(1, 0, 0): answer("bad"), (1, 0, 1): answer("worse")}

    distilled, summary = rewritten(tmp_path, seed_dir, num_rows=2, max_attempts=2, on_reject="drop")

    assert distilled["output"] == ["good"]
    assert (summary["rows_dropped"], summary["attempts"]) == (1, 4)


@pytest.mark.parametrize(
    ("settings", "max_attempts", "min_attempts"),
    [
        ({}, 4, 1),
        ({"max_attempts": 5}, 5, 1),
        ({"max_attempts": 5, "selection": "max_logprob"}, 5, 5),
        ({"max_attempts": 5, "selection": "max_logprob", "min_attempts": 2}, 5, 2),
    ],
)
def test_settings_say_how_many_answers_are_asked_for(settings, max_attempts, min_attempts):
    policy = SelectionPolicy.of(SelfDistillationConfig(generation={"temperature": 0.7}, **settings))

    assert (policy.max_attempts, policy.min_attempts) == (max_attempts, min_attempts)


@given(
    answers=st.lists(st.tuples(st.sampled_from(["good", "bad"]), st.floats(-5, 0) | st.none()), min_size=6, max_size=6),
    always=st.integers(1, 4),
    further=st.integers(0, 2),
)
def test_settling_agrees_with_trying_all_attempts_one_after_the_other(answers, always, further):
    def judged(target, attempt):
        text, logprob = answers[attempt]
        return Answer(text, "stop", 1, logprob), None if text == "good" else ("good", "bad")

    good = [place for place in range(always + further) if answers[place][0] == "good"]
    expected = good[0] if good else None
    if good and good[0] < always:
        known = [place for place in good if place < always and answers[place][1] is not None]
        expected = max(known, key=lambda place: answers[place][1], default=good[0])

    policy = SelectionPolicy(max_attempts=always + further, min_attempts=always)

    assert policy.select(judged, Target(({"role": "user", "content": "?"},), "x")).attempt == expected
