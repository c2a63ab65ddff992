"""`axolotl recovery-report` as a person runs it, on a pruned tiny Llama and one that has been trained since."""

import json

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_sdft import cut_layers
from axolotl_sdft.cli import recovery_report
from tests.distillation.output.test_report import Page
from tests.e2e.conftest import run_axolotl, write_config

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def reported(tmp_path_factory, tiny_llama_dir, alpaca_file):
    """A folder in which the report was made, and what the command printed."""
    folder = tmp_path_factory.mktemp("reported")
    pruned = cut_layers(tiny_llama_dir, [2, 3], folder / "plain")
    trained = AutoModelForCausalLM.from_pretrained(pruned, dtype=torch.float32)
    with torch.no_grad():
        trained.model.layers[0].mlp.down_proj.weight.mul_(1.1)
    trained.save_pretrained(folder / "out")
    AutoTokenizer.from_pretrained(pruned).save_pretrained(folder / "out")
    settings = {
        "models": {"plain": "plain"},
        "general_prompts": {"num_samples": 3, "max_new_tokens": 6},
        "speed": {"prompt_tokens": 8, "new_tokens": 4, "rounds": 1},
    }
    config = {
        "base_model": str(tiny_llama_dir),
        "datasets": [{"path": str(alpaca_file), "type": "alpaca"}],
        "val_set_size": 6,
        "output_dir": "out",
        "recovery_report": settings,
    }
    path = write_config(folder, config)
    return folder, run_axolotl(folder, "recovery-report", path)


def test_page_figures_and_card_hold_all_models(reported):
    folder, _ = reported
    report = json.loads((folder / "out/recovery_report/report.json").read_text())

    assert [model["name"] for model in report["models"]] == ["seed", "plain", "trained"]
    for model in report["models"]:
        assert model["held_out"]["nll"]["rows"] == 6
        assert model["general"]["nll"]["rows"] == 3
        assert model["speed"]["tokens_per_second"] > 0
    seed, plain, trained = report["models"]
    assert (seed["footprint"]["num_layers"], plain["footprint"]["num_layers"]) == (6, 4)
    assert plain["general"]["kl_to_seed"]["value"] != trained["general"]["kl_to_seed"]["value"]
    page = Page((folder / "out/recovery_report/report.html").read_text())
    assert "no figure Only 6 were measured" in page.text
    assert report["answers"][0]["answers"].keys() == {"seed", "plain", "trained"}
    assert plain["speed"] == trained["speed"]
    assert "| seed | plain | trained |" in (folder / "out/recovery_report/model_card.md").read_text()


def test_the_command_prints_a_table_of_at_most_100_columns_and_the_paths(reported):
    folder, printed = reported
    table = printed[printed.index("\ntrained: ") :]  # after the log
    assert "perplexity of the answers" in table
    lines = [line for line in table.splitlines() if not line.startswith(("report: ", "figures: ", "model card"))]
    assert max(map(len, lines)) <= 100
    assert f"report: {folder}/out/recovery_report/report.html" in printed


def test_help_lists_the_keys_of_the_block_and_ends_in_an_example():
    printed = CliRunner().invoke(recovery_report, ["--help"]).output
    assert "recovery_report.general_prompts.max_new_tokens" in printed
    assert "Example: axolotl recovery-report config.yml" in printed
