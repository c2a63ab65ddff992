"""What the commands do, as calls from Python: short reprs, and the same figures."""

from itertools import count

import pytest
import torch
from datasets import Dataset, IterableDataset

import axolotl_sdft
from axolotl_sdft import (
    LayerPruningConfig,
    LayerScores,
    PruningPlan,
    RecoveryReportConfig,
    SelfDistillationConfig,
    calibration_batches,
    distill_dataset,
    distill_general_rows,
    measure_recovery,
    plan_pruning,
    pruning_table,
    summarize_run,
)
from axolotl_sdft.config import CalibrationConfig
from axolotl_sdft.core.errors import CheckpointError, ConfigError
from axolotl_sdft.evaluation import from_python
from axolotl_sdft.evaluation.figures import ModelFigures, RecoveryReport
from axolotl_sdft.evaluation.from_python import _targets

TURNS = [{"role": "user", "content": "Why is the sky blue?"}, {"role": "assistant", "content": "Light is scattered."}]


def made_up_scores():
    costs = {start: {end: 0.1 * (end - start) + 0.01 * start for end in range(start + 1, 7)} for start in range(6)}
    return LayerScores(num_layers=6, metric="angular_distance", contiguous=True, block_costs=costs, num_tokens=100)


def test_the_pruning_table_prints_as_a_table_and_is_shown_in_a_line(tiny_llama_dir, tmp_path):
    scores = made_up_scores()
    plan = plan_pruning(scores, LayerPruningConfig(num_layers=2))
    table = pruning_table(tiny_llama_dir, plan, scores)
    assert repr(table).startswith(f"<PruningTable {tiny_llama_dir}: layers 0, 1 of 6, ")
    assert "2 of 6 layers removed" in str(table)
    assert table.to_json()["choices"][1] == {"drop_layers": [0, 1], "cost": scores.block_costs[0][2]}
    assert {path.suffix for path in table.draw(tmp_path / "pictures")} == {".png"}


def test_rows_of_a_dataset_become_calibration_batches(tiny_llama_dir):
    rows = Dataset.from_list([{"messages": TURNS}] * 5)
    config = CalibrationConfig(num_samples=3, sequence_len=16, batch_size=2)
    batches = calibration_batches(rows, tiny_llama_dir, config)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 16), (1, 16)]
    assert all((batch["attention_mask"] == 1).all() for batch in batches)


def test_of_a_streamed_dataset_the_first_rows_are_calibrated_on(tiny_llama_dir):
    endless = IterableDataset.from_generator(lambda: ({"text": f"{number} times"} for number in count()))
    config = CalibrationConfig(num_samples=2)
    (streamed,) = calibration_batches(endless, tiny_llama_dir, config)
    stored = Dataset.from_list([{"text": "0 times"}, {"text": "1 times"}])
    (expected,) = calibration_batches(stored, tiny_llama_dir, config)
    assert streamed["input_ids"].tolist() == expected["input_ids"].tolist()


def test_what_calibration_batches_does_not_read_is_warned_of(tiny_llama_dir, caplog):
    rows = Dataset.from_list([{"text": "Water boils."}])
    calibration_batches(rows, tiny_llama_dir, CalibrationConfig(num_samples=1, sequence_len=16, batch_size=1))
    assert caplog.messages == []
    elsewhere = CalibrationConfig(path="other.jsonl", type={"field": "body"})
    calibration_batches(rows, tiny_llama_dir, elsewhere)
    assert caplog.messages == [
        "calibration_batches does not read path of its configuration: the rows are those of dataset",
        "calibration_batches does not read type of its configuration: pass it as dataset_config",
    ]


@pytest.mark.parametrize("of_format", ["torch", "numpy"])
def test_a_streamed_dataset_is_read_as_it_is_stored(tiny_llama_dir, of_format):
    stored = Dataset.from_list([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}])
    config = CalibrationConfig(num_samples=2)
    (expected,) = calibration_batches(stored, tiny_llama_dir, config)
    (streamed,) = calibration_batches(stored.to_iterable_dataset().with_format(of_format), tiny_llama_dir, config)
    assert streamed["input_ids"].tolist() == expected["input_ids"].tolist()


ROWS = Dataset.from_list([{"messages": TURNS}] * 2)
CALLS = {
    "calibration_batches": lambda seed: calibration_batches(ROWS, seed),
    "distill_dataset": lambda seed: distill_dataset(ROWS, SelfDistillationConfig(), seed_model=seed),
    "distill_general_rows": lambda seed: distill_general_rows(SelfDistillationConfig(general_rows=2), seed_model=seed),
    "measure_recovery": lambda seed: measure_recovery(seed, {}),
    "pruning_table": lambda seed: pruning_table(seed, PruningPlan((1,), 6, None, None)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_names_no_seed_model_is_refused_by_the_name_of_the_argument(call):
    with pytest.raises(ConfigError, match="seed_model is a Linear; name the folder or the Hub id that it was loaded"):
        call(torch.nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match=r"^seed_model is 'no/where', which is not a local folder"):
        call("no/where")


def test_the_summary_of_a_run_that_made_nothing_says_where_it_looked(tmp_path):
    summary = summarize_run(tmp_path / "out")
    assert repr(summary) == f"<RunSummary 0 distilled datasets, {tmp_path / 'out'}>"
    assert "Trained model" in str(summary)


def test_a_report_is_shown_in_a_line():
    report = RecoveryReport(
        (ModelFigures("seed", "x"), ModelFigures("trained", "y")), {}, provenance={"created": "now"}
    )
    assert repr(report) == "<RecoveryReport of seed, trained, now>"


def test_the_last_answer_of_each_held_out_row_is_measured():
    rows = Dataset.from_list(
        [{"messages": [*TURNS, *TURNS[:1], {"role": "assistant", "content": f"{n}"}]} for n in (1, 2)]
    )
    assert [target.reference for target in _targets(rows, 8, None)] == ["1", "2"]


@pytest.fixture
def asked(monkeypatch):
    """What was to be measured: a list that each call adds to, instead of measuring."""
    specs = []
    monkeypatch.setattr(from_python, "run_report", specs.append)
    monkeypatch.setattr(from_python, "write_report", lambda report, folder: None)
    return specs


def test_a_report_follows_all_of_its_settings(tiny_llama_dir, tmp_path, asked):
    settings = RecoveryReportConfig(
        models={"plain": str(tiny_llama_dir)},
        output_dir=str(tmp_path / "report"),
        chat_template_kwargs={"enable_thinking": False},
    )
    measure_recovery(tiny_llama_dir, {"trained": tiny_llama_dir}, config=settings)
    (spec,) = asked
    assert [model.name for model in spec.models] == ["seed", "trained", "plain"]
    assert spec.output_dir == tmp_path / "report"
    assert spec.template_arguments == {"enable_thinking": False}


def test_the_folder_of_a_report_is_the_one_that_the_call_names(tiny_llama_dir, tmp_path, asked):
    settings = RecoveryReportConfig(output_dir=str(tmp_path / "elsewhere"))
    measure_recovery(tiny_llama_dir, {}, config=settings, output_dir=tmp_path / "here")
    assert asked[0].output_dir == tmp_path / "here"


@pytest.mark.parametrize(
    ("models", "settings", "message"),
    [
        ({"trained": "nowhere"}, {}, r"models\['trained'\] is 'nowhere', which is not a folder"),
        ({"seed": "other"}, {}, "models names one 'seed', which is what the report calls seed_model"),
        ({"a": "x"}, {"models": {"a": "y"}}, "models names one 'a', which stands in config.models too"),
        ({}, {"exact_match": {}}, r"there are no held-out rows; set .* \(from Python, pass held_out\)"),
        ({}, {"held_out": {"path": "rows.jsonl"}}, r"held_out.path is 'rows.jsonl', but .* pass its rows as held_out"),
    ],
)
def test_what_a_report_can_not_be_made_of_is_refused_before_measuring(
    tiny_llama_dir, tmp_path, asked, models, settings, message
):
    with pytest.raises(ConfigError, match=message):
        measure_recovery(tiny_llama_dir, models, config=RecoveryReportConfig(**settings), output_dir=tmp_path)
    assert asked == []


def test_what_the_commands_do_is_public():
    assert {"measure_recovery", "summarize_run", "pruning_table", "calibration_batches", "SdftError"} <= set(
        axolotl_sdft.__all__
    )
