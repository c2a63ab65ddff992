import json
import shutil
from pathlib import Path

import numpy
import pytest

pytest.importorskip("axolotl")

import axolotl.cli  # noqa: F401  its import sets up logging anew, which would take caplog's handler away in a test
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from safetensors.numpy import save_file

from axolotl_sdft import SDFTPlugin, cut_layers
from axolotl_sdft.config import RecoveryReportConfig, RowsConfig
from axolotl_sdft.core.errors import ConfigError, DatasetError
from axolotl_sdft.integrations.axolotl.recovery import held_out, recovery_spec, reported_models
from axolotl_sdft.integrations.axolotl.stages import prepare, record_start

ROWS = [{"instruction": f"Question {n}", "input": "", "output": f"Answer {n}"} for n in range(10)]


@pytest.fixture
def cfg(tiny_llama_dir, tmp_path, monkeypatch):
    """A raw configuration without a recovery_report block, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    write_rows("rows.jsonl", ROWS)
    plugins = ["axolotl_sdft.SDFTPlugin"]
    return {
        "base_model": str(tiny_llama_dir),
        "plugins": plugins,
        "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
    }


def write_rows(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def references(cfg, **settings):
    found = held_out(DictDefault(cfg), RowsConfig.model_validate(settings))
    return [target.reference for target in found.targets]


def test_rows_of_a_path_come_first_and_their_format_is_told_by_their_columns(cfg):
    write_rows("test.jsonl", [{"question": "Why?", "answer": "So."}])
    cfg |= {"test_datasets": [{"path": "rows.jsonl", "type": "alpaca"}]}
    assert references(cfg, path="test.jsonl") == ["So."]
    assert references(cfg, path="rows.jsonl", type="alpaca", num_samples=3) == ["Answer 0", "Answer 3", "Answer 6"]


def test_test_datasets_come_next(cfg):
    write_rows("test.jsonl", ROWS[8:])
    cfg |= {"test_datasets": [{"path": "test.jsonl", "type": "alpaca", "split": "train"}], "val_set_size": 0.5}
    assert references(cfg) == ["Answer 8", "Answer 9"]
    assert held_out(DictDefault(cfg), RowsConfig()).source == "test_datasets, 2 of 2 rows"


def test_test_datasets_without_a_split_are_read_as_axolotl_does(cfg):
    Path("data").mkdir()
    write_rows("data/train.jsonl", ROWS[:5])
    write_rows("data/test.jsonl", ROWS[5:])
    assert references(cfg | {"test_datasets": [{"path": "data", "type": "alpaca"}]}, num_samples=1) == ["Answer 5"]


def test_else_the_rows_that_training_holds_out(cfg):
    from axolotl_sdft.integrations.axolotl.datasets import load_rows
    from axolotl_sdft.integrations.axolotl.held_out import split_rows

    cfg |= {"val_set_size": 0.3, "seed": 42}
    entry = DictDefault(cfg["datasets"][0])
    [(_, expected)] = split_rows(DictDefault(cfg), [load_rows(DictDefault(cfg), entry, "datasets[0]")])

    assert len(expected) == 3
    assert references(cfg) == list(expected["output"])


@pytest.mark.parametrize("block", [{"dynsdpb": {}}, {"recovery_report": {}}])
def test_without_a_seed_training_is_given_one_so_that_it_holds_out_the_rows_of_the_report(cfg, block, caplog):
    cfg |= {"val_set_size": 0.3, **block}
    training = DictDefault(cfg)
    with caplog.at_level("INFO"):
        prepare(training, own_plugin=SDFTPlugin())
        prepare(training, own_plugin=SDFTPlugin())

    assert training.seed == 42
    # Rows that were prepared before, shuffled at random, must not be taken.
    assert training.dataset_prepared_path == "last_run_prepared/seed-42"
    assert caplog.text.count("seed is not set, so it is set to 42") == 1
    # Axolotl splits off the last of the shuffled rows.
    last = Dataset.from_list(ROWS).shuffle(seed=training.seed)["output"][-3:]
    assert sorted(references(cfg)) == sorted(last)


@pytest.mark.parametrize(
    "keys", [{"val_set_size": 0.3}, {"dynsdpb": {}}, {"dynsdpb": {}, "val_set_size": 3, "seed": 7}]
)
def test_a_seed_stays_as_it_is_where_it_is_set_or_nothing_of_the_plugin_is_on_or_split_off(cfg, keys):
    training = DictDefault(cfg | keys)
    prepare(training, own_plugin=SDFTPlugin())
    assert (training.seed, training.dataset_prepared_path) == (keys.get("seed"), None)


@pytest.fixture
def trained(cfg):
    """A configuration after its training, which has set 3 of its 10 rows aside."""
    cfg |= {"val_set_size": 0.3, "seed": 42, "dynsdpb": {}, "output_dir": "out"}
    record_start(DictDefault(cfg))
    Path("out/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": cfg["base_model"]}))
    Path("out/adapter_model.safetensors").touch()
    return cfg


@pytest.mark.parametrize("change", ["val_set_size", "seed", "rows"])
def test_the_rows_that_training_set_aside_stay_the_held_out_ones_and_a_change_is_noted(trained, change):
    before = held_out(DictDefault(trained), RowsConfig())
    assert (len(before.targets), before.notes) == (3, ())
    if change == "rows":
        write_rows("rows.jsonl", [{"instruction": "New", "input": "", "output": "New"}, *ROWS])
    now = trained | {"val_set_size": {"val_set_size": 0.5}, "seed": {"seed": 7}}.get(change, {})

    after = held_out(DictDefault(now), RowsConfig())
    assert after.targets == before.targets
    (note,) = after.notes
    assert note.startswith(
        "held-out rows: those that the training set aside; val_set_size, seed or datasets have chang"
    )


def test_rows_that_training_set_aside_are_there_when_they_are_not_split_off_any_more(trained):
    before = references(trained)
    Path("rows.jsonl").unlink()
    assert references(trained | {"val_set_size": 0, "seed": None}) == before


def test_rows_that_were_set_aside_and_are_gone_are_drawn_anew_and_noted(trained):
    before = references(trained)
    shutil.rmtree("sdft_prepared")
    found = held_out(DictDefault(trained), RowsConfig())
    assert [target.reference for target in found.targets] == before
    assert "which the training set aside, is gone; they are drawn anew" in found.notes[0]


def test_a_training_that_broke_off_leaves_the_held_out_rows_of_the_weights_before(trained):
    save_file({"weight": numpy.ones(3, "float32")}, "out/adapter_model.safetensors")
    before = references(trained)
    record_start(DictDefault(trained | {"val_set_size": 0.5}))
    assert references(trained) == before
    save_file({"weight": numpy.zeros(3, "float32")}, "out/adapter_model.safetensors")
    assert len(references(trained)) == 5


def test_a_model_that_was_trained_without_seed_and_record_is_noted(trained):
    Path("out/sdft_trained_on.json").unlink()
    assert held_out(DictDefault(trained), RowsConfig()).notes == ()
    (note,) = held_out(DictDefault(trained | {"seed": None}), RowsConfig()).notes
    assert note.startswith("held-out rows: seed is not set and the training recorded none; they are drawn anew")


def test_rows_that_can_not_be_recorded_do_not_stop_a_training(cfg, caplog):
    cfg |= {"val_set_size": 30, "seed": 42, "dynsdpb": {}, "output_dir": "out"}
    record_start(DictDefault(cfg))
    assert "the rows that val_set_size splits off can't be recorded (val_set_size is 30, which" in caplog.text


def test_held_out_rows_that_are_trained_on_as_well_are_counted_whatever_their_type(cfg):
    write_rows("test.jsonl", [{"question": f"Question {n}", "answer": f"Answer {n}"} for n in (1, 3, 99)])
    (note,) = held_out(DictDefault(cfg), RowsConfig(path="test.jsonl")).notes
    assert note == (
        "held-out rows: 2 of 3 are in datasets as well, where they are trained on; take them out there, or set "
        "recovery_report.held_out.path to other rows"
    )
    gone = cfg | {"datasets": [{"path": "gone.jsonl", "type": "alpaca"}]}
    (note,) = held_out(DictDefault(gone), RowsConfig(path="test.jsonl")).notes
    assert note.startswith(
        "held-out rows: whether they are in datasets as well can't be told (datasets[0].path is 'gon"
    )


def test_rows_that_stand_twice_in_a_dataset_may_be_held_out_and_trained(cfg):
    # Unshuffled, the last 4 of 12 rows are split off: 8, 9, and the second copies of 0 and 1.
    write_rows("rows.jsonl", [*ROWS, *ROWS[:2]])
    cfg |= {"val_set_size": 4, "shuffle_merged_datasets": False}
    (note,) = held_out(DictDefault(cfg), RowsConfig()).notes
    assert note.startswith(
        "held-out rows: 2 of 4 are in datasets as well, where they are trained on; set dataset_exact"
    )
    assert held_out(DictDefault(cfg | {"dataset_exact_deduplication": True}), RowsConfig()).notes == ()


def test_without_any_a_note_names_the_keys(cfg):
    found = held_out(DictDefault(cfg), RowsConfig())
    assert found.targets == ()
    assert "set recovery_report.held_out.path, test_datasets or val_set_size" in found.notes[0]


def test_of_a_conversation_the_last_trained_answer_counts(cfg):
    turns = [{"role": role, "content": text} for text in ("a", "b") for role in ("user", "assistant")]
    write_rows("chat.jsonl", [{"messages": turns}])
    (target,) = held_out(DictDefault(cfg), RowsConfig(path="chat.jsonl")).targets
    assert (len(target.context), target.reference) == (3, "b")


def test_of_preferences_the_chosen_answer_counts(cfg):
    pairs = [{"prompt": f"Question {n}", "chosen": f"Answer {n}", "rejected": "No."} for n in range(2)]
    write_rows("test.jsonl", pairs)
    cfg |= {"rl": "dpo", "test_datasets": [{"path": "test.jsonl", "type": "chatml.intel", "split": "train"}]}
    found = held_out(DictDefault(cfg), RowsConfig())
    assert [target.reference for target in found.targets] == ["Answer 0", "Answer 1"]
    assert [message["content"] for target in found.targets for message in target.context] == [
        "Question 0",
        "Question 1",
    ]


def test_completions_labelled_undesirable_are_no_reference_and_are_counted(cfg):
    write_rows("test.jsonl", [{"prompt": f"Why {n}?", "completion": f"{n}.", "label": n < 1} for n in range(3)])
    cfg |= {"rl": "kto", "test_datasets": [{"path": "test.jsonl", "type": "chatml.ultra", "split": "train"}]}
    found = held_out(DictDefault(cfg), RowsConfig())
    assert [target.reference for target in found.targets] == ["0."]
    assert found.source == "test_datasets, 1 of 1 rows"
    assert found.notes[0] == (
        "held-out rows: 2 of 3 of test_datasets[0] are left out: their completions are labelled undesirable"
    )


def test_rows_without_an_answer_are_left_out_and_counted(cfg):
    write_rows("test.jsonl", [{"instruction": "Why?", "output": output} for output in ("So.", None)])
    found = held_out(DictDefault(cfg), RowsConfig(path="test.jsonl", type="alpaca"))
    assert len(found.targets) == 1
    assert found.notes == ("held-out rows: 1 of 2 hold no prompt with an answer",)


def test_test_rows_of_running_text_are_noted_and_those_of_a_path_refused(cfg):
    write_rows("text.jsonl", [{"text": "once upon a time"}])
    cfg |= {"test_datasets": [{"path": "text.jsonl", "type": "completion", "split": "train"}]}
    (note,) = held_out(DictDefault(cfg), RowsConfig()).notes
    assert note.startswith("held-out rows: test_datasets[0].type is 'completion'")
    assert "recovery_report.held_out.path" in note
    with pytest.raises(DatasetError, match=r"recovery_report.held_out.type is 'completion'"):
        held_out(DictDefault(cfg), RowsConfig(path="text.jsonl", type="completion"))


def test_running_text_among_the_datasets_leaves_the_held_out_answers_of_the_others(cfg):
    write_rows("text.jsonl", [{"text": f"Once upon a time there were {n}."} for n in range(10)])
    cfg["datasets"] = [{"path": "text.jsonl", "type": "completion"}, *cfg["datasets"]]
    cfg |= {"val_set_size": 8, "seed": 42, "shuffle_merged_datasets": True}
    found = held_out(DictDefault(cfg), RowsConfig())
    [num_text] = [int(note.split()[3]) for note in found.notes if "of datasets[0] are left out" in note]
    assert 0 < num_text < 8
    assert len(found.targets) == 8 - num_text
    assert {target.reference for target in found.targets} < {row["output"] for row in ROWS}
    assert found.source == f"val_set_size, {8 - num_text} of {8 - num_text} rows"
    assert any("its rows are running text, without a prompt and an answer" in note for note in found.notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "nowhere.jsonl"}, r"recovery_report.held_out.path is 'nowhere.jsonl', which could not be loaded"),
        ({"path": "rows.jsonl", "type": "alpaca_chat.load_qa"}, r"recovery_report.held_out has no column 'question'"),
    ],
)
def test_a_path_that_can_not_be_read_is_refused_by_its_key(cfg, settings, message):
    with pytest.raises(DatasetError, match=message):
        references(cfg, **settings)


def names_and_notes(cfg, **settings):
    models, notes = reported_models(DictDefault(cfg), RecoveryReportConfig.model_validate(settings))
    return [model.name for model in models], notes


def test_models_that_are_not_there_yet_are_noted_with_the_command_that_makes_them(cfg):
    names, notes = names_and_notes(cfg | {"layer_pruning": {"drop_layers": [1]}, "output_dir": "./out"})
    assert names == ["seed"]
    assert notes == [
        "pruned: there is no pruned checkpoint yet; run axolotl prune-layers or axolotl train",
        "trained: out holds no model yet; run axolotl train",
    ]


def test_seed_pruned_named_and_trained_models_stand_in_this_order(cfg, tiny_llama_dir):
    from axolotl_sdft.integrations.axolotl.commands import prune_alone

    cfg |= {"layer_pruning": {"drop_layers": [1]}, "output_dir": "out"}
    prune_alone(DictDefault(cfg), dry_run=False)
    cut_layers(tiny_llama_dir, [2], "plain")
    Path("out").mkdir()
    Path("out/adapter_config.json").write_text("{}")
    Path("out/adapter_model.safetensors").touch()
    assert names_and_notes(cfg, models={"original rows": "plain"}) == (
        ["seed", "pruned", "original rows", "trained"],
        [],
    )


def test_a_base_model_that_was_pruned_before_stands_beside_the_seed_model_that_its_record_names(cfg, tiny_llama_dir):
    pruned_dir = cut_layers(tiny_llama_dir, [1], "pruned").absolute()
    cfg |= {"base_model": "pruned"}
    models, _ = reported_models(DictDefault(cfg), RecoveryReportConfig())
    assert [(model.name, model.folder) for model in models] == [("seed", tiny_llama_dir), ("pruned", pruned_dir)]
    assert recovery_spec(DictDefault(cfg)).provenance["seed_model"] == str(tiny_llama_dir)

    shutil.move("pruned/provenance", "elsewhere")
    assert names_and_notes(cfg)[0] == ["seed"]


def test_a_seed_model_that_was_pruned_itself_without_a_record_of_it_is_noted(cfg, tiny_llama_dir):
    shutil.copytree(tiny_llama_dir, "merged")
    settings = json.loads(Path("merged/config.json").read_text())
    Path("merged/config.json").write_text(json.dumps(settings | {"axolotl_sdft_pruning": "0123456789ab"}))
    note, _ = names_and_notes(cfg | {"base_model": "merged"})[1]
    assert note == (
        "seed: merged was pruned before, and nothing beside it names the unpruned model; all is measured against it as "
        "it is"
    )


@pytest.mark.parametrize(
    ("folder", "what"), [("nowhere", "is not a folder"), (".", "holds no weights with their config.json")]
)
def test_a_named_model_that_is_not_there_is_refused(cfg, folder, what):
    with pytest.raises(ConfigError, match=rf"recovery_report.models.plain is '{folder}', which {what}"):
        names_and_notes(cfg, models={"plain": folder})


def test_no_block_is_needed_and_the_report_stands_in_the_output_folder(cfg, tmp_path):
    spec = recovery_spec(DictDefault(cfg | {"output_dir": "out", "val_set_size": 2}))
    assert spec.output_dir == tmp_path / "out" / "recovery_report"
    assert spec.config == RecoveryReportConfig()
    assert [model.name for model in spec.models] == ["seed"]
    assert len(spec.held_out) == 2
    assert spec.provenance["held_out_rows"] == "val_set_size, 2 of 2 rows"


def test_a_wrong_key_of_the_block_is_refused(cfg):
    with pytest.raises(ConfigError, match=r"recovery_report: unknown key 'model'; did you mean 'models'"):
        recovery_spec(DictDefault(cfg | {"recovery_report": {"model": {}}}))
