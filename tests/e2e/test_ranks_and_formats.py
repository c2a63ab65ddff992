"""The same YAML in two processes, after `axolotl preprocess`, with conversations, packing and full fine-tuning."""

import json

import pytest
from datasets import load_from_disk
from transformers import AutoModelForCausalLM

from axolotl_sdft.distillation.generation.journal import Journal
from tests.e2e.conftest import run_axolotl, write_config

pytestmark = pytest.mark.e2e


def without_lora(config):
    return {key: value for key, value in config.items() if not key.startswith(("adapter", "lora_"))}


def test_two_processes_prune_once_share_the_rows_and_train_together(tmp_path, base_config, alpaca_file):
    plugins = ["tests.e2e.cpu_ranks.CpuRanksPlugin", *base_config["plugins"]]
    generation = {"max_new_tokens": 6, "max_batch_size": 4}
    distillation = base_config["self_distillation"] | {"generation": generation}
    config = write_config(tmp_path, base_config | {"plugins": plugins, "self_distillation": distillation})

    launch = ["--launcher", "torchrun", "--", "--standalone", "--nproc_per_node", "2"]  # on whatever port is free
    printed = run_axolotl(tmp_path, "train", config, *launch, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")

    assert len(list(tmp_path.glob("sdft_prepared/[!.]*-drop2-*"))) == 1
    (distilled,) = tmp_path.glob("sdft_prepared/distilled-*")
    rows = [json.loads(line)["instruction"] for line in alpaca_file.read_text().splitlines()]
    assert load_from_disk(str(distilled))["instruction"] == rows
    (answers,) = tmp_path.glob("sdft_prepared/answers-*")
    texts = [path.read_text() for path in answers.glob("answers-*.jsonl")]
    assert [text.count('"question"') for text in texts] == [12, 12]  # 24 rows in batches of 4, dealt out in turn
    journal = Journal(answers)
    journal.refresh()
    assert len(journal) == 24
    assert (tmp_path / "out/adapter_model.safetensors").exists()
    assert "dynsdpb/kl" in printed


def test_conversations_are_preprocessed_then_trained_packed_with_full_fine_tuning(tmp_path, base_config, chat_file):
    config = write_config(
        tmp_path,
        without_lora(base_config)
        | {
            "datasets": [{"path": str(chat_file), "type": "chat_template"}],
            "sample_packing": True,
            "attn_implementation": "sdpa",
            "pad_to_sequence_len": True,
            "micro_batch_size": 1,
            "max_steps": 2,
            "gradient_accumulation_steps": 1,
        },
    )
    run_axolotl(tmp_path, "preprocess", config)
    (distilled,) = tmp_path.glob("sdft_prepared/distilled-*")
    stamp = (distilled / "summary.json").stat().st_mtime_ns

    run_axolotl(tmp_path, "train", config, "--launcher", "python")

    assert (distilled / "summary.json").stat().st_mtime_ns == stamp
    assert json.loads((distilled / "summary.json").read_text())["turns"] == 24
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 4


def test_preferences_calibrate_the_pruning_and_train_the_pruned_model(tmp_path, base_config):
    chosen, rejected = ({"role": "assistant", "content": text} for text in ("It is cold.", "No."))
    rows = [
        {"messages": [{"role": "user", "content": f"Day {n}?"}], "chosen": chosen, "rejected": rejected}
        for n in range(12)
    ]
    (tmp_path / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = {key: value for key, value in base_config.items() if key not in ("self_distillation", "dynsdpb")}
    config = write_config(
        tmp_path,
        wanted
        | {
            "rl": "dpo",
            "datasets": [{"path": "preferences.jsonl", "type": "chat_template.default"}],
            "max_steps": 2,
        },
    )

    run_axolotl(tmp_path, "train", config, "--launcher", "python")

    base = json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"]
    assert "-drop2-" in base


def test_a_wrong_key_stops_the_command_with_one_clear_message_before_any_model_is_loaded(tmp_path, base_config):
    config = write_config(tmp_path, base_config | {"layer_pruning": {"num_layer": 2}})

    printed = run_axolotl(tmp_path, "train", config, "--launcher", "python", check=False)

    assert "layer_pruning: unknown key 'num_layer'; did you mean 'num_layers'?" in printed
    assert "Loading weights" not in printed
    assert not (tmp_path / "out/adapter_model.safetensors").exists()
