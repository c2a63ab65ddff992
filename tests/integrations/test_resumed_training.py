"""What a training goes on from, and the record by which a trained model is known afterwards."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault

from axolotl_sdft.core.errors import ArtifactError, ConfigError
from axolotl_sdft.core.trained_on import trained_on
from axolotl_sdft.integrations.axolotl.recovery import recovery_spec
from axolotl_sdft.integrations.axolotl.stages import record_start
from tests.integrations.pruned_project import config as config
from tests.integrations.pruned_project import everything, save_weights, write_rows
from tests.integrations.pruned_project import run as run
from tests.integrations.pruned_project import train as train


def test_weights_that_a_broken_training_did_not_replace_keep_their_base(config, run, train):
    first = train(config)
    write_rows(7)
    train(config, ends=False)
    assert run("merge-lora", config).base_model == str(first)
    train(config, ends=False)
    assert run("merge-lora", config).base_model == str(first)
    second = train(config, weight=2.0)
    assert run("merge-lora", config).base_model == str(second) != str(first)


@pytest.mark.parametrize("resumed", [{"resume_from_checkpoint": "out/checkpoint-2"}, {"lora_model_dir": "out"}])
def test_training_does_not_go_on_from_a_model_of_another_checkpoint(config, run, train, resumed):
    pruned = train(config)
    (Path("out") / "checkpoint-2").mkdir()
    shutil.copyfile("out/adapter_config.json", "out/checkpoint-2/adapter_config.json")
    assert run("train", config | resumed).base_model == str(pruned)

    write_rows(7)
    made = everything("sdft_prepared")
    with pytest.raises(ConfigError, match=rf"trained on {pruned.name}, but .*another checkpoint by now, seed-drop2-"):
        run("train", config | resumed)
    assert everything("sdft_prepared") == made
    assert run("train", config).base_model != str(pruned)


def test_training_that_resumes_by_itself_looks_at_the_newest_checkpoint(config, run, train):
    train(config)
    Path("out/checkpoint-10").mkdir()
    shutil.copyfile("out/adapter_config.json", "out/checkpoint-10/adapter_config.json")
    write_rows(7)
    with pytest.raises(ConfigError, match=r"auto_resume_from_checkpoints \(.*checkpoint-10\)"):
        run("train", config | {"auto_resume_from_checkpoints": True})


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"layer_pruning": None}, "holds a model that was not pruned, but layer_pruning is set; put the config"),
        ({"layer_pruning": {"num_layers": 3, "patch": "none"}}, "goes on from a model that was trained on seed-drop3-"),
    ],
)
@pytest.mark.parametrize(
    "resumed", [{"resume_from_checkpoint": "out/checkpoint-2"}, {"auto_resume_from_checkpoints": True}]
)
def test_training_does_not_go_on_from_a_full_checkpoint_of_other_layers(config, run, train, other, told, resumed):
    earlier = {key: value for key, value in (config | other).items() if value is not None}
    train(earlier, is_full=True)
    Path("out/checkpoint-2").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(f"out/{name}", f"out/checkpoint-2/{name}")
    assert run("train", earlier | resumed).output_dir == "out"

    train(config, weight=2.0, is_full=True)
    (key,) = resumed
    with pytest.raises(ConfigError, match=rf"{key} \(.*checkpoint-2\) {told}"):
        run("train", config | resumed)


def test_a_full_checkpoint_without_a_record_is_known_by_its_marker(config, run, train):
    train(config, is_full=True)
    Path("out").rename("checkpoint-2")
    Path("checkpoint-2/sdft_trained_on.json").unlink()
    resumed = {"resume_from_checkpoint": "checkpoint-2"}
    assert run("train", config | resumed).output_dir == "out"
    with pytest.raises(ConfigError, match=r"holds a model that was pruned with other settings than .*; put the"):
        run("train", config | resumed | {"layer_pruning": {"num_layers": 3, "patch": "none"}})


@pytest.mark.parametrize("ends", [True, False], ids=["that ended", "that broke off"])
def test_a_full_checkpoint_of_an_earlier_training_stays_known_as_its(config, run, train, ends):
    first = train(config, is_full=True, ends=ends)
    Path("out/checkpoint-2").mkdir()
    shutil.copyfile("out/config.json", "out/checkpoint-2/config.json")
    save_weights(Path("out/checkpoint-2/model.safetensors"), 1.0)

    write_rows(7)
    second = train(config, weight=2.0, is_full=True, ends=False)

    with pytest.raises(ConfigError, match=rf"checkpoint-2\) goes on .* trained on {first.name}, .*{second.name}"):
        run("train", config | {"auto_resume_from_checkpoints": True})
    assert trained_on(Path("out/checkpoint-2")).find() == first
    write_rows(4)
    assert run("train", config | {"auto_resume_from_checkpoints": True}).base_model == str(first)

    save_weights(Path("out/checkpoint-2/model.safetensors"), 3.0)  # the later training has come so far
    assert trained_on(Path("out/checkpoint-2")).find() == second


def test_the_adapter_of_an_earlier_training_where_a_whole_model_is_to_be_is_warned_of_and_noted(
    config, run, train, caplog
):
    told = "out) holds the adapter of an earlier training, but this one trains the whole model"
    train(config | {"adapter": "lora"})
    train(config | {"adapter": "lora"})
    assert told not in caplog.text
    assert not [note for note in recovery_spec(DictDefault(config)).notes if "beside" in note]

    train(config, weight=2.0, is_full=True)
    assert told in caplog.text
    [note] = [note for note in recovery_spec(DictDefault(config)).notes if "beside" in note]
    assert note.endswith("if those were trained last, delete adapter_config.json there and start again")


def test_a_fully_trained_model_is_known_by_its_record_and_used_as_it_is_when_named(config, run, train):
    pruned = train(config, is_full=True)
    write_rows(7)
    assert run("evaluate", config).base_model == str(pruned)
    assert run("evaluate", config | {"base_model": "out"}).base_model == "out"
    Path("out/sdft_trained_on.json").unlink()
    with pytest.raises(ConfigError, match="was pruned with other settings than"):
        run("evaluate", config | {"layer_pruning": {"num_layers": 1}})


def test_only_the_main_process_writes_the_record(config, run, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    record_start(run("train", config))
    assert not Path("out/sdft_trained_on.json").exists()


def test_the_record_holds_no_path_of_this_machine(config, train, tmp_path):
    train(config)
    assert str(tmp_path) not in Path("out/sdft_trained_on.json").read_text()


def test_a_record_that_is_broken_is_one_clear_error(config, run, train):
    train(config)
    Path("out/sdft_trained_on.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"sdft_trained_on.json is not a record of a training; delete it"):
        run("inference", config)
