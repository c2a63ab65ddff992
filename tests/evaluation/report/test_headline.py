"""The verdict and the two headline figures, from figures made by hand."""

import dataclasses

import pytest

from axolotl_sdft.evaluation.figures import Estimate
from axolotl_sdft.evaluation.report.headline import (
    OF_EVERYTHING_ELSE,
    OF_THE_TASK,
    SOURCES,
    Headline,
    SpeedGain,
    Tile,
    headline,
    speed_gain,
    usability,
    verdict,
)
from tests.evaluation.reports import figure, full_report, model, relative, seed_model, speed


def top(task=None, rest=None, source="exact_match", before=None, saved=0.08, gain=None, loops=None):
    """A headline with these figures in percent of the seed model; a number has no interval, and 300 rows."""
    task, rest, before = (figure(each, rows=300) if isinstance(each, float) else each for each in (task, rest, before))
    tiles = Tile("The task", source if task else None, before, task), Tile("Everything else", "general", None, rest)
    return Headline(model("trained", 24), *tiles, saved, gain, loops)


def test_the_verdict_is_one_sentence_of_size_speed_both_figures_and_what_follows():
    said = verdict(top(98.0, 81.0, before=63.0, gain=SpeedGain(1.06, is_clear=True)))
    assert said == (
        "8 % smaller, 6 % faster; task 63 → 98 % of the seed model's (300 rows), everything else 81 %: "
        "usable for this task"
    )


def test_the_verdict_of_a_report_follows_from_its_figures():
    assert headline(full_report()).verdict == (
        "20 % smaller, 20 % faster; task 63 → 98 % of the seed model's (300 rows), everything else 81 %: usable for "
        "this task"
    )


def test_more_than_the_seed_model_is_better_on_this_measure_and_nothing_that_was_kept():
    said = verdict(top(107.6, 101.0, before=63.0))
    assert "task 63 % → better than the seed model on this measure (300 rows)" in said
    assert "everything else better than the seed model on this measure" in said
    assert not any(word in said for word in ("kept", "retention", "107", "101"))


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((91.0, 90.0, 95.0), "usable for this task"),
        ((91.0, 89.9, 95.0), "probably usable for this task"),
        ((89.0, 80.0, 90.0), "probably not usable yet for this task"),
        ((85.0, 80.0, 89.9), "not usable yet for this task"),
        ((90.0, None, None), "usable for this task"),
    ],
)
def test_whether_a_model_is_usable_depends_on_where_its_interval_lies(interval, expected):
    assert usability(top(Estimate(*interval, 300), 50.0)) == expected


def test_a_model_that_equals_the_seed_model_in_everything_can_take_its_place():
    assert usability(top(97.0, 95.0)) == "usable in the seed model's place"
    assert usability(top(97.0, 94.9)) == "usable for this task"


def test_likelihood_alone_is_said_to_be_no_more():
    assert usability(top(97.0, 80.0, source="held_out")) == "usable for this task, as far as likelihood tells"


def test_a_model_that_loops_is_not_usable_however_good_its_likelihood_is():
    said = verdict(top(107.6, 99.0, source="held_out", loops=(figure(0.02), figure(0.34))))
    assert said.endswith(": not usable, since 34 % of its answers run in circles (seed model 2 %)")
    assert "circles" not in verdict(top(107.6, 99.0, loops=(figure(0.02), figure(0.11))))


def test_loops_count_on_the_prompts_where_they_are_worst_and_not_on_few_answers():
    looping = {"general": figure(0.5, rows=49), "held_out": figure(0.3, rows=50)}
    models = (
        seed_model(repetition={"general": figure(0.0), "held_out": figure(0.1)}),
        model("trained", 24, repetition=looping),
    )
    found = headline(full_report(models=models)).loops
    assert [share.value for share in found] == [0.1, 0.3]


def test_nothing_is_said_of_use_where_the_task_was_not_measured():
    assert usability(top(None, 99.0)) == "whether it is usable for the task is not known"
    assert "task without a figure, everything else 99 %" in verdict(top(None, 99.0))


@pytest.mark.parametrize(
    ("saved", "gain", "expected"),
    [
        (None, None, "task 98"),
        (0.001, None, "as large as the seed model; task"),
        (-0.02, None, "2 % larger; task"),
        (0.2, SpeedGain(0.9, is_clear=True), "20 % smaller, 10 % slower; task"),
        (0.2, SpeedGain(1.09, is_clear=False), "20 % smaller, no faster or slower than the rounds differ; task"),
    ],
)
def test_size_and_speed_are_told_as_far_as_they_are_known_and_clear(saved, gain, expected):
    assert verdict(top(98.0, 81.0, saved=saved, gain=gain)).startswith(expected)


def test_a_gain_in_speed_is_clear_where_no_round_of_one_model_reaches_those_of_the_other():
    assert speed_gain(speed(9.0, 10.0, 11.0), speed(12.0, 12.5, 13.0)) == SpeedGain(1.25, is_clear=True)
    assert speed_gain(speed(9.0, 10.0, 12.0), speed(11.0, 12.5, 13.0)) == SpeedGain(1.25, is_clear=False)
    assert speed_gain(speed(10.0), speed(5.0)) == SpeedGain(0.5, is_clear=True)
    assert speed_gain(None, speed(5.0)) is None


@pytest.mark.parametrize("source", [*OF_THE_TASK, *OF_EVERYTHING_ELSE])
def test_fewer_than_fifty_rows_give_no_headline_but_a_reason_and_a_way(source):
    def tile(rows):
        kept = {source: figure(90.0, rows=rows)}
        found = headline(full_report(models=(seed_model(), model("trained", 24, relative_to_seed=kept))))
        return found.task if source in OF_THE_TASK else found.everything_else

    assert (tile(50).source, tile(50).after.value, tile(50).why_none) == (source, 90.0, "")
    assert (tile(49).source, tile(49).after) == (None, None)
    assert tile(49).why_none.startswith("Only 49 were measured, of which a headline would say little. To get one, ")
    assert "50" in tile(49).why_none.partition("To get one")[2]


def test_the_strongest_source_of_enough_rows_is_taken():
    kept = {"exact_match": figure(10.0, rows=20), "held_out": figure(20.0, rows=200), "general": figure(30.0, rows=64)}
    found = headline(full_report(models=(seed_model(), model("trained", 24, relative_to_seed=kept))))
    assert (found.task.source, found.everything_else.source) == ("held_out", "general")
    both = kept | relative(exact_match=40.0, tasks=50.0)
    found = headline(full_report(models=(seed_model(), model("trained", 24, relative_to_seed=both))))
    assert (found.task.source, found.everything_else.source) == ("exact_match", "tasks")


def test_what_was_not_measured_at_all_is_told_with_what_to_set():
    found = headline(full_report(models=(seed_model(), model("trained", 24))))
    assert found.task.why_none.startswith("Not measured. To get a figure, hold out at least 50 rows: val_set_size")
    assert "general_prompts.num_samples" in found.everything_else.why_none


def test_the_headline_is_of_the_trained_model_else_of_the_last_with_the_pruned_one_before():
    report = full_report()
    assert headline(report).model.name == "trained"
    assert headline(report).task.before.value == 62.6
    without = dataclasses.replace(report, models=report.models[:2])
    assert headline(without).model.name == "pruned"
    assert headline(without).task.before is None
    assert headline(dataclasses.replace(report, models=report.models[:1])) is None


def test_every_source_belongs_to_one_of_the_two_figures():
    assert sorted(SOURCES) == sorted([*OF_THE_TASK, *OF_EVERYTHING_ELSE])
