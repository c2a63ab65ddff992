"""The commands as a person types them, in this process, on a tiny random Llama."""

import json
import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

pytest.importorskip("axolotl")

ROWS = [{"instruction": f"Say the number {n}.", "input": "", "output": f"It is {n}."} for n in range(6)]


@pytest.fixture
def config_file(tiny_llama_dir, tmp_path, monkeypatch):
    """A configuration with the first two stages, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    write_config(
        base_model=str(tiny_llama_dir),
        datasets=[{"path": "rows.jsonl", "type": "alpaca"}],
        layer_pruning={"num_layers": 2, "calibration": {"num_samples": 4, "sequence_len": 32}},
        self_distillation={"checks": ["empty"], "generation": {"max_new_tokens": 4}},
    )
    return Path("config.yml")


def write_config(**config):
    Path("config.yml").write_text(yaml.safe_dump(config))


def run(command, *args):
    """Run a command as `axolotl` finds it, through its entry point."""
    (point,) = entry_points(group="axolotl.cli_commands", name=command)
    return CliRunner().invoke(point.load(), [str(arg) for arg in args])


@pytest.mark.parametrize(
    ("command", "key"),
    [("prune-layers", "layer_pruning.calibration.num_samples"), ("self-distill", "self_distillation.generation.seed")],
)
def test_help_shows_every_key_of_the_block_and_ends_in_an_example(command, key):
    printed = run(command, "--help").output
    assert key in printed
    assert f"Example: axolotl {command} config.yml" in printed


def test_a_dry_run_of_prune_layers_prints_the_plan_and_writes_nothing(config_file):
    result = run("prune-layers", config_file, "--dry-run")

    assert result.exit_code == 0, result.output
    assert re.search(r"2 of 6 layers would go: \d, \d\nangular_distance: 0\.\d+", result.output)
    assert not Path("sdft_prepared").exists()


def test_prune_layers_writes_the_checkpoint_that_its_dry_run_announced(config_file):
    announced = re.search(r"would go: (\d), (\d)", run("prune-layers", config_file, "--dry-run").output)

    result = run("prune-layers", config_file)

    folder = Path(result.output.rpartition("pruned checkpoint: ")[2].strip())
    provenance = json.loads((folder / "layer_pruning.json").read_text())
    assert provenance["drop_layers"] == [int(layer) for layer in announced.groups()]
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 4


def test_a_dry_run_of_self_distill_shows_rows_side_by_side_and_writes_nothing(config_file):
    result = run("self-distill", config_file, "--dry-run", 2)

    assert result.exit_code == 0, result.output
    assert result.output.count("--- datasets[0], row ") == 2
    assert "prompt:    Say the number 0." in result.output
    assert "reference: It is 0." in result.output
    assert not Path("sdft_prepared").exists()


def test_self_distill_counts_the_answers_and_names_the_folder(config_file):
    result = run("self-distill", config_file)

    assert re.search(r"datasets\[0\]: \d of 6 answers rewritten: .*distilled-\w+", result.output)


def test_the_summary_tells_what_is_there_so_far(config_file):
    run("prune-layers", config_file)

    printed = run("sdft-summary", config_file).output

    assert "Layers dropped    2 of 6" in printed
    assert "Rows " not in printed  # nothing has been rewritten yet


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("prune-layers", "Error: there is no layer_pruning block; add one"),
        ("self-distill", "Error: there is no self_distillation block; an empty one will do"),
    ],
)
def test_a_missing_block_is_an_error_that_says_how_to_add_it(config_file, command, message):
    write_config(base_model="anything", datasets=[{"path": "rows.jsonl", "type": "alpaca"}])
    result = run(command, config_file)
    assert result.exit_code == 1
    assert message in result.output


@pytest.mark.parametrize(("text", "message"), [("a: [", "config.yml is no YAML"), ("", "config.yml holds no keys")])
def test_a_broken_file_is_one_clear_error(config_file, text, message):
    config_file.write_text(text)
    result = run("prune-layers", config_file)
    assert result.exit_code == 1
    assert message in result.output
