"""One YAML file through the real command: all three stages on a tiny random Llama, then what follows training."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.conftest import BINARIES, run_axolotl, write_config

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base_config):
    """A folder in which `axolotl train` has run with all three stages, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder, base_config | {"val_set_size": 0.2, "save_steps": 2})
    return folder, config, run_axolotl(folder, "train", config, "--launcher", "python", as_program=True)


def pruned_dir(folder):
    (found,) = folder.glob("sdft_prepared/[!.]*-drop2-*")
    return found


def distilled_dir(folder):
    (found,) = folder.glob("sdft_prepared/distilled-*")
    return found


def log_history(folder):
    (path,) = folder.glob("out/checkpoint-4/trainer_state.json")
    return json.loads(path.read_text())["log_history"]


def test_the_adapter_is_trained_on_the_pruned_checkpoint(trained):
    folder, _, _ = trained
    adapter = json.loads((folder / "out/adapter_config.json").read_text())

    assert adapter["base_model_name_or_path"] == str(pruned_dir(folder))
    assert json.loads((pruned_dir(folder) / "config.json").read_text())["num_hidden_layers"] == 4


def test_the_rows_are_rewritten_by_the_unpruned_model_in_their_order(trained, base_config, alpaca_file):
    folder, _, _ = trained
    distilled = load_from_disk(str(distilled_dir(folder)))
    summary = json.loads((distilled_dir(folder) / "summary.json").read_text())
    (held_out_dir,) = folder.glob("sdft_prepared/held-out-*")
    held_out = load_from_disk(str(held_out_dir)).to_list()
    rows = [json.loads(line) for line in alpaca_file.read_text().splitlines()]

    assert len(held_out) == 5  # a fifth of 24, rounded up
    assert held_out == [row for row in rows if row in held_out]
    assert list(distilled["instruction"]) == [row["instruction"] for row in rows if row not in held_out]
    assert set(distilled["sdft_source"]) == {"distilled"}
    assert summary["provenance"]["seed_model"] == base_config["base_model"]


def test_training_logs_the_terms_of_dynsdpb(trained):
    folder, _, _ = trained
    losses = [entry for entry in log_history(folder) if "loss" in entry]

    assert len(losses) == 4
    assert "dynsdpb/kl" not in losses[0]  # nothing came before the first mini-batch
    for entry in losses[1:]:
        assert entry["dynsdpb/kl"] >= 0
        assert 0 <= entry["dynsdpb/alpha"] <= 1
        assert 1 <= entry["dynsdpb/temperature"] <= 2
        assert entry["dynsdpb/ce"] > 0


def test_a_second_run_reuses_the_checkpoint_and_the_rows(trained):
    folder, config, _ = trained
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "sdft_prepared").rglob("*") if path.is_file()}

    printed = run_axolotl(folder, "train", config, "--launcher", "python", "--output-dir", "out2")

    kept = {path: path.stat().st_mtime_ns for path in stamps if ".lock" not in path.name}
    assert all(stamps[path] == stamp for path, stamp in kept.items())
    assert "using the distilled dataset" in printed


def test_training_resumes_from_a_checkpoint(trained):
    folder, config, _ = trained

    args = ["--launcher", "python", "--output-dir", "out3", "--resume-from-checkpoint", "out/checkpoint-2"]
    run_axolotl(folder, "train", config, *args)

    state = json.loads((folder / "out3/checkpoint-4/trainer_state.json").read_text())
    assert state["global_step"] == 4


def test_evaluate_uses_the_pruned_model_and_the_distilled_rows(trained):
    folder, config, _ = trained

    printed = run_axolotl(folder, "evaluate", config, "--launcher", "python")

    assert f'"base_model": "{pruned_dir(folder)}"' in printed
    assert str(distilled_dir(folder)) in printed
    assert "sdft_prepared/held-out-" in printed


def test_the_merged_model_loads_with_plain_transformers_and_generates(trained):
    folder, config, _ = trained

    run_axolotl(folder, "merge-lora", config, "--lora-model-dir", "out")

    model = AutoModelForCausalLM.from_pretrained(folder / "out/merged")
    tokenizer = AutoTokenizer.from_pretrained(folder / "out/merged")
    base = AutoModelForCausalLM.from_pretrained(pruned_dir(folder), dtype=model.dtype)
    assert model.config.num_hidden_layers == 4
    changed = [
        torch.equal(a.self_attn.q_proj.weight, b.self_attn.q_proj.weight)
        for a, b in zip(model.model.layers, base.model.layers, strict=True)
    ]
    assert not any(changed)
    ids = tokenizer("Hello", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=4, do_sample=False).shape[1] == ids["input_ids"].shape[1] + 4


LM_EVAL_TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: {file}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: [" yes", " no"]
doc_to_target: 0
metric_list: [{metric: acc}]
"""


def test_lm_eval_measures_the_merged_model_of_the_same_yaml(trained, base_config):
    folder, config, _ = trained
    if not (folder / "out/merged").exists():
        run_axolotl(folder, "merge-lora", config, "--lora-model-dir", "out")
    (folder / "questions.jsonl").write_text('{"question": "Is snow white?"}\n{"question": "Is grass green?"}\n')
    (folder / "eval").mkdir()
    (folder / "eval/colours.yaml").write_text(LM_EVAL_TASK.replace("{file}", str(folder / "questions.jsonl")))
    # Axolotl can't tell lm_eval where to look for tasks of one's own.
    program = folder / "eval/lm_eval"
    program.write_text(f'#!/bin/sh\nexec "{BINARIES}/lm_eval" "$@" --include_path "{folder}/eval"\n')
    program.chmod(0o755)
    keys = {"lm_eval_tasks": ["colours"], "lm_eval_batch_size": 2, "lm_eval_model": "out/merged"}
    plugins = [*base_config["plugins"], "axolotl.integrations.lm_eval.LMEvalPlugin"]
    evaluated = write_config(folder / "eval", base_config | keys | {"plugins": plugins})

    path = os.pathsep.join([str(folder / "eval"), str(BINARIES), os.environ["PATH"]])
    printed = run_axolotl(folder, "lm-eval", evaluated, PATH=path)

    assert re.search(r"colours.*acc", printed)


def test_inference_answers_with_the_pruned_and_trained_model(trained):
    folder, config, _ = trained

    args = ["--launcher", "python", "--lora-model-dir", "out"]
    printed = run_axolotl(folder, "inference", config, *args, stdin="Say hello.")

    assert str(pruned_dir(folder)) in printed


def test_the_summary_names_layers_rows_losses_and_paths(trained):
    folder, config, _ = trained

    printed = run_axolotl(folder, "sdft-summary", config, "--prompt", "Hello")

    assert "Layers dropped    2 of 6" in printed
    assert "19 kept of 19, 19 with rewritten answers" in printed
    assert "Training loss" in printed
    assert Path("out").name in printed
