"""Which checkpoint commands take that make none: the one that the trained model started from, or none at all."""

import json
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("axolotl")

from axolotl_sdft import cut_layers
from axolotl_sdft.core.errors import CheckpointError, ConfigError
from axolotl_sdft.integrations.axolotl.stages import add_model_card
from tests.integrations.pruned_project import config as config
from tests.integrations.pruned_project import everything, write_rows
from tests.integrations.pruned_project import run as run
from tests.integrations.pruned_project import train as train

USES = ("merge-lora", "inference", "evaluate", "quantize", "vllm-serve", "merge-sharded-fsdp-weights")


def test_after_the_data_changed_each_command_takes_what_was_trained_on_and_makes_nothing(config, run, train):
    pruned = train(config)
    write_rows(7)
    before = everything(".")

    for command in USES:
        cfg = run(command, config)
        assert (cfg.base_model, cfg.sdft_seed_model) == (str(pruned), "seed")
        run(command, config)  # merge-lora prepares twice
    assert everything(".") == before


def test_a_checkpoint_whose_weights_were_deleted_since_is_told_at_once(config, run, train):
    pruned = train(config)
    (pruned / "model.safetensors").unlink()
    for command in ("merge-lora", "evaluate", "train"):
        with pytest.raises(CheckpointError, match=rf"the pruned checkpoint .*{pruned.name} is damaged: .* no weights"):
            run(command, config)


def test_the_seed_model_that_the_plugin_names_itself_does_not_switch_the_pruning_off(config, run):
    with pytest.raises(
        ConfigError, match=r"sdft_seed_model is 'seed', but the plugin sets .*which seed is not; remove"
    ):
        run("train", config | {"sdft_seed_model": "seed"})


def test_only_training_makes_another_checkpoint_of_changed_data(config, run, train):
    first = train(config)
    write_rows(7)
    assert Path(run("preprocess", config).base_model) != first


def test_a_checkpoint_that_was_copied_without_its_provenance_is_said_to_lack_it(config, run, train):
    pruned = train(config)
    shutil.rmtree(pruned / "provenance")
    told = rf"{pruned.name} is that one can't be told: its provenance/layer_pruning.json is missing, .*; put it back"
    with pytest.raises(CheckpointError, match=told):
        run("merge-lora", config)


def test_another_checkpoint_in_the_same_place_is_refused(config, run, train):
    config["layer_pruning"]["output_dir"] = "pruned"
    train(config)
    shutil.rmtree("pruned")
    write_rows(7)
    train(config | {"output_dir": "out2"})
    with pytest.raises(CheckpointError, match=r"trained on the checkpoint pruned, but .*pruned is another one by now"):
        run("merge-lora", config)
    assert Path(run("merge-lora", config | {"output_dir": "out2"}).base_model) == Path("pruned").absolute()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_layers": 3}, r"layer_pruning.num_layers is 3, was 2"),
        ({"num_layers": None, "drop_layers": [0, 1]}, r"layer_pruning.drop_layers is \[0, 1\], was \[\d, \d\]"),
        ({"metric": "block_influence"}, r"layer_pruning.metric is 'block_influence', was 'angular_distance'"),
        ({"calibration": {"num_samples": 2}}, r"layer_pruning.calibration.num_samples is 2, was 3; .*sequence_len"),
    ],
)
def test_settings_that_ask_for_another_checkpoint_are_refused_with_both_values(config, run, train, changes, told):
    pruned = train(config)
    block = {key: value for key, value in (config["layer_pruning"] | changes).items() if value is not None}
    for command in USES:
        with pytest.raises(ConfigError, match=rf"output_dir \(.*out\) .*{pruned.name}, but .*{told}"):
            run(command, config | {"layer_pruning": block})


def test_settings_that_ask_for_the_same_checkpoint_in_other_words_are_taken(config, run, train):
    pruned = train(config)
    dropped = json.loads((pruned / "provenance/layer_pruning.json").read_text())["drop_layers"]
    same = [
        {"drop_layers": dropped[::-1], "patch": "none"},
        config["layer_pruning"] | {"num_layers": 0.34, "max_shard_size": "1GB"},
    ]
    for block in same:
        assert run("inference", config | {"layer_pruning": block}).base_model == str(pruned)
    assert run("inference", config | {"base_model": str(Path("seed").absolute())}).base_model == str(pruned)
    Path("seed").rename("renamed")
    assert run("inference", config | {"base_model": "renamed"}).base_model == str(pruned)


def test_another_seed_model_or_revision_is_refused_by_both_names(config, run, train):
    train(config)
    with pytest.raises(ConfigError, match=r"base_model is 'org/other', was 'seed'"):
        run("evaluate", config | {"base_model": "org/other"})
    with pytest.raises(ConfigError, match=r"revision_of_model is 'v2', was None"):
        run("evaluate", config | {"revision_of_model": "v2"})


def test_without_the_pruning_block_an_adapter_is_not_put_onto_the_seed(config, run, train):
    pruned = train(config)
    unpruned = {key: value for key, value in config.items() if key != "layer_pruning"}
    with pytest.raises(ConfigError, match=rf"pruned checkpoint {pruned.name}, but base_model is 'seed'"):
        run("merge-lora", unpruned)
    named = unpruned | {"base_model": str(pruned)}
    assert run("merge-lora", named).base_model == str(pruned)


def test_a_model_that_was_trained_unpruned_is_not_put_onto_a_pruned_one(config, run, train):
    train({key: value for key, value in config.items() if key != "layer_pruning"})
    with pytest.raises(ConfigError, match=r"trained on seed, which layer_pruning did not make"):
        run("merge-lora", config)


def test_an_adapter_elsewhere_and_one_of_its_checkpoints_have_their_own_base(config, run, train):
    first = train(config)
    shutil.copytree("out", "kept")
    (Path("out") / "checkpoint-2").mkdir()
    shutil.copyfile("out/adapter_config.json", "out/checkpoint-2/adapter_config.json")
    write_rows(7)
    second = train(config, weight=2.0)

    for folder, expected in (("kept", first), ("out/checkpoint-2", first), ("out", second)):
        assert run("merge-lora", config | {"lora_model_dir": folder}).base_model == str(expected)


@pytest.mark.parametrize("command", ["inference", "evaluate"])
@pytest.mark.parametrize(("is_full", "option"), [(False, "lora_model_dir"), (True, "base_model")])
def test_a_command_that_reads_no_trained_model_unless_told_to_says_so(
    command, is_full, option, config, run, train, caplog
):
    run("train", config)
    run(command, config)
    assert "as it was before training" not in caplog.text  # nothing is trained yet
    train(config, is_full=is_full)
    run(command, config | {option: "out"})
    assert "as it was before training" not in caplog.text
    run(command, config)
    assert f"to have the trained one, add --{option.replace('_', '-')} out" in caplog.text


@pytest.mark.parametrize("flags", [{"inference": True}, {"merge_lora": True}])
def test_outside_the_command_line_what_is_for_inference_makes_nothing(config, run, train, flags):
    pruned = train(config)
    write_rows(7)
    assert run(None, config | flags).base_model == str(pruned)
    assert run(None, config).base_model != str(pruned)


def test_before_training_the_checkpoint_that_the_configuration_asks_for_is_taken_if_it_is_there(config, run):
    with pytest.raises(
        ConfigError, match=r"`axolotl evaluate` makes no pruned checkpoint, .*; run axolotl train first"
    ):
        run("evaluate", config)
    assert not Path("sdft_prepared").exists()
    pruned = run("preprocess", config).base_model
    assert run("evaluate", config).base_model == pruned

    write_rows(7)
    with pytest.raises(ConfigError, match=r"asks for, seed-drop2-\w+, is not there either"):
        run("evaluate", config)
    shutil.rmtree("seed")
    with pytest.raises(ConfigError, match=r"asks for can't be told: base_model is 'seed'"):
        run("evaluate", config)


def test_a_second_pruning_of_a_cut_model_knows_its_own_seed(config, run, train):
    cut = cut_layers("seed", [5], "shorter")
    config |= {"base_model": str(cut), "layer_pruning": {"drop_layers": [1]}}
    pruned = train(config)
    assert run("inference", config).base_model == str(pruned)
    assert re.fullmatch(r"shorter-drop1-\w+", pruned.name)


def test_a_merged_model_that_got_no_card_gets_that_of_its_checkpoint(config, run):
    cfg = run("train", config)
    Path("merged").mkdir()
    add_model_card(cfg, Path("merged"))
    assert "seed without 2 of its 6 layers" in Path("merged/README.md").read_text()
    Path("merged/README.md").write_text("Another card")
    add_model_card(cfg, Path("merged"))
    assert Path("merged/README.md").read_text() == "Another card"
