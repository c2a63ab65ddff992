"""What is said of answers: by hand, without a model."""

from itertools import combinations

import pytest

from axolotl_sdft.config import ExactMatchConfig
from axolotl_sdft.evaluation.measures.answer_accuracy import right_answer_checks
from axolotl_sdft.evaluation.measures.own_answers import (
    general_target,
    judged_calls,
    judged_form,
    makes_calls,
    makes_the_same_calls,
    pass_at_k,
    pass_rates,
)
from axolotl_sdft.inference.interfaces import Answer, Target

HERMES = '<tool_call>{"name": "get_time", "arguments": {"city": "Oslo"}}</tool_call>'


def written(text, error=None):
    return Answer(text, "error" if error else "stop", len(text), error=error)


def asked(reference):
    return Target(({"role": "user", "content": "What time is it in Oslo?"},), reference)


@pytest.mark.parametrize("num_answers", [1, 4, 7])
def test_pass_at_k_is_the_share_of_the_choices_of_k_answers_with_a_right_one(num_answers):
    for num_right in range(num_answers + 1):
        answers = [True] * num_right + [False] * (num_answers - num_right)
        for k in range(1, num_answers + 1):
            choices = list(combinations(answers, k))
            share = sum(map(any, choices)) / len(choices)
            assert pass_at_k(num_answers, num_right, k) == pytest.approx(share)


def test_pass_at_k_by_hand():
    # Of the 10 pairs out of 5 answers, 3 pairs avoid the 2 right ones.
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert pass_at_k(5, 2, 1) == pytest.approx(0.4)


@pytest.mark.parametrize("k", [0, 6])
def test_more_answers_than_were_sampled_are_refused(k):
    with pytest.raises(ValueError, match=rf"pass@{k} of 5 answers"):
        pass_at_k(5, 2, k)


def test_pass_rates_count_the_right_answers_of_each_prompt():
    checks = right_answer_checks(ExactMatchConfig(checks=("exact_match",)))
    targets = [asked("noon"), asked("six")]
    answers = [[written("noon"), written("six")], [written("six"), written("", error="memory")]]
    assert pass_rates(answers, targets, checks, (1, 2)) == {1: [0.5, 0.5], 2: [1.0, 1.0]}


def test_an_answer_that_runs_in_circles_and_one_that_refuses_are_told_apart_from_good_ones():
    texts = [
        "The sky is blue since air scatters short waves more.",
        "It is blue. " * 40,
        "I'm sorry, but I can't help with that.",
        "",
    ]
    answers = [*map(written, texts[:3]), written("", error="no room")]
    repeats, refuses = judged_form(answers, [general_target("Why is the sky blue?")] * 4)
    assert repeats == [False, True, False]  # the one that failed is no answer
    assert refuses == [False, False, True]


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (HERMES, True),
        ('[get_time(city="Oslo")]', True),
        ('get_time(city="Oslo")', True),
        ('get_time(city="Oslo")\nget_time(city="Rome")', True),
        ("It is noon (in Oslo).", False),
        ("Use print(x) to show x.", False),
        ("", False),
    ],
)
def test_a_reference_calls_where_it_holds_the_markup_or_nothing_but_calls(reference, expected):
    assert makes_calls(reference) is expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (HERMES, True),
        ('<tool_call>{"arguments": {"city": "Oslo"}, "name": "get_time"}</tool_call>', True),
        ('<tool_call>{"name": "get_time", "arguments": {"city": "Rome"}}</tool_call>', False),
        ('get_time(city="Oslo")', False),  # no parser finds it there
        ("It is noon.", False),
    ],
)
def test_a_call_counts_where_it_is_the_reference_s_by_value_and_in_its_markup(answer, expected):
    assert makes_the_same_calls(written(answer), asked(HERMES)) is expected


def test_only_targets_that_call_are_counted_and_a_failed_answer_is_wrong():
    targets = [asked(HERMES), asked("noon"), asked(HERMES)]
    answers = [written(HERMES), written("noon"), written("", error="time-out")]
    assert judged_calls(answers, targets) == [True, False]
