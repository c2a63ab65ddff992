"""Kinds of datasets that can't be rewritten, also where Python calls instead of a configuration."""

import json
from io import BytesIO

import datasets
import pytest
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDatasetDict,
    Sequence,
    Value,
    load_dataset,
)

from axolotl_sdft import SelfDistillationConfig, distill_dataset
from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.distillation.rows.validation import is_messages, shown_features
from tests.distillation import echo_backend

ROWS = Dataset.from_dict({"instruction": ["Hi"], "output": ["Hello."]})


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (ROWS.to_iterable_dataset(), "dataset is streamed, .* load it with streaming=False"),
        (DatasetDict(train=ROWS, test=ROWS), r"dataset holds the splits train, test; pass one of them, .*\['train'\]"),
        (IterableDatasetDict(train=ROWS.to_iterable_dataset()), "dataset holds the splits train; pass one of them"),
        ([{"instruction": "Hi"}], "dataset is a list, not a datasets.Dataset; Dataset.from_list makes one"),
        (ROWS.select([]), "dataset has no rows"),
    ],
)
def test_only_one_whole_dataset_is_taken(dataset, message, seed_dir):
    with pytest.raises(DatasetError, match=message):
        distill_dataset(dataset, SelfDistillationConfig(), seed_model=seed_dir)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (("prompt", "chosen", "rejected"), "chosen and rejected answers are compared in training"),
        (("input_ids", "labels"), "its rows are tokenized already"),
        (("question", "response"), "Set another type or the field names"),
    ],
)
def test_a_missing_column_is_told_with_the_reason_where_the_others_show_it(columns, reason, seed_dir):
    dataset = Dataset.from_dict({name: ["x"] for name in columns})
    with pytest.raises(
        DatasetError, match=rf"dataset has no column 'instruction', .* its columns: {columns[0]}.*{reason}"
    ):
        distill_dataset(dataset, SelfDistillationConfig(), seed_model=seed_dir, dataset_config={"type": "alpaca"})


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("chatml.intel", "compare answers"),
        ("pretrain", "running text"),
        ("kto", "compare answers"),
        ("axolotl.integrations.kd.chat_template", "predictions for the very tokens"),
    ],
)
def test_rows_that_are_not_there_to_be_imitated_are_refused_by_their_type(kind, reason, seed_dir):
    with pytest.raises(DatasetError, match=rf"dataset.type is '{kind}', which can't be self-distilled: .*{reason}"):
        distill_dataset(ROWS, SelfDistillationConfig(), seed_model=seed_dir, dataset_config={"type": kind})


def test_rows_that_are_tokenized_are_refused_whatever_their_type_says(seed_dir):
    columns = {"input_ids": [[1, 2]], "attention_mask": [[1, 1]], "labels": [[1, 2]]}
    rows = Dataset.from_dict({**columns, "instruction": ["Hi"], "output": ["Hello."]})
    with pytest.raises(DatasetError, match=r"dataset holds rows that are tokenized already .* whatever their type"):
        distill_dataset(rows, SelfDistillationConfig(), seed_model=seed_dir)


CHAT = [[{"role": "user", "content": "Hi"}]]


@pytest.mark.parametrize(
    ("columns", "kind", "message"),
    [
        (
            {"instruction": ["6 * 7"], "output": [42]},
            "alpaca",
            r"column 'output' holds int64, but its type 'alpaca' needs text there",
        ),
        ({"instruction": ["6 / 4"], "output": [1.5]}, "alpaca", r"column 'output' holds float64"),
        ({"instruction": ["Hi"], "output": [["Hello."]]}, "alpaca", r"column 'output' holds List, .* needs text there"),
        (
            {"instruction": [["Hi"]], "output": ["Hello."]},
            "alpaca",
            r"column 'instruction' holds List, .* needs text or n",
        ),
        ({"text": [7], "start": ["7"]}, "completion", r"column 'text' holds int64, but its type 'completion'"),
        (
            {"prompt": CHAT, "completion": CHAT},
            {"field_instruction": "prompt", "field_output": "completion"},
            r"column 'completion' holds lists of messages, .* use type: chat_template",
        ),
        (
            {"prompt": CHAT, "completion": ["Hello."]},
            {"field_instruction": "prompt", "field_output": "completion"},
            r"column 'prompt' holds lists of messages",
        ),
    ],
)
def test_a_column_that_should_hold_text_and_does_not_is_named_with_what_it_holds(columns, kind, message, seed_dir):
    config = {"type": kind, "prompt_field": "start"}
    with pytest.raises(DatasetError, match=f"dataset: {message}"):
        distill_dataset(
            Dataset.from_dict(columns), SelfDistillationConfig(), seed_model=seed_dir, dataset_config=config
        )


def test_labels_with_names_are_numbers_too(seed_dir):
    features = Features({"instruction": Value("string"), "output": ClassLabel(names=["bad", "good"])})
    rows = Dataset.from_dict({"instruction": ["Fine film."], "output": [1]}, features=features)
    with pytest.raises(DatasetError, match=r"column 'output' holds int64"):
        distill_dataset(rows, SelfDistillationConfig(), seed_model=seed_dir)


def upper(columns):
    return {name: [value.upper() for value in values] for name, values in columns.items()}


@pytest.mark.parametrize("kind", ["pandas", "arrow", "numpy", "torch", "transform", "subset"])
def test_rows_with_a_format_are_taken_as_they_are_stored(kind, tmp_path, seed_dir, echo_plugin, caplog):
    rows = Dataset.from_dict({"instruction": ["Name a sea."], "output": ["The Baltic."], "id": ["r7"]})
    if kind == "transform":
        dataset = rows.with_transform(upper)
    else:
        dataset = rows.with_format("torch", columns=["id"]) if kind == "subset" else rows.with_format(kind)
    config = SelfDistillationConfig(
        output_dir=str(tmp_path / "out"), generation={"backend": "echo"}, checks=(), template="plain", gap_samples=0
    )
    with caplog.at_level("INFO"):
        distilled = distill_dataset(dataset, config, seed_model=seed_dir)
    assert (distilled[0]["instruction"], distilled[0]["id"]) == ("Name a sea.", "r7")
    assert distilled[0]["sdft_source"] == "distilled"
    said = "has a transform" if kind == "transform" else "rows are taken as they are stored"
    assert said in caplog.text
    # with the same rows, the format makes no other dataset
    assert distill_dataset(rows, config, seed_model=seed_dir).cache_files == distilled.cache_files


def test_pictures_keep_the_bytes_of_their_files(tmp_path, seed_dir, echo_plugin):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "red.jpg").write_bytes(_jpeg(image, "red"))
    (tmp_path / "blue.jpg").write_bytes(_jpeg(image, "blue"))
    files = [str(tmp_path / "red.jpg"), str(tmp_path / "blue.jpg")]
    columns = {"instruction": ["Hi", "Ho"], "output": ["A", "B"], "photo": files, "album": [files, files[:1]]}
    features = {"photo": Image(), "album": Sequence(Image()), "instruction": Value("string"), "output": Value("string")}
    rows = Dataset.from_dict(columns, features=Features(features))
    config = SelfDistillationConfig(
        output_dir=str(tmp_path / "out"), generation={"backend": "echo"}, checks=(), template="plain", gap_samples=0
    )
    distilled = distill_dataset(rows, config, seed_model=seed_dir)
    assert distilled.features["photo"] == Image()
    assert distilled[1]["photo"].getpixel((0, 0)) == rows[1]["photo"].getpixel((0, 0))
    stored = distilled.with_format("arrow")[:].column("photo").to_pylist()
    assert [photo["bytes"] for photo in stored] == [_jpeg(image, "red"), _jpeg(image, "blue")]
    assert len(distilled[0]["album"]) == 2


def _jpeg(image, colour):
    buffer = BytesIO()
    image.new("RGB", (8, 8), colour).save(buffer, "JPEG", quality=40)
    return buffer.getvalue()


needs_json = pytest.mark.skipif(not hasattr(datasets, "Json"), reason="this version of datasets has no such type")
QUESTION = {"role": "user", "content": "What is 6 * 7?"}
CALL = {"type": "function", "function": {"name": "multiply", "arguments": "{}"}}


def lines(tmp_path, *rows):
    """Return rows as the datasets library reads them from JSON lines."""
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path))


@needs_json
@pytest.mark.parametrize(
    "turns",
    [
        [QUESTION, {"role": "assistant", "content": "It is 42.", "weight": 1}],
        [QUESTION, {"role": "assistant", "content": "It is 42.", "reasoning_content": "Six times seven."}],
        [
            *(
                QUESTION,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "42"},
            ),
            {"role": "assistant", "content": "It is 42."},
        ],
    ],
)
def test_messages_with_different_keys_are_rewritten_and_keep_them(turns, tmp_path, seed_dir, echo_plugin):
    rows = lines(tmp_path, {"messages": turns})
    config = SelfDistillationConfig(
        output_dir=str(tmp_path / "out"), generation={"backend": "echo"}, checks=(), template="plain", gap_samples=0
    )
    distilled = distill_dataset(rows, config, seed_model=seed_dir)
    assert distilled.features["messages"] == rows.features["messages"]
    assert distilled[0]["messages"] == [*turns[:-1], {**turns[-1], "content": "1 messages, the last ends in 42."}]


@needs_json
@pytest.mark.parametrize("answer", ["42", "null", '{"result": 42}', 'He said "42".'])
def test_an_answer_stays_text_where_the_contents_of_messages_are_of_different_types(
    answer, tmp_path, seed_dir, echo_plugin, monkeypatch
):
    parts = [{"role": role, "content": [{"type": "text", "text": role}]} for role in ("user", "assistant")]
    rows = lines(tmp_path, {"messages": [QUESTION, {"role": "assistant", "content": "It is 42."}]}, {"messages": parts})
    asked = {"Rewrite: It is 42.": [answer], "Rewrite: assistant": ["B"]}
    monkeypatch.setattr(echo_backend, "SAYS", asked)
    config = SelfDistillationConfig(
        output_dir=str(tmp_path / "out"), generation={"backend": "asked"}, checks=(), template="plain", gap_samples=0
    )
    distilled = distill_dataset(rows, config, seed_model=seed_dir)
    assert distilled[0]["messages"] == [QUESTION, {"role": "assistant", "content": answer}]
    assert distilled[1]["messages"][1]["content"] == [{"type": "text", "text": "B"}]


@needs_json
def test_columns_that_hold_json_are_taken_for_what_their_first_value_shows(tmp_path):
    rows = lines(tmp_path, {"output": None, "id": 1}, {"output": "So.", "id": 2}, {"output": ["So."], "id": 3})
    assert shown_features(rows) == {"output": Value("string"), "id": Value("int64")}
    turn = {"role": "user", "content": "Why?"}
    said = lines(tmp_path, {"messages": [turn, {**turn, "name": "Ann"}]}, {"messages": [{**turn, "weight": 0}]})
    assert is_messages(shown_features(said)["messages"])
