import json

import numpy as np
import pytest

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault
from datasets import Dataset, load_from_disk
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.core.errors import ArtifactError, ConfigError
from axolotl_sdft.integrations.axolotl.held_out import is_split, parts_of, rows_folder, split_rows


def rows(*ids):
    return Dataset.from_dict({"id": list(ids)})


def ids(parts):
    return [(list(training["id"]), list(held_out["id"])) for training, held_out in parts]


def test_without_shuffling_the_last_rows_are_held_out():
    cfg = DictDefault(val_set_size=0.25, shuffle_merged_datasets=False)
    # a quarter of 6 rows is 1.5, which is rounded up
    assert ids(split_rows(cfg, [rows(0, 1, 2, 3), rows(4, 5)])) == [([0, 1, 2, 3], []), ([], [4, 5])]


def test_with_shuffling_the_rows_are_held_out_that_come_last():
    order = np.random.default_rng(7).permutation(20)
    ((training, held_out),) = ids(split_rows(DictDefault(val_set_size=4, seed=7), [rows(*range(20))]))
    assert held_out == sorted(order[-4:].tolist())
    assert training == sorted(order[:-4].tolist())


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    size=st.floats(0.1, 0.9) | st.just(2),
    seed=st.none() | st.integers(0, 9),
    shuffled_before=st.booleans(),
)
def test_every_row_is_in_one_part_and_a_second_split_is_the_same(sizes, size, seed, shuffled_before):
    total = sum(sizes)
    cfg = DictDefault(val_set_size=size, seed=seed, shuffle_before_merging_datasets=shuffled_before)
    if size == 2 and total <= 2:
        return
    num_held_out = size if size == 2 else -int(-size * total // 1)
    if num_held_out >= total:
        return
    datasets = [rows(*range(sum(sizes[:index]), sum(sizes[: index + 1]))) for index in range(len(sizes))]
    parts = ids(split_rows(cfg, datasets))
    for dataset, (training, held_out) in zip(datasets, parts, strict=True):
        assert sorted(training + held_out) == list(dataset["id"])
        assert (training, held_out) == (sorted(training), sorted(held_out))
    assert sum(len(held_out) for _, held_out in parts) == num_held_out
    assert ids(split_rows(cfg, datasets)) == parts


@pytest.mark.parametrize("size", [6, 1, 0.999, -1])
def test_a_size_that_leaves_no_training_rows_is_refused(size):
    with pytest.raises(ConfigError, match=rf"val_set_size is {size}, which can't be split off the 6 rows of datasets"):
        split_rows(DictDefault(val_set_size=size), [rows(*range(6))])


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [({}, False), ({"val_set_size": 0}, False), ({"val_set_size": 0.1}, True), ({"val_set_size": 5}, True)],
)
def test_rows_are_split_off_only_for_a_validation_set(cfg, expected):
    assert is_split(cfg) == expected
    assert not is_split({**cfg, "test_datasets": [{"path": "test.jsonl"}]})


ALPACA = {"type": "alpaca"}
QA = {"type": {"field_instruction": "q", "field_output": "a"}}
SHAREGPT = {
    "type": "chat_template",
    "field_messages": "conversations",
    "message_property_mappings": {"role": "from", "content": "value"},
}


def table(*lines):
    return Dataset.from_list(list(lines))


def left(cfg, *sources):
    named = [(f"datasets[{index}]", entry, dataset) for index, (entry, dataset) in enumerate(sources)]
    return parts_of(DictDefault(dataset_exact_deduplication=True, **cfg), named)


def kept_ids(parts):
    return [list(part.training["id"]) for part in parts]


def asks(question, answer="Yes.", number=0):
    return {"instruction": question, "output": answer, "id": number}


def test_rows_that_train_the_same_are_left_in_once_whatever_else_their_columns_say(caplog):
    one = table(asks("Is it?", number=1), asks("Was it?", number=2), asks("Is it?", number=3))
    two = table(asks("Was it?", number=4), asks("Is it?", "No.", number=5))
    parts = left({}, (ALPACA, one), (ALPACA, two))
    assert kept_ids(parts) == [[1, 2], [5]]
    assert "1 of 3 rows of datasets[0] train what another row trains, and are left out" in caplog.text


def test_rows_of_other_types_are_equal_only_where_they_are_trained_in_the_same_words():
    alpaca = table(asks("Is it?", number=1))
    other = table({"q": "Is it?", "a": "Yes.", "id": 2})
    assert kept_ids(left({}, (ALPACA, alpaca), (QA, other))) == [[1], [2]]
    same = {"type": {**QA["type"], "no_input_format": "USER: {instruction}\nASSISTANT:"}}
    assert kept_ids(left({}, ({"type": "alpaca_chat.load_no_prompt"}, alpaca), (same, other))) == [[1], []]


def test_conversations_are_compared_by_what_is_said_in_whichever_keys():
    chat = [{"role": "user", "content": "Hi", "seen": "monday"}, {"role": "assistant", "content": "Hello."}]
    again = [{"role": "user", "content": "Hi", "seen": "sunday"}, {"role": "assistant", "content": "Hello."}]
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    told = table({"messages": chat, "id": 1}, {"messages": again, "id": 2})
    other = table({"conversations": json.dumps(sharegpt), "id": 3})
    parts = left({}, ({"type": "chat_template"}, told), (SHAREGPT, other))
    assert kept_ids(parts) == [[1], []]
    assert parts[1].is_emptied


@pytest.mark.parametrize(
    ("more", "num_kept"),
    [({"tool_calls": [{"function": {"name": "f"}}]}, 2), ({"reasoning_content": "Hm."}, 2), ({"id": "m7"}, 1)],
)
def test_keys_of_a_message_count_that_a_chat_template_writes(more, num_kept):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    rows = table(
        {"messages": json.dumps(chat), "id": 1}, {"messages": json.dumps([chat[0], {**chat[1], **more}]), "id": 2}
    )
    (part,) = left({}, ({"type": "chat_template"}, rows))
    assert len(part.training) == num_kept


HELLO = {"role": "assistant", "content": "Hello."}
PARTS = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo."}]


@pytest.mark.parametrize(
    ("entry", "answers"),
    [
        (
            {"message_property_mappings": {"role": "role", "content": "content", "reasoning_content": "thoughts"}},
            [{**HELLO, "thoughts": "Hm."}, {**HELLO, "thoughts": "Ah."}],
        ),
        ({"field_thinking": "thoughts"}, [{**HELLO, "thoughts": "Hm."}, {**HELLO, "thoughts": "Ah."}]),
        (
            {},
            [
                {**HELLO, "content": [{**PARTS[0], "train": True}, PARTS[1]]},
                {**HELLO, "content": [PARTS[0], {**PARTS[1], "train": True}]},
            ],
        ),
    ],
)
def test_conversations_that_train_something_else_of_the_same_words_are_all_kept(entry, answers):
    chats = [[{"role": "user", "content": "Hi"}, answer] for answer in answers]
    rows = table(*({"messages": json.dumps(chat), "id": number} for number, chat in enumerate(chats)))
    assert kept_ids(left({}, ({"type": "chat_template", **entry}, rows))) == [[0, 1]]


def test_rows_whose_conversation_or_segments_can_not_be_read_are_compared_as_a_whole():
    rows = table({"messages": None, "id": 1}, {"messages": None, "id": 2}, {"messages": None, "id": 2})
    assert kept_ids(left({}, ({"type": "chat_template"}, rows))) == [[1, 2]]
    rows = table({"segments": None, "id": 1}, {"segments": None, "id": 2}, {"segments": None, "id": 2})
    assert kept_ids(left({}, ({"type": "input_output"}, rows))) == [[1, 2]]


@pytest.mark.parametrize(
    ("entry", "lines"),
    [
        ({"type": "completion", "field": "body"}, [{"body": "Tea.", "id": 1}, {"body": "Tea.", "id": 2}]),
        (
            {"type": "input_output"},
            [{"segments": [{"label": True, "text": "Tea.", "by": name}], "id": name} for name in (1, 2)],
        ),
        (
            {"type": "completion", "prompt_field": "start"},
            [{"text": "Tea.", "start": "T", "id": 1}, {"text": "Tea.", "start": "Te", "id": 2}],
        ),
    ],
)
def test_running_text_is_compared_by_the_text(entry, lines):
    assert kept_ids(left({}, (entry, table(*lines)))) == [[1]]


def test_a_type_that_is_not_rewritten_is_compared_by_the_whole_row():
    rows = table({"question": "Q", "id": 1}, {"question": "Q", "id": 2}, {"question": "Q", "id": 2})
    assert kept_ids(left({}, ({"type": "jeopardy"}, rows))) == [[1, 2]]


@given(
    questions=st.lists(st.sampled_from("abcdefgh"), min_size=6, max_size=14).filter(lambda each: len(set(each)) > 3),
    seed=st.integers(0, 9),
    cut=st.integers(1, 5),
)
def test_equal_rows_never_stand_on_both_sides_and_the_sides_are_those_of_axolotl(questions, seed, cut):
    from axolotl.utils.data.shared import create_train_validation_split, merge_datasets

    lines = [asks(question, number=number) for number, question in enumerate(questions)]
    cfg = DictDefault(val_set_size=0.25, seed=seed, dataset_exact_deduplication=True, shuffle_merged_datasets=True)
    parts = left({"val_set_size": 0.25, "seed": seed}, (ALPACA, table(*lines[:cut])), (ALPACA, table(*lines[cut:])))
    training = [row["instruction"] for part in parts for row in part.training]
    held_out = [row["instruction"] for part in parts for row in part.held_out]
    assert sorted(training + held_out) == sorted(set(questions))
    # Axolotl compares the rows after it has tokenized and merged them, when ids are gone.
    tokenized = [table(*part).select_columns(["instruction"]) for part in (lines[:cut], lines[cut:])]
    axolotl_training, axolotl_held_out = create_train_validation_split(merge_datasets(tokenized, cfg), cfg, 0.25)
    assert sorted(training) == sorted(axolotl_training["instruction"])
    assert sorted(held_out) == sorted(axolotl_held_out["instruction"])


def test_rows_are_kept_in_a_folder_that_is_named_by_their_content(tmp_path):
    folder = rows_folder(rows(1, 2, 3).select([0, 2]), tmp_path, "held-out")
    assert list(load_from_disk(str(folder))["id"]) == [1, 3]
    stamp = folder.stat().st_mtime_ns
    assert rows_folder(rows(1, 3), tmp_path, "held-out") == folder
    assert folder.stat().st_mtime_ns == stamp
    assert rows_folder(rows(1, 4), tmp_path, "held-out") != folder


def test_a_folder_of_rows_that_was_emptied_is_not_taken_for_the_rows(tmp_path):
    folder = rows_folder(rows(1, 3), tmp_path, "held-out")
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(ArtifactError, match=r"held-out-\w+ is damaged \(FileNotFoundError: .*; delete the folder and"):
        rows_folder(rows(1, 3), tmp_path, "held-out")
