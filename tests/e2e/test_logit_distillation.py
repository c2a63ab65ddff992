"""One YAML file through the real command: the pruned student learns from the unpruned seed model."""

import json
import shutil

import pytest

from tests.e2e.conftest import run_axolotl, write_config

pytestmark = pytest.mark.e2e


def test_training_prunes_teaches_and_merges(tmp_path, base_config, tiny_llama_dir):
    shutil.copytree(tiny_llama_dir, tmp_path / "seed")
    blocks = {"logit_distillation": {"alpha": 0.7, "tokens": "all"}, "dynsdpb": {}, "base_model": "seed"}
    config = {**base_config, **blocks, "val_set_size": 0.2, "eval_steps": 4, "gradient_checkpointing": True}
    del config["self_distillation"]
    path = write_config(tmp_path, config)

    printed = run_axolotl(tmp_path, "train", path, "--launcher", "python")

    assert "the teacher shares the student's own layers (the student's own layers are frozen)" in printed
    (state,) = tmp_path.glob("out/checkpoint-4/trainer_state.json")
    logged = [entry for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]
    assert all(entry["logit_distillation/kl"] > 0 for entry in logged)
    assert all(0 <= entry["logit_distillation/agreement"] <= 1 for entry in logged)
    run_axolotl(tmp_path, "merge-lora", path)
    merged = json.loads((tmp_path / "out/merged/config.json").read_text())
    assert merged["num_hidden_layers"] == 4
