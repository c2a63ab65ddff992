"""The commands as a person types them, in this process, on a tiny random Llama."""

import json
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from datasets import load_from_disk

pytest.importorskip("axolotl")

ROWS = [{"instruction": f"Say the number {n}.", "input": "", "output": f"It is {n}."} for n in range(6)]
CALIBRATION = {"calibration": {"num_samples": 4, "sequence_len": 32}}


@pytest.fixture
def config_file(tiny_llama_dir, tmp_path, monkeypatch):
    """A configuration with the first two stages, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    write_config(
        base_model=str(tiny_llama_dir),
        datasets=[{"path": "rows.jsonl", "type": "alpaca"}],
        plugins=["axolotl_sdft.SDFTPlugin"],
        layer_pruning={"num_layers": 2, **CALIBRATION},
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


def test_a_dry_run_of_prune_layers_prints_the_plan_and_keeps_scores_and_pictures_only(config_file):
    result = run("prune-layers", config_file, "--dry-run")

    assert result.exit_code == 0, result.output
    assert re.search(r"2 of 6 layers removed\nlayers, counted from 0: \d, \d\nangular_distance: 0\.\d+", result.output)
    assert re.search(r"\nlayers +6 +4 +2 +33\.3 %\n", result.output)
    assert re.search(r"\n>   2 +0\.\d{4}.* \d to \d\n", result.output)
    (scores_dir,) = [path for path in Path("sdft_prepared").iterdir() if path.is_dir()]
    named = dict(re.findall(r"^(scores|picture): (?:.*/)?([^/\n]+/[^/\n]+)$", result.output, flags=re.M))
    assert named == {
        "scores": f"{scores_dir.name}/scores.json",
        "picture": f"{scores_dir.name}/least_cost-drop2.png",  # the last of the two
    }
    assert {path.name for path in scores_dir.glob("*.png")} == {"heat_map-drop2.png", "least_cost-drop2.png"}


def test_prune_layers_writes_the_checkpoint_that_its_dry_run_announced(config_file):
    announced = run("prune-layers", config_file, "--dry-run").stdout

    printed = run("prune-layers", config_file).stdout

    report, _, last_line = printed.rpartition("pruned checkpoint: ")
    (announced, later), (report, patch) = (text.split("patch: ", maxsplit=1) for text in (announced, report))
    assert report == announced
    assert later == (
        "not in a dry run; fitted when the checkpoint is written (layer_pruning.patch: none for a bare cut)\n"
        "  on the calibration text and 320 tokens or more of the seed model's answers to general prompts, which it "
        "writes then (layer_pruning.calibration.general_share: 0 for none)\n"
    )
    assert re.match(r"layer \d is patched for layers|layers \d to \d removed without a patch: ", patch)
    folder = Path(last_line.strip())
    provenance = json.loads((folder / "provenance/layer_pruning.json").read_text())
    assert f"counted from 0: {provenance['drop_layers'][0]}, {provenance['drop_layers'][1]}\n" in announced
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 4


def test_another_number_of_layers_is_tried_without_loading_the_model_again(config_file, monkeypatch):
    from transformers import AutoModelForCausalLM

    first = run("prune-layers", config_file).output
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)

    second = run("prune-layers", config_file, "--num-layers", "3")
    third = run("prune-layers", config_file, "--num-layers", "0.7", "--dry-run")

    assert (second.exit_code, third.exit_code) == (0, 0), second.output + third.output
    assert "3 of 6 layers removed" in second.output
    assert "4 of 6 layers removed" in third.output  # 4.2, rounded
    folders = {output.rpartition("pruned checkpoint: ")[2] for output in (first, second.output)}
    assert len(folders) == 2
    pictures = sorted(path.name for path in Path("sdft_prepared").glob("*-scores-*/heat_map-*.png"))
    assert pictures == ["heat_map-drop2.png", "heat_map-drop3.png", "heat_map-drop4.png"]


def test_a_number_of_layers_takes_the_place_of_named_layers(config_file):
    write_config(**yaml.safe_load(config_file.read_text()) | {"layer_pruning": {"drop_layers": [0, 5], **CALIBRATION}})
    named = run("prune-layers", config_file, "--dry-run").output
    assert "2 of 6 layers removed\nlayers, counted from 0: 0, 5\n\n" in named
    assert "scores:" not in named

    assert "1 of 6 layers removed" in run("prune-layers", config_file, "--dry-run", "--num-layers", 1).output


@pytest.mark.parametrize("value", ["0", "-1", "1.0", "2.5", "0.0", "nan", "many"])
def test_a_number_of_layers_that_is_none_is_refused_by_the_name_of_the_option(config_file, value):
    result = run("prune-layers", config_file, f"--num-layers={value}")
    assert result.exit_code == 2
    assert f"'--num-layers': '{value}' is neither a count such as 6 nor a fraction" in " ".join(result.output.split())


def test_more_layers_than_the_model_has_are_refused_by_the_name_of_the_option(config_file):
    result = run("prune-layers", config_file, "--num-layers", "6")
    assert result.exit_code == 1
    assert "Error: with --num-layers 6: layer_pruning.num_layers is 6, but the model has 6 layers" in result.output
    assert not Path("sdft_prepared").exists()


def test_without_matplotlib_the_table_comes_and_a_line_names_the_extra(config_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    printed = run("prune-layers", config_file, "--dry-run").output
    assert "The cheapest block of each length" in printed
    assert "no pictures: pictures of the scores need matplotlib; install 'axolotl-sdft[plots]'" in printed


def test_pictures_that_can_not_be_written_cost_neither_the_table_nor_the_path_of_the_checkpoint(config_file):
    run("prune-layers", config_file, "--dry-run")
    (picture,) = Path("sdft_prepared").glob("*/least_cost-drop2.png")
    picture.unlink()
    picture.mkdir()

    result = run("prune-layers", config_file)

    assert result.exit_code == 0, result.output
    assert "The cheapest block of each length" in result.output
    assert re.search(r"no pictures: .*least_cost-drop2\.png can't be written \(Is a directory\)", result.output)
    assert Path(result.output.rpartition("pruned checkpoint: ")[2].strip(), "config.json").is_file()


def test_a_place_for_corrections_that_can_not_be_had_is_refused_before_anything_is_rewritten(config_file):
    Path("taken").touch()

    result = run("self-distill", config_file, "--corrections", "taken/wrong.jsonl")

    assert result.exit_code == 1
    assert "Error: --corrections: can't write to taken (taken is not a folder); name another folder" in result.output
    assert not Path("sdft_prepared").exists()


def test_a_base_model_that_these_settings_have_pruned_is_left_alone(config_file):
    pruned = run("prune-layers", config_file).output.rpartition("pruned checkpoint: ")[2].strip()
    write_config(**yaml.safe_load(config_file.read_text()) | {"base_model": pruned})
    printed = run("prune-layers", config_file).stdout
    assert printed == f"{pruned} has been pruned with these settings already; nothing is left to do\n"


def test_a_dry_run_of_self_distill_shows_rows_side_by_side_and_writes_nothing(config_file):
    result = run("self-distill", config_file, "--dry-run", 2)

    assert result.exit_code == 0, result.output
    assert result.output.count("--- datasets[0], row ") == 2
    assert "prompt:    Say the number 0." in result.output
    assert "reference: It is 0." in result.output
    assert re.search(r"datasets\[0\]: \d of 2 answers accepted .*\n.*\ntime: .* for all 6 rows", result.output)
    assert not Path("sdft_prepared").exists()


def test_self_distill_counts_the_answers_and_names_the_folder_and_the_report(config_file):
    result = run("self-distill", config_file)

    assert re.search(r"datasets\[0\]: \d of 6 trained answers rewritten: .*distilled-\w+", result.output)
    assert Path(result.stdout.rpartition("report: ")[2].strip()).is_file()


def test_self_distill_writes_what_the_seed_model_finds_likely(config_file):
    turns = [{"role": "user", "content": "Say two."}, {"role": "assistant", "content": "Two."}]
    Path("rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    least = {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 0.001, "num_epochs": 1}
    config = yaml.safe_load(config_file.read_text()) | least
    write_config(**{**config, "datasets": [{"path": "rows.jsonl", "type": "chat_template"}]})

    result = run("self-distill", config_file, "--logits", 3)

    assert result.exit_code == 0, result.output
    found = re.search(r"1 of 1 rows with the seed model's 3 most likely tokens: (\S+)", result.output)
    assert len(load_from_disk(found[1])[0]["logprobs"][0]) == 3
    assert 'type: "axolotl.integrations.kd.chat_template"' in result.output


def test_logits_of_other_rows_than_conversations_are_refused_before_any_is_rewritten(config_file):
    result = run("self-distill", config_file, "--logits", 3)
    assert result.exit_code == 1
    assert (
        "datasets[0].type is 'alpaca', but --logits writes for axolotl.integrations.kd.chat_template" in result.output
    )
    assert not Path("sdft_prepared").exists()


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


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "config.yml is not valid YAML"), ("", "config.yml holds no keys")]
)
def test_a_broken_file_is_one_clear_error(config_file, text, message):
    config_file.write_text(text)
    result = run("prune-layers", config_file)
    assert result.exit_code == 1
    assert message in result.output


def test_prune_layers_prints_json_alone_on_request(config_file):
    result = run("prune-layers", config_file, "--json", "--layer-pruning.num-layers", "1")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["num_layers"], len(told["drop_layers"])) == (6, 1)  # the option takes the file's place
    assert told["choices"][0]["drop_layers"] == told["drop_layers"]
    assert Path(told["pruned_checkpoint"], "config.json").is_file()
    assert told["before"]["num_layers"] - told["after"]["num_layers"] == 1

    summary = json.loads(run("sdft-summary", config_file, "--json", "--layer-pruning.num-layers", "1").stdout)
    assert summary["pruned_model"] == told["pruned_checkpoint"]
    assert summary["layer_pruning"]["drop_layers"] == told["drop_layers"]
    assert (summary["trained_model"], summary["datasets"], summary["answers"]) == (None, [], {})


def test_an_unknown_key_on_the_command_line_is_refused_as_in_the_file(config_file):
    result = run("prune-layers", config_file, "--layer-pruning.num-layer", "1")
    assert result.exit_code == 1
    assert re.search(r"layer_pruning.*num_layer\b.*num_layers", result.output)


def test_configurations_and_findings_are_printed_as_json_on_request(config_file):
    listed = json.loads(run("sdft-configs", "list", "--json", "--filter", "today/").stdout)
    assert all({"name", "title"} <= set(entry) for entry in listed)
    assert any(entry["name"].startswith("today/") for entry in listed)
    checked = run("sdft-configs", "check", config_file, "--json")
    told = json.loads(checked.stdout)
    assert told["file"] == "config.yml"
    assert checked.exit_code == int(any(finding["level"] == "fault" for finding in told["findings"]))


def test_show_prints_the_file_and_nothing_else(config_file):
    name = json.loads(run("sdft-configs", "list", "--json").stdout)[0]["name"]
    shown = run("sdft-configs", "show", name).stdout
    run("sdft-configs", "copy", name, "copied.yml")
    assert yaml.safe_load(shown) == yaml.safe_load(Path("copied.yml").read_text())
    assert shown.splitlines()[0] == Path("copied.yml").read_text().splitlines()[0]


def test_show_says_how_to_get_the_file_without_the_banner_of_axolotl():
    help_text = " ".join(run("sdft-configs", "show", "--help").stdout.split())
    assert "its banner is on standard output before this command begins" in help_text
    assert "axolotl-sdft prints the file alone, and copy writes it" in help_text


def publish(*args):
    """The command itself: an installation that is older than it has no entry point for it."""
    from axolotl_sdft.cli import sdft_publish

    return CliRunner().invoke(sdft_publish, [str(arg) for arg in args])


def test_publishing_what_was_not_made_is_refused_with_the_way_to_make_it(config_file):
    result = publish(config_file, "--what", "dataset", "--dry-run")
    assert result.exit_code == 1
    assert "Error: there is no self-distilled dataset yet; run: axolotl self-distill CONFIG" in result.output


def test_a_dry_run_of_publishing_shows_the_files_and_the_card_of_the_pruned_checkpoint(config_file):
    assert run("prune-layers", config_file).exit_code == 0
    result = publish(config_file, "--what", "checkpoint", "--dry-run")
    assert result.exit_code == 0, result.output
    assert re.search(r"MB  model\.safetensors\n", result.output)
    assert "without 2 of its 6 layers" in result.output
    assert str(Path.cwd()) not in result.output.partition("README.md:\n")[2]
    assert result.output.splitlines()[-1] == "nothing was uploaded: this was a dry run"


def test_publishing_wants_a_repository_unless_it_only_looks(config_file):
    result = publish(config_file)
    assert result.exit_code == 2
    assert "--repo-id is missing; name a repository such as you/model, or look first: --dry-run" in result.output


def test_every_command_has_an_entry_point_and_is_in_the_program_of_their_own():
    from axolotl_sdft.cli.commands import main

    written = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    section = written.partition('[project.entry-points."axolotl.cli_commands"]\n')[2].partition("\n\n")[0]
    expected = {f'{name} = "axolotl_sdft.cli:{name.replace("-", "_")}"' for name in main.commands}
    assert set(section.splitlines()) == expected
