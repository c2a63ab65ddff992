"""The script for the tasks of GLUE runs as it is, on a few rows of the same form and a small BERT."""

import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "example_configs"
PAIRS = [("It rains.", "It is wet.", 0), ("It rains.", "It is dry.", 1), ("He sleeps.", "He rests.", 0)]


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory):
    """A BERT of a quarter of a million parameters that has seen one epoch of other rows."""
    folder = tmp_path_factory.mktemp("encoder")
    load("dynsdpb_encoder").main(["--output_dir", str(folder), "--epochs", "1"])
    return folder


@pytest.fixture
def rows_dir(tmp_path):
    rows = [{"sentence1": first, "sentence2": second, "label": label} for first, second, label in PAIRS * 4]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_it_trains_on_pairs_saves_the_model_and_counts_validation_rows(encoder_dir, rows_dir, tmp_path, capsys):
    out = tmp_path / "out"
    model = two_classes(encoder_dir, tmp_path / "two")
    share = load("dynsdpb_glue").main(
        ["--task", "rte", "--model", str(model), "--data", str(rows_dir), "--output_dir", str(out), "--epochs", "2"]
    )
    assert 0.0 <= share <= 1.0
    assert f"rte: {share:.1%} of the 12 validation rows are told right" in capsys.readouterr().out
    assert (out / "model.safetensors").is_file()


def two_classes(encoder_dir, folder):
    """The encoder with a new classifier, since the rows that it has seen had three classes."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(encoder_dir, num_labels=2, ignore_mismatched_sizes=True)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder_dir).save_pretrained(folder)
    return folder


def test_one_text_stays_one_text_and_two_are_a_pair(encoder_dir):
    from datasets import Dataset
    from transformers import AutoTokenizer

    script, tokenizer = load("dynsdpb_glue"), AutoTokenizer.from_pretrained(encoder_dir)
    (one,) = script.tokenized(Dataset.from_list([{"sentence": "my invoice", "label": 1}]), "sst2", tokenizer)
    assert one["input_ids"] == tokenizer("my invoice")["input_ids"]
    assert one["labels"] == 1
    pair = {"sentence1": "my invoice", "sentence2": "last year", "label": 0}
    (two,) = script.tokenized(Dataset.from_list([pair]), "rte", tokenizer)
    assert two["input_ids"] == tokenizer("my invoice", "last year")["input_ids"]


@pytest.mark.parametrize(("task", "split"), [("mnli", "validation_matched"), ("rte", "validation")])
def test_the_validation_rows_of_a_task_are_those_of_its_split(task, split, monkeypatch):
    script = load("dynsdpb_glue")
    splits = {"train": "training rows", split: "validation rows"}
    monkeypatch.setattr(
        script, "load_dataset", lambda path, name: splits if (path, name) == ("nyu-mll/glue", task) else {}
    )
    assert script.load(task, None) == ("training rows", "validation rows")
