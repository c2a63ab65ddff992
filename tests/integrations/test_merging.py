"""``axolotl sdft-merge`` on a tiny Llama: what configurations name, the command's lines, and the sweep."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault
from transformers import AutoTokenizer

from axolotl_sdft import cut_layers
from axolotl_sdft.cli import sdft_merge
from axolotl_sdft.config import LayerPruningConfig, MergeConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.evaluation import measuring
from axolotl_sdft.evaluation.merging import checkpoints
from axolotl_sdft.integrations.axolotl.merging import merge_alone, named_models
from axolotl_sdft.integrations.axolotl.stages import pruning_spec
from axolotl_sdft.pruning.pipeline import run_pruning
from tests.evaluation.merging.references import save_adapter, save_variant

REPORT = {
    "held_out": {"path": "rows.jsonl", "type": "alpaca", "num_samples": 4, "sequence_len": 128},
    "general_prompts": {"num_samples": 2, "max_new_tokens": 4},
    "bootstrap_samples": 50,
}
ROWS = [{"instruction": f"Say the number {n}.", "input": "", "output": f"It is {n}."} for n in range(4)]


@pytest.fixture(scope="module")
def trained_dir(tiny_llama_dir, tmp_path_factory):
    """What training might have made of the tiny Llama; read only."""
    folder = save_variant(tiny_llama_dir, tmp_path_factory.mktemp("trained") / "out", noise=0.3)
    AutoTokenizer.from_pretrained(tiny_llama_dir).save_pretrained(folder)
    return folder


@pytest.fixture
def config(tiny_llama_dir, trained_dir, tmp_path, monkeypatch):
    """A configuration whose training has ended, in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_dir, "out")
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    named = {"base_model": str(tiny_llama_dir), "output_dir": "out", "plugins": ["axolotl_sdft.SDFTPlugin"]}
    return named | {"merge": {}, "recovery_report": REPORT}


def run(config, *args):
    Path("config.yml").write_text(yaml.safe_dump(config))
    return CliRunner().invoke(sdft_merge, ["config.yml", *args])


def test_the_command_merges_base_model_and_output_dir_and_says_how_to_use_the_result(config, tmp_path):
    result = run(config)
    folder = tmp_path / "out" / "sdft_merged"
    assert result.exit_code == 0, result.output
    assert f"merged model: {folder}\n" in result.output
    assert f"use it as any checkpoint: base_model: {folder}\n" in result.output
    assert json.loads((folder / "sdft_merge.json").read_text())["ratio"] == 0.5
    assert (folder / "chat_template.jinja").is_file()


def test_a_ratio_on_the_command_line_wins(config, tmp_path):
    config["merge"] = {"ratio": 0.9, "output_dir": "merged"}
    result = run(config, "--ratio", "1")
    assert "slerp at ratio 1\n" in result.output
    trained = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(trained[k], t) for k, t in load_file(tmp_path / "merged" / "model.safetensors").items())


def test_the_help_lists_the_keys_of_the_block():
    printed = CliRunner().invoke(sdft_merge, ["--help"]).output
    assert "merge.max_shard_size" in printed
    assert "Example: axolotl sdft-merge config.yml --sweep" in printed


@pytest.mark.parametrize(
    ("changes", "args", "message"),
    [
        ({"merge": None}, (), "there is no merge block; an empty one will do: merge: {}"),
        (
            {"output_dir": "empty"},
            (),
            r"merge\.models names output_dir, but .*/empty holds no model yet; run axolotl tr",
        ),
        ({}, ("--ratio", "2"), "2.0 is not in the range"),
        ({}, ("--ratio", "0.5", "--sweep"), "leave out --ratio, or leave out --sweep"),
        (
            {"merge": {"models": ["base_model", "absent"]}},
            (),
            r"merge\.models is 'absent', which is not a local folder",
        ),
        (
            {"layer_pruning": {"drop_layers": [2]}, "output_dir": "empty"},
            (),
            r"layer_pruning prunes first, but .* is not there yet; run axolotl",
        ),
        ({"merge": {"ratio": 3}}, (), r"merge\.ratio is 3: Input should be less than or equal to 1"),
    ],
)
def test_what_can_not_work_is_one_message(config, changes, args, message):
    result = run({key: value for key, value in (config | changes).items() if value is not None}, *args)
    assert result.exit_code != 0
    assert re.search(message, result.output), result.output
    assert "Traceback" not in result.output


def test_a_pruned_model_is_not_merged_with_its_seed(config, tmp_path):
    cut_layers(config["base_model"], [2], tmp_path / "pruned")
    config["merge"] = {"models": [config["base_model"], "pruned"]}
    with pytest.raises(ConfigError, match=r"^merge\.models: .* has 6 layers, .*pruned 5; merge what was trained from"):
        list(merge_alone(DictDefault(config)))


def test_with_layers_pruned_base_model_is_the_pruned_checkpoint(config):
    pruning = {"drop_layers": [2], "output_dir": "pruned"}
    cfg = DictDefault(config | {"layer_pruning": pruning})
    shutil.rmtree("out")
    shutil.copytree(run_pruning(pruning_spec(cfg, LayerPruningConfig(**pruning))), "out")
    first, second = named_models(cfg, MergeConfig())
    assert (first.folder.name, second.folder.name) == ("pruned", "out")


def test_an_adapter_in_output_dir_is_scaled_towards_the_base(config, tmp_path):
    peft = pytest.importorskip("peft")
    save_adapter(config["base_model"], tmp_path / "adapter")
    result = run(config | {"output_dir": "adapter"}, "--ratio", "0.25")
    folder = tmp_path / "adapter" / "sdft_merged"
    assert f"use it: lora_model_dir: {folder} (axolotl inference" in result.output
    assert peft.PeftConfig.from_pretrained(folder).r == 3


def test_a_sweep_measures_each_ratio_marks_the_best_and_keeps_the_folders(config, tmp_path):
    config["merge"] = {"sweep": [0.0, 0.5, 1.0]}
    result = run(config, "--sweep")
    assert result.exit_code == 0, result.output
    header, first, *others = table_of(result)
    assert header.split() == ["ratio", "held-out", "perplexity", "KL", "to", "the", "seed", "model"]
    assert re.match(r"0 +[\d.,e+]+ \(.+ to .+\) +0( |$)", first)  # the seed model itself has forgotten nothing
    assert [line.split()[0] for line in others] == ["0.5", "1"]
    assert sum("best" in line for line in (first, *others)) == 1
    taken = re.search(r"^take ratio (\S+):", result.stdout, re.M)[1]
    assert f"in YAML: merge: {{ratio: {taken}}}\n" in result.stdout
    (folder,) = (tmp_path / "out" / "sdft_merged_sweep").glob("0.5-*")
    for ratio, place in ((0, config["base_model"]), (0.5, folder), (1, tmp_path / "out")):
        assert f"{ratio}: {place}\n" in result.stdout


def table_of(result):
    """Return the lines of a sweep's table."""
    lines = result.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("ratio"))
    return lines[start : lines.index("", start)]


def test_a_sweep_again_finds_merges_and_figures_and_a_new_ratio_is_all_that_is_made(config, monkeypatch):
    config["merge"] = {"sweep": [0.25, 0.5]}
    before = table_of(run(config, "--sweep"))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "_write_merged", lambda *_: pytest.fail("merged again"))
        patched.setattr(measuring, "answer_statistics", lambda *_: pytest.fail("measured again"))
        again = run(config, "--sweep")
    assert again.exit_code == 0, again.output
    assert table_of(again) == before

    config["merge"] = {"sweep": [0.25, 0.5, 0.75]}
    measured = []
    monkeypatch.setattr(
        measuring,
        "answer_statistics",
        lambda model, seed, answers, real=measuring.answer_statistics: measured.append(1) or real(model, seed, answers),
    )
    assert run(config, "--sweep").exit_code == 0
    assert len(measured) == 2  # held-out rows and general prompts of the new one


def test_a_sweep_of_models_without_a_chat_template_takes_the_one_that_the_configuration_names(config):
    shutil.copytree(config["base_model"], "bare")
    for folder in ("bare", "out"):
        Path(folder, "chat_template.jinja").unlink()
    config |= {"base_model": "bare", "merge": {"sweep": [0.5]}}
    assert "has no chat template" in run(config, "--sweep").output
    result = run(config | {"chat_template": "chatml"}, "--sweep")
    assert result.exit_code == 0, result.output
    assert len(table_of(result)) == 2


def test_a_sweep_without_held_out_rows_marks_none_and_says_which_key_to_set(config):
    config["recovery_report"] = {key: value for key, value in REPORT.items() if key != "held_out"}
    config["merge"] = {"sweep": [0.5]}
    result = run(config, "--sweep")
    assert result.exit_code == 0, result.output
    assert "no ratio is marked" in result.output
    assert "set recovery_report.held_out.path, test_datasets or val_set_size" in result.output
