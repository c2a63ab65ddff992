"""What the study of the whole tool runs, and how it tells its figures."""

from pathlib import Path

import pytest

from tests.benchmarks.effect_end_to_end import TASKS, WAYS, report_config, table, training_config
from tests.benchmarks.effect_training import Bench

BENCH = Bench(Path("/models/small"), Path("data"), Path("bench"))
BLOCKS = {"layer_pruning", "self_distillation", "logit_distillation"}


def estimate(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "rows": 100}


def figures(name, right, nats, forgotten, kept=None):
    return {
        "name": name,
        "exact_match": estimate(right, right - 0.1, right + 0.1),
        "held_out": {"nll": estimate(nats)},
        "general": {"kl_to_seed": estimate(forgotten)},
        "relative_to_seed": {} if kept is None else {"general": estimate(kept)},
        "repetition": {"general": estimate(0.25)},
        "refusals": estimate(0.0),
    }


def test_all_ways_train_alike_but_for_the_blocks_of_the_plugin():
    shared = [
        {key: value for key, value in training_config(BENCH, way, 1e-3).items() if key not in BLOCKS} for way in WAYS
    ]
    for config, way in zip(shared, WAYS, strict=True):
        assert config.pop("output_dir") == f"outputs/{way}"
        assert config.pop("dataset_prepared_path") == f"prepared-{way}"
        config["datasets"] = [dataset["path"] for dataset in config["datasets"]]

    assert all(config == shared[0] for config in shared)


@pytest.mark.parametrize(
    ("way", "blocks"), [("seed", set()), ("bare", {"layer_pruning"}), ("whole", BLOCKS), ("general", BLOCKS)]
)
def test_each_way_has_its_own_blocks(way, blocks):
    assert BLOCKS & training_config(BENCH, way, 1e-3).keys() == blocks


def test_answers_are_judged_by_what_the_task_asks_for():
    blocks = {task: report_config(BENCH, task, 100)["recovery_report"] for task in TASKS}

    assert blocks["gsm8k"]["exact_match"]["checks"] == ["numeric_answer"]
    assert blocks["openfunctions"]["exact_match"]["checks"] == ["function_call"]
    assert blocks["gsm8k"]["output_dir"] != blocks["openfunctions"]["output_dir"]


def test_the_table_has_right_answers_of_each_task_and_forgetting_once():
    whole = WAYS["whole"]
    problems = {"models": [figures("seed", 0.2, 1.4, 0.0), figures(whole, 0.1, 1.2, 0.31, kept=81.26)]}
    calls = {"models": [figures("seed", 0.3, 1.1, 0.0), figures(whole, 0.5, 0.6, 9.9, kept=1.0)]}
    for report in (problems, calls):
        report["models"].append(figures("trained", 0.4, 1.0, 0.2))

    header, _, seed, trained, last = table({"gsm8k": problems, "openfunctions": calls}).splitlines()

    assert header.startswith("| model | right word problems, % | right tool calls, % | nats a token, word problems |")
    assert seed == (
        "| the seed model, untrained | 20 (10 to 30) | 30 (20 to 40) | 1.40 | 1.10 | 0.000 | 100 | 25 | 0 |"
    )
    assert trained == f"| {whole} | 10 (0 to 20) | 50 (40 to 60) | 1.20 | 0.60 | 0.310 | 81.3 | 25 | 0 |"
    assert last.startswith(f"| {WAYS['general']} | 40 (30 to 50) |")
