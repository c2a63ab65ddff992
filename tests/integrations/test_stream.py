"""What a training run says of its stages, hands to trackers, and says when it is stopped or done."""

import json
import logging
import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainingArguments

from axolotl_sdft.integrations.axolotl import stream
from axolotl_sdft.integrations.axolotl.blocks import read_blocks
from axolotl_sdft.integrations.axolotl.trackers import report_figures, send_figures
from tests.training.micro_batches import EPOCH, make_llama
from tests.training.teachers.students import put_on_hub

PROVENANCE = {
    "drop_layers": [3, 4],
    "num_layers_before": 6,
    "parameters_before": 1000,
    "parameters_after": 700,
    "patch": {"divergence_bare": 0.5, "divergence_patched": 0.25, "cuts": []},
}
SUMMARY = {
    "rows": 4,
    "rows_dropped": 0,
    "rows_distilled": 3,
    "turns": 4,
    "turns_distilled": 3,
    "acceptance": 0.75,
    "rejections": {"leak": 1},
    "left_alone": {},
    "gap": {"nats_per_token_before": 2.5, "nats_per_token_after": 1.5},
    "provenance": {"settings": {"generation": {"temperature": 0.0, "top_p": 1.0, "top_k": None}}},
}


@pytest.fixture
def cfg(tmp_path):
    """A configuration as it is when training begins, with what pruning and rewriting have made."""
    pruned, rows, seed = (tmp_path / name for name in ("pruned", "distilled", "seed"))
    (pruned / "provenance").mkdir(parents=True)
    (pruned / "provenance" / "layer_pruning.json").write_text(json.dumps(PROVENANCE))
    rows.mkdir()
    (rows / "summary.json").write_text(json.dumps(SUMMARY))
    seed.mkdir()
    return DictDefault(
        base_model=str(pruned),
        sdft_seed_model=str(seed),
        datasets=[{"path": str(rows), "type": "alpaca"}],
        output_dir=str(tmp_path / "out"),
        axolotl_config_path="my.yml",
        layer_pruning={"num_layers": 2},
        self_distillation={},
        logit_distillation={},
    )


def scalars(folder):
    """The last value of each figure in TensorBoard's files."""
    (events,) = Path(folder).rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events)).Reload()
    return {name: found.Scalars(name)[-1].value for name in found.Tags()["scalars"]}


def test_each_stage_says_which_of_how_many_it_is(cfg, caplog):
    caplog.set_level(logging.INFO)
    blocks = read_blocks(cfg)
    stream.announce(blocks, stream.PRUNING, "reused: x")
    stream.announce(blocks, stream.REWRITING)
    stream.announce_training(blocks)
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 3: layer pruning (reused: x)",
        "2 of 3: self-distilled dataset",
        "3 of 3: training (with logit distillation)",
    ]


def test_a_stage_that_is_off_is_not_counted(cfg, caplog):
    caplog.set_level(logging.INFO)
    cfg.layer_pruning = None
    blocks = read_blocks(cfg)
    stream.announce(blocks, stream.PRUNING)
    stream.announce(blocks, stream.REWRITING)
    assert [record.getMessage() for record in caplog.records] == ["1 of 2: self-distilled dataset"]


def test_preprocessing_ends_before_training(cfg, monkeypatch):
    monkeypatch.setattr(stream.compat, "running_command", lambda: "preprocess")
    assert stream.stages_of(read_blocks(cfg)) == [stream.PRUNING, stream.REWRITING]


def test_other_ranks_are_silent(cfg, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("RANK", "1")
    stream.announce(read_blocks(cfg), stream.PRUNING)
    stream.log_results(cfg)
    assert caplog.records == []


def test_the_figures_of_the_stages_reach_the_tracker_of_the_training(cfg, tmp_path):
    args = TrainingArguments(str(tmp_path / "out"), report_to=["tensorboard"], use_cpu=True, max_steps=1)
    trainer = Trainer(model=make_llama(), args=args, train_dataset=EPOCH)
    trainer.add_callback(stream.StageCallback(cfg, trainer))
    trainer.get_train_dataloader = lambda: EPOCH
    trainer.train()

    logged = scalars(tmp_path / "out")
    assert {name: value for name, value in logged.items() if "sdft" in name} == {
        "train/sdft/layers_removed": 2,
        "train/sdft/layers_before": 6,
        "train/sdft/parameters_before": 1000,
        "train/sdft/parameters_after": 700,
        "train/sdft/kl_without_patch": 0.5,
        "train/sdft/kl_with_patch": 0.25,
        "train/sdft/acceptance": 0.75,
        "train/sdft/gap_before": 2.5,
        "train/sdft/gap_after": 1.5,
    }
    assert "train/train_loss" in logged  # in the same run as the training's own


def test_a_seed_model_of_the_hub_is_there_when_training_has_ended(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cfg.sdft_seed_model = put_on_hub(tmp_path / "seed", tmp_path / "hub")
    assert "Seed model        gone" not in str(stream.RunSummary.of(stream.artifacts_of_run(cfg)))


def test_a_base_model_that_was_pruned_before_stands_beside_its_seed_model_when_training_has_ended(cfg, tmp_path):
    record = tmp_path / "pruned" / "provenance" / "layer_pruning.json"
    record.write_text(json.dumps(PROVENANCE | {"seed_model": str(tmp_path / "seed")}))
    cfg |= {"sdft_seed_model": None, "layer_pruning": None}
    made = stream.artifacts_of_run(cfg)
    assert (made.seed_dir, made.pruned_dir) == (tmp_path / "seed", tmp_path / "pruned")


def test_figures_of_several_datasets_are_numbered(cfg, tmp_path):
    cfg.datasets = [*cfg.datasets, *cfg.datasets]
    figures = stream.stage_figures(stream.artifacts_of_run(cfg))
    assert {name for name in figures if "acceptance" in name} == {"sdft/acceptance_0", "sdft/acceptance_1"}


def test_the_figures_of_a_report_get_a_run_of_their_own(tmp_path):
    cfg = DictDefault(use_tensorboard=True, output_dir=str(tmp_path))
    estimate = {"value": 1.25, "low": 1.0, "high": 1.5, "rows": 60}
    model = {"name": "pruned", "folder": "x", "held_out": {"nll": estimate}, "tasks": {}, "speed": None}

    sent = send_figures(cfg, report_figures({"models": [model]}), "recovery report")

    assert sent == ["tensorboard"]
    assert scalars(tmp_path) == {"train/recovery/pruned/held_out/nll": 1.25}


def test_wandb_takes_them_offline_under_the_name_of_the_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_MODE"):  # Axolotl sets them, which must end with this test
        monkeypatch.setenv(name, "")
    keys = {"wandb_project": "pruned", "wandb_name": "llama", "wandb_mode": "offline"}
    cfg = DictDefault(**keys, output_dir=str(tmp_path / "out"))

    assert send_figures(cfg, {"recovery/pruned/kl": 0.25}, "recovery report") == ["wandb"]
    wandb.teardown()  # its service writes the file after the run has ended; this waits for it

    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"train/recovery/pruned/kl" in written.read_bytes()
    assert b"llama recovery report" in written.read_bytes()


def test_a_tracker_that_fails_is_told_and_stops_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("axolotl_sdft.integrations.axolotl.trackers._TRACKERS", {"use_it": ("no_such_tracker", None)})
    cfg = DictDefault(use_it=True, output_dir=str(tmp_path))
    assert send_figures(cfg, {"recovery/x": 1.0}, "recovery report") == []
    assert "the figures could not be sent to no_such_tracker" in caplog.text


def interrupt(cfg, send=lambda: signal.raise_signal(signal.SIGINT)):
    """Send Ctrl-C to this process while it trains, and return the signals that Axolotl's own handler got."""
    called = []
    before = signal.signal(signal.SIGINT, lambda number, frame: called.append(number))
    try:
        callback = stream.StageCallback(cfg, trainer=None)
        callback.on_train_begin(TrainingArguments(cfg.output_dir, report_to="none", use_cpu=True), None, None)
        send()
    finally:
        callback.on_train_end(None, None, None)
        signal.signal(signal.SIGINT, before)
    return called


def save_checkpoint(cfg, step, is_whole=True):
    folder = Path(cfg.output_dir) / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    if is_whole:
        (folder / "trainer_state.json").touch()


def test_a_training_that_is_stopped_says_what_is_kept_before_axolotl_ends_it(cfg, caplog):
    save_checkpoint(cfg, 10)
    assert interrupt(cfg) == [signal.SIGINT]
    assert f"To go on: axolotl train my.yml --resume-from-checkpoint {cfg.output_dir}/checkpoint-10" in caplog.text


def test_a_checkpoint_that_is_being_saved_just_then_is_not_named_to_go_on_from(cfg, caplog):
    save_checkpoint(cfg, 10)
    save_checkpoint(cfg, 20, is_whole=False)
    interrupt(cfg)
    assert f"--resume-from-checkpoint {cfg.output_dir}/checkpoint-10" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system starts processes anew")
def test_processes_that_load_data_do_not_say_it_again(cfg, caplog):
    def send_to_a_fork():
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGINT)
            os._exit("stopped:" in caplog.text)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    statuses = []
    interrupt(cfg, send_to_a_fork)
    assert statuses == [0]


def test_the_end_shows_a_table_the_paths_and_the_next_commands(cfg, caplog):
    caplog.set_level(logging.INFO)
    Path(cfg.output_dir).mkdir()
    (Path(cfg.output_dir) / "adapter_config.json").write_text("{}")
    (Path(cfg.output_dir) / "adapter_model.safetensors").touch()
    stream.log_results(cfg)
    lines = caplog.records[-1].getMessage().split("\n")
    assert lines[0] == "done"
    assert "Layers dropped    2 of 6: 3, 4" in lines
    assert any(line.startswith("Pruned model") and line.endswith("pruned") for line in lines)
    assert [line.split("    ")[0] for line in lines if line.startswith("next: ")] == [
        "next: axolotl merge-lora my.yml",
        "next: axolotl sdft-summary my.yml --prompt 'What is a glacier?'",
        "next: axolotl recovery-report my.yml",
    ]
