"""Which checkpoint commands take that make none: the one that the trained model started from, or none at all."""

import json
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("axolotl")

import axolotl.cli  # noqa: F401  its import sets up logging anew, which would take caplog's handler away in a test
from axolotl.utils.dict import DictDefault
from safetensors.numpy import save_file

from axolotl_sdft import SDFTPlugin, cut_layers
from axolotl_sdft.core.errors import ArtifactError, CheckpointError, ConfigError
from axolotl_sdft.core.trained_on import trained_on, weights_dir
from axolotl_sdft.evaluation.summary import RunSummary
from axolotl_sdft.integrations.axolotl import compat
from axolotl_sdft.integrations.axolotl.commands import find_artifacts
from axolotl_sdft.integrations.axolotl.merging import merge_alone
from axolotl_sdft.integrations.axolotl.recovery import recovery_spec
from axolotl_sdft.integrations.axolotl.stages import add_model_card, prepare, record_start

USES = ("merge-lora", "inference", "evaluate", "quantize", "vllm-serve", "merge-sharded-fsdp-weights")
CALIBRATION = {"num_samples": 3, "sequence_len": 16, "general_share": 0}


@pytest.fixture
def config(tiny_llama_dir, tmp_path, monkeypatch):
    """A configuration in a project folder that holds its data and its seed model, which is the current one."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    shutil.copytree(tiny_llama_dir, "seed")
    write_rows(4)
    return {
        "base_model": "seed",
        "plugins": ["axolotl_sdft.SDFTPlugin"],
        "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
        "output_dir": "out",
        "layer_pruning": {"num_layers": 2, "patch": "none", "calibration": CALIBRATION},
        **{"micro_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 0.001, "num_epochs": 1},
    }


@pytest.fixture
def run(monkeypatch):
    """Prepare a configuration as a command does; return it as it is then."""

    def prepared(command, config):
        monkeypatch.setattr(compat, "running_command", lambda: command)
        cfg = DictDefault(json.loads(json.dumps(config)))
        prepare(cfg, own_plugin=SDFTPlugin())
        return cfg

    return prepared


@pytest.fixture
def train(run):
    """Do what a training does to the folders, up to its end; return the pruned checkpoint."""

    def trained(config, weight=1.0, ends=True, is_full=False):
        cfg = run("train", config)
        record_start(cfg)
        out = Path(config["output_dir"])
        out.mkdir(exist_ok=True)
        shutil.copyfile(Path(cfg.base_model) / "config.json", out / "config.json")
        if not is_full:
            (out / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": cfg.base_model}))
        if ends:
            save_weights(out / ("model.safetensors" if is_full else "adapter_model.safetensors"), weight)
        return Path(cfg.base_model)

    return trained


def write_rows(count, name="rows.jsonl"):
    rows = [{"instruction": f"Count to {n}.", "input": "", "output": "1, 2, 3 " * n} for n in range(1, count + 1)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_weights(path, value):
    import numpy

    save_file({"weight": numpy.full(3, value, dtype="float32")}, path)


def everything(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}


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


@pytest.mark.parametrize("with_record", [True, False], ids=["record", "adapter_config alone"])
def test_a_project_that_was_moved_and_lost_its_data_and_seed_still_has_its_checkpoint(
    config, run, train, tmp_path, monkeypatch, with_record
):
    pruned = train(config)
    if not with_record:
        Path("out/sdft_trained_on.json").unlink()
    shutil.rmtree("seed")
    Path("rows.jsonl").unlink()
    moved = (tmp_path / "project").rename(tmp_path / "elsewhere")
    monkeypatch.chdir(moved)
    for path in [moved / "sdft_prepared", *(moved / "sdft_prepared").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)

    assert Path(run("merge-lora", config).base_model) == moved / "sdft_prepared" / pruned.name


def test_a_model_that_was_moved_alone_is_told_where_its_checkpoint_was_looked_for(config, run, train, tmp_path):
    train(config)
    shutil.move("out", tmp_path / "out")
    shutil.rmtree("sdft_prepared")
    with pytest.raises(CheckpointError, match=r"was trained on the checkpoint seed-drop2-\w+, which is gone; .*looked"):
        run("inference", config | {"lora_model_dir": str(tmp_path / "out")})


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


def test_weights_that_a_broken_training_did_not_replace_keep_their_base(config, run, train):
    first = train(config)
    write_rows(7)
    train(config, ends=False)
    assert run("merge-lora", config).base_model == str(first)
    train(config, ends=False)
    assert run("merge-lora", config).base_model == str(first)
    second = train(config, weight=2.0)
    assert run("merge-lora", config).base_model == str(second) != str(first)


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
    Path("out/sdft_trained_on.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"sdft_trained_on.json is not a record of a training; delete it"):
        run("inference", config)


def test_a_second_pruning_of_a_cut_model_knows_its_own_seed(config, run, train):
    cut = cut_layers("seed", [5], "shorter")
    config |= {"base_model": str(cut), "layer_pruning": {"drop_layers": [1]}}
    pruned = train(config)
    assert run("inference", config).base_model == str(pruned)
    assert re.fullmatch(r"shorter-drop1-\w+", pruned.name)


@pytest.fixture
def moved_project(config, run, tmp_path, monkeypatch):
    """A project with an adapter of the pruned checkpoint, moved since, without data and seed model; its config."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cfg = run("train", config)
    record_start(cfg)
    model = AutoModelForCausalLM.from_pretrained(cfg.base_model)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    peft.get_peft_model(model, settings).save_pretrained("out")
    AutoTokenizer.from_pretrained(cfg.base_model).save_pretrained("out")
    write_rows(7)
    moved = (tmp_path / "project").rename(tmp_path / "elsewhere")
    monkeypatch.chdir(moved)
    shutil.rmtree("seed")
    Path("rows.jsonl").unlink()
    return config


def test_the_summary_of_a_moved_project_tells_what_was_pruned_and_lets_the_models_answer(moved_project):
    lines = list(RunSummary.of(find_artifacts(DictDefault(moved_project)), "Hello", max_new_tokens=2).lines())
    assert lines[0].startswith("Layers dropped    2 of 6: ")
    assert [line.split()[0] for line in lines if line.startswith("  ")] == ["pruned", "trained"]
    assert "Seed model        gone" in lines


def test_reports_and_merges_of_a_moved_project_find_the_checkpoint_under_the_adapter(moved_project, tmp_path):
    (pruned,) = Path("sdft_prepared").absolute().glob("[!.]*-drop2-*")
    assert weights_dir(Path("out").absolute()) == pruned
    assert weights_dir(Path("out")) == pruned
    merged = DictDefault(moved_project | {"merge": {"ratio": 0.5}})
    list(merge_alone(merged))
    adapter = json.loads(Path("out/sdft_merged/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(pruned)
    with pytest.raises(CheckpointError, match="base_model is 'seed'"):
        recovery_spec(DictDefault(moved_project))


def test_reports_and_merges_refuse_settings_that_ask_for_another_checkpoint(moved_project):
    cfg = DictDefault(moved_project | {"layer_pruning": {"drop_layers": [0]}, "merge": {}})
    for use in (find_artifacts, lambda cfg: list(merge_alone(cfg))):
        with pytest.raises(ConfigError, match=r"output_dir .*drop_layers is \[0\], was"):
            use(cfg)


def test_quantize_does_not_look_for_the_base_of_a_moved_adapter_at_its_old_place(moved_project, run, monkeypatch):
    with pytest.raises(ConfigError, match=r"whose base model was moved since; run axolotl merge-lora first, then"):
        run("quantize", moved_project)
    monkeypatch.setattr(compat, "option", {"base_model": "out/merged"}.get)
    assert "elsewhere" in run("quantize", moved_project).base_model


def test_evaluate_takes_the_rows_that_were_trained_on_where_data_and_seed_are_gone(config, run, caplog):
    from datasets import Dataset

    rows = Dataset.from_list([{"instruction": "Count.", "input": "", "output": "1"}])
    for name in ("distilled-1", "held-out-1"):
        rows.save_to_disk(f"rows/{name}")
    config |= {"self_distillation": {}, "val_set_size": 0.5}
    cfg = run("train", config)
    cfg.datasets = [DictDefault(config["datasets"][0] | {"path": str(Path("rows/distilled-1").absolute())})]
    cfg.test_datasets = [DictDefault(config["datasets"][0] | {"path": str(Path("rows/held-out-1").absolute())})]
    record_start(cfg)
    Path("out/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": cfg.base_model}))
    shutil.rmtree("seed")
    Path("rows.jsonl").unlink()

    evaluated = run("evaluate", config)

    assert [entry.path for entry in evaluated.datasets] == [str(Path("rows/distilled-1").absolute())]
    assert [entry.path for entry in evaluated.test_datasets] == [str(Path("rows/held-out-1").absolute())]
    assert evaluated.val_set_size == 0
    assert "those that were trained on are taken" in caplog.text
    shutil.rmtree("rows")
    assert run("evaluate", config).datasets[0].path == "rows.jsonl"
    assert "they are evaluated as datasets has them" in caplog.text


def test_a_merged_model_that_got_no_card_gets_that_of_its_checkpoint(config, run):
    cfg = run("train", config)
    Path("merged").mkdir()
    add_model_card(cfg, Path("merged"))
    assert "seed without 2 of its 6 layers" in Path("merged/README.md").read_text()
    Path("merged/README.md").write_text("Another card")
    add_model_card(cfg, Path("merged"))
    assert Path("merged/README.md").read_text() == "Another card"
