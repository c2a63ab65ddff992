import json

import pytest

from tests.benchmarks.effect_curves import draw_curves, running_mean
from tests.benchmarks.effect_dynsdpb import Column, table
from tests.benchmarks.effect_runs import FinishedRuns, markdown_table, mean_and_spread, read_rows, seeds_first


def test_a_finished_run_is_found_and_not_made_again(tmp_path):
    runs = FinishedRuns(tmp_path / "new" / "runs.jsonl")
    made = runs.find_or_make({"way": "plain", "seed": 0}, lambda: {"nll": 1.5})
    again = FinishedRuns(tmp_path / "new" / "runs.jsonl").find_or_make({"seed": 0, "way": "plain"}, never)
    assert made == again
    assert made["nll"] == 1.5


def test_runs_with_other_settings_are_told_apart(tmp_path):
    runs = FinishedRuns(tmp_path / "runs.jsonl")
    runs.find_or_make({"dynsdpb": None}, lambda: {"nll": 1.0})
    runs.find_or_make({"dynsdpb": {"alpha": (1.0, 2.0)}}, lambda: {"nll": 2.0})
    assert runs.find({"dynsdpb": {"alpha": [1.0, 2.0]}})["nll"] == 2.0
    assert runs.find({"dynsdpb": {}}) is None


def test_a_line_that_a_kill_has_torn_is_made_again_and_spoils_no_other(tmp_path):
    path = tmp_path / "runs.jsonl"
    runs = FinishedRuns(path)
    runs.find_or_make({"seed": 0}, lambda: {"nll": 1.0})
    with path.open("a") as lines:
        lines.write('{"settings": {"seed": 1}, "fig')
    assert runs.find({"seed": 1}) is None
    runs.find_or_make({"seed": 1}, lambda: {"nll": 2.0})
    assert [runs.find({"seed": seed})["nll"] for seed in (0, 1)] == [1.0, 2.0]


def test_a_run_that_fails_leaves_nothing_behind_and_frees_the_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFECT_LOCK", str(tmp_path / "lock"))
    runs = FinishedRuns(tmp_path / "runs.jsonl")
    with pytest.raises(AssertionError, match="made again"):
        runs.find_or_make({"seed": 0}, never)
    assert runs.find_or_make({"seed": 0}, lambda: {"nll": 1.0})["nll"] == 1.0


def test_each_seed_has_all_ways_before_the_next_seed_begins():
    order = seeds_first((0, 1), [{"way": "a"}, {"way": "b"}])
    assert [(run["seed"], run["way"]) for run in order] == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]


@pytest.mark.parametrize(
    ("values", "text"), [([], "-"), ([0.5], "0.50"), ([1.0, 2.0, 3.0], "2.00 ± 1.00"), ([2.0, 2.0], "2.00 ± 0.00")]
)
def test_the_spread_is_the_sample_standard_deviation(values, text):
    assert mean_and_spread(values) == text


def test_a_table_has_a_rule_under_its_header():
    assert markdown_table(["way", "nll"], [["plain", 1]]) == "| way | nll |\n| --- | --- |\n| plain | 1 |"


def test_the_table_of_ways_compares_within_a_seed_and_leaves_out_what_some_runs_lack():
    plain = [{"accuracy": 0.80, "learnt": 0.5}, {"accuracy": 0.60}]
    dynamic = [{"accuracy": 0.82, "learnt": 0.5}, {"accuracy": 0.62}]
    columns = (Column("accuracy, %", "accuracy", 100.0, 1), Column("learnt", "learnt"))
    lines = table({"plain": plain, "dynamic": dynamic}, columns).splitlines()
    assert lines[0] == "|  | accuracy, % | over the first way |"
    assert lines[2] == "| plain | 70.0 ± 14.1 |  |"
    assert lines[3] == "| dynamic | 72.0 ± 14.1 | 2.0 ± 0.0 |"


def test_rows_are_read_from_the_top(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(3)))
    assert [row["n"] for row in read_rows(tmp_path / "rows.jsonl", 2)] == [0, 1]


def test_a_running_mean_takes_fewer_values_at_both_ends():
    assert running_mean([1.0, 2.0, 6.0, 4.0], 3) == [1.5, 3.0, 4.0, 5.0]


def test_the_same_log_gives_the_same_picture(tmp_path):
    log = [{"step": 1, "dynsdpb/ce": 2.0}, {"step": 2, "dynsdpb/ce": 1.5, "dynsdpb/kl": 0.01}]
    for name in ("one.svg", "two.svg"):
        draw_curves(log, "a run", tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def never():
    raise AssertionError("made again")
