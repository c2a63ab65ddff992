"""The tutorial's configuration and all its commands, from the first look to the merged model, on a tiny model."""

import json

import pytest
import yaml

pytest.importorskip("axolotl")
pytest.importorskip("peft")

from transformers import AutoModelForCausalLM

from tests.docs.pages import REPOSITORY, blocks, commands
from tests.e2e.conftest import run_axolotl

pytestmark = pytest.mark.e2e

PAGE = REPOSITORY / "docs" / "tutorial.md"
LESS = {
    "layer_pruning": {"num_layers": 3, "calibration": {"num_samples": 8, "sequence_len": 64}},
    "self_distillation": {"checks": ["empty"], "generation": {"max_new_tokens": 4}, "gap_samples": 4},
    "recovery_report": {"general_prompts": {"num_samples": 2, "max_new_tokens": 4}, "speed": {"rounds": 0}},
    "max_steps": 2,
    "dataset_num_proc": 1,
}
"""What is laid over the tutorial's configuration, so that it takes a minute."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_llama_dir):
    """A folder in which all commands of the tutorial have run, with what they printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "models").mkdir()
    (folder / "models/SmolLM2-135M-Instruct").symlink_to(tiny_llama_dir)
    (folder / "example_configs").symlink_to(REPOSITORY / "example_configs")
    (config,) = [block for block in blocks(PAGE) if block.title == "config.yml"]
    (folder / "config.yml").write_text(yaml.safe_dump(yaml.safe_load(config.text) | LESS))
    return folder, "".join(run_axolotl(folder, *words) for words in axolotl_commands())


def axolotl_commands():
    for block in blocks(PAGE):
        for program, *words in commands(block) if block.language == "console" else []:
            if program == "axolotl":
                # The launcher would import everything once more.
                yield [*words, "--launcher", "python"] if words[0] in ("train", "inference") else words


def test_the_looks_before_training_show_layers_and_rows(finished):
    _, printed = finished
    assert "models/SmolLM2-135M-Instruct: 3 of 6 layers removed" in printed
    assert "--- datasets[0], row 0:" in printed


def test_the_summary_and_the_report_are_there(finished):
    folder, printed = finished
    assert "Layers dropped    3 of 6" in printed
    assert "Prompt            What is a glacier?" in printed
    report = json.loads((folder / "outputs/tutorial/recovery_report/report.json").read_text())
    assert [model["name"] for model in report["models"]] == ["seed", "pruned", "trained"]
    assert report["models"][2]["held_out"]["nll"]["rows"] == 10  # a tenth of 96


def test_the_merged_model_is_a_plain_checkpoint_with_the_layers_that_stayed(finished):
    folder, _ = finished
    model = AutoModelForCausalLM.from_pretrained(folder / "outputs/tutorial/merged")
    assert model.config.num_hidden_layers == 3
