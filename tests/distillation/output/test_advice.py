import pytest

from axolotl_sdft.distillation.checks import BUILT_IN
from axolotl_sdft.distillation.output.report import WAY_OUT, advice_for

GOOD_GAP = {"answers": 64, "nats_per_token_before": 2.5, "nats_per_token_after": 1.5}


GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": None}


def summary(
    accepted: int = 90,
    turns: int = 100,
    gap: dict | None = GOOD_GAP,
    generation: dict = GREEDY,
    max_attempts: int = 1,
    unchecked: dict | None = None,
    to_try_again: int = 0,
    **rejections: int,
) -> dict:
    told = {"turns": turns, "acceptance": accepted / turns, "rejections": rejections, "gap": gap}
    told |= {"unchecked_results": unchecked or {}, "to_try_again": {"failed": to_try_again, "not_judged": 0}}
    settings = {"generation": generation, "max_attempts": max_attempts}
    return told | {"provenance": {"settings": settings}}


def test_nothing_is_said_where_it_went_well():
    assert advice_for(summary(accepted=50, truncated=50)) == []


def test_few_accepted_answers_are_told_with_a_way_out_for_each_reason():
    [said] = advice_for(summary(accepted=20, truncated=50, leak=25, of_a_plugin=5))
    assert said.startswith("only 20% of the answers were accepted")
    assert "truncated 50 (raise generation.max_new_tokens" in said
    assert "leak 25 (choose another template" in said
    assert said.endswith("of_a_plugin 5")


def test_what_failed_for_good_is_not_said_to_be_tried_again():
    [may_pass] = advice_for(summary(accepted=20, failed=80, to_try_again=1))
    [stays] = advice_for(summary(accepted=20, failed=80))
    assert "failed 80 (start again to have them tried again)" in may_pass
    assert "failed 80 (see the reasons, such as a prompt that is too long: they would fail again" in stays


def test_few_accepted_answers_that_were_drawn_once_are_told_with_what_brings_more():
    drawn = GREEDY | {"temperature": 1.0}
    [_, said] = advice_for(summary(accepted=20, generation=drawn, truncated=80))
    assert said.startswith("answers drawn at temperature 1 fail more often than the most likely ones: max_attempts: 4")
    assert len(advice_for(summary(accepted=20, generation=drawn, max_attempts=4, truncated=80))) == 1
    assert advice_for(summary(accepted=60, generation=drawn, truncated=40)) == []


def test_other_results_that_no_check_looks_at_are_told_with_the_check_that_would():
    [said] = advice_for(summary(unchecked={"numeric_answer": {"compared": 100, "others": 3}}))
    assert said == (
        "3 of 100 accepted answers that were compared state another result than their original, and no check looks at "
        "that: add numeric_answer to self_distillation.checks"
    )


@pytest.mark.parametrize(("compared", "others"), [(100, 2), (19, 19), (400, 0)])
def test_a_few_other_results_may_be_those_of_wrong_originals(compared: int, others: int):
    assert advice_for(summary(unchecked={"function_call": {"compared": compared, "others": others}})) == []


def test_a_gap_that_grew_is_told_with_both_figures():
    [said] = advice_for(summary(gap=GOOD_GAP | {"nats_per_token_after": 3.25}))
    assert "the distribution gap grew from 2.50 to 3.25 nats per token" in said
    assert "lower generation.temperature" in said


@pytest.mark.parametrize(
    ("sampling", "is_told"),
    [
        ({"temperature": 1.0}, False),
        ({"temperature": 1.3}, False),
        ({"temperature": 0.9}, True),
        ({"temperature": 1.0, "top_p": 0.9}, True),
        ({"temperature": 1.0, "top_k": 50}, True),
    ],
)
def test_answers_drawn_from_all_that_the_model_might_say_are_not_judged_by_their_gap(sampling: dict, is_told: bool):
    grown = GOOD_GAP | {"nats_per_token_after": 3.25}
    assert bool(advice_for(summary(gap=grown, generation=GREEDY | sampling))) is is_told


@pytest.mark.parametrize("gap", [None, GOOD_GAP | {"answers": 19, "nats_per_token_after": 9.0}])
def test_a_gap_that_is_unknown_or_of_few_answers_says_nothing(gap: dict | None):
    assert advice_for(summary(gap=gap)) == []


def test_a_share_of_few_answers_says_nothing():
    assert advice_for(summary(accepted=1, turns=19, truncated=18)) == []


def test_every_check_that_ships_has_a_way_out():
    assert set(WAY_OUT) == {*BUILT_IN, "failed", "too_long"}
