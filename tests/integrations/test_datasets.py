import json

import pytest

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault
from datasets import Dataset, DatasetDict

from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.integrations.axolotl.datasets import dataset_entries, entry_fingerprint, load_rows, rewritten_entry


@pytest.fixture(autouse=True)
def rows_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"id": n}) + "\n" for n in range(20)))


def rows_of(cfg=None, **entry):
    entry = DictDefault({"path": "rows.jsonl", "type": "alpaca"} | entry)
    return list(load_rows(DictDefault(cfg or {}), entry, "datasets[0]")["id"])


def test_all_rows_come_in_their_order():
    assert rows_of() == list(range(20))


def test_a_slice_of_a_split_is_read_as_axolotl_reads_it():
    assert rows_of(split="train[5:8]") == [5, 6, 7]


def test_shards_are_disjoint_and_together_hold_every_row_though_no_seed_is_set():
    shards = [rows_of(shards=3, shards_idx=index) for index in range(3)]
    assert sorted(row for shard in shards for row in shard) == list(range(20))


def test_a_seed_chooses_the_shard_that_axolotl_would_choose():
    whole = Dataset.from_dict({"id": list(range(20))})
    expected = whole.shuffle(seed=7).shard(num_shards=4, index=1)["id"]
    assert rows_of(cfg={"seed": 7}, shards=4, shards_idx=1) == list(expected)


def test_a_weight_keeps_that_share_of_the_rows():
    kept = rows_of(weight=0.25)
    assert len(kept) == 5
    assert rows_of(weight=0.25) == kept


def test_a_folder_with_splits_gives_the_one_asked_for_or_train(tmp_path):
    splits = DatasetDict({"train": Dataset.from_dict({"id": [1]}), "extra": Dataset.from_dict({"id": [2]})})
    splits.save_to_disk(tmp_path / "both")
    assert rows_of(path="both") == [1]
    assert rows_of(path="both", split="extra") == [2]


def test_a_folder_without_the_split_is_refused_with_those_it_has(tmp_path):
    DatasetDict({"extra": Dataset.from_dict({"id": [2]})}).save_to_disk(tmp_path / "other")
    with pytest.raises(DatasetError, match=r"datasets\[0\].split is None; 'other' has the splits extra"):
        rows_of(path="other")


def test_several_names_are_entries_of_their_own():
    cfg = DictDefault({"datasets": [{"path": "a", "name": ["x", "y"]}, {"path": "b"}]})
    assert [(where, entry.path, entry.name) for where, entry in dataset_entries(cfg)] == [
        ("datasets[0]", "a", "x"),
        ("datasets[0]", "a", "y"),
        ("datasets[1]", "b", None),
    ]


def test_a_rewritten_entry_keeps_the_row_format_and_loses_what_chose_the_rows(tmp_path):
    entry = DictDefault({"path": "rows.jsonl", "split": "train", "shards": 2, "type": "alpaca", "field": None})
    assert dict(rewritten_entry(entry, tmp_path)) == {"path": str(tmp_path), "type": "alpaca"}


def test_a_fingerprint_follows_the_content_of_a_local_file_and_not_its_place(tmp_path):
    first = entry_fingerprint(DictDefault({"path": "rows.jsonl", "type": "alpaca"}))
    (tmp_path / "below").mkdir()
    (tmp_path / "rows.jsonl").rename(tmp_path / "below/rows.jsonl")
    assert entry_fingerprint(DictDefault({"path": "below/rows.jsonl", "type": "alpaca"})) == first
    (tmp_path / "below/rows.jsonl").write_text('{"id": 99}\n')
    assert entry_fingerprint(DictDefault({"path": "below/rows.jsonl", "type": "alpaca"})) != first


def test_a_fingerprint_notices_one_changed_byte_in_the_middle_of_a_large_file(tmp_path):
    content = bytearray(b"0" * 3_000_000)
    prints = set()
    for place in (None, 1_234_567, 2_999_999):
        if place is not None:
            content[place] += 1
        (tmp_path / "large.txt").write_bytes(content)
        prints.add(entry_fingerprint(DictDefault({"path": str(tmp_path / "large.txt")})))
    assert len(prints) == 3


@pytest.mark.parametrize(
    "name",
    [".cache/huggingface/a.json", ".git/HEAD", ".DS_Store", "__pycache__/a.pyc", "cache-0f.arrow", "a.lock", "LICENSE"],
)
def test_a_fingerprint_of_a_folder_leaves_out_what_lies_beside_the_rows(name, tmp_path):
    Dataset.from_dict({"id": [1]}).save_to_disk(tmp_path / "rows")
    before = entry_fingerprint(DictDefault({"path": "rows"}))
    (tmp_path / "rows" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "rows" / name).write_text("something")
    assert entry_fingerprint(DictDefault({"path": "rows"})) == before
    (tmp_path / "rows" / "more.jsonl").write_text('{"id": 2}\n')
    assert entry_fingerprint(DictDefault({"path": "rows"})) != before


@pytest.mark.parametrize(("card", "counts"), [("# Rows\n", False), ("---\nconfigs: []\n---\n", True)])
def test_a_dataset_card_counts_where_its_header_may_say_which_files_are_read(card, counts, tmp_path):
    Dataset.from_dict({"id": [1]}).save_to_disk(tmp_path / "rows")
    before = entry_fingerprint(DictDefault({"path": "rows"}))
    (tmp_path / "rows" / "README.md").write_text(card)
    assert (entry_fingerprint(DictDefault({"path": "rows"})) != before) == counts


@pytest.mark.parametrize("chosen", [{"weight": 0.5}, {"shards": 2}])
def test_rows_that_are_drawn_leave_nothing_in_their_folder(chosen, tmp_path):
    Dataset.from_dict({"id": list(range(8))}).save_to_disk(tmp_path / "rows")
    before = sorted(path.name for path in (tmp_path / "rows").iterdir())
    assert len(rows_of(path="rows", **chosen)) == 4
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == before


@pytest.mark.parametrize("data_files", ["rows.jsonl", ["rows.jsonl"], {"train": ["*.jsonl"]}])
def test_a_fingerprint_follows_the_content_of_local_data_files(data_files, tmp_path):
    entry = DictDefault({"path": "json", "data_files": data_files})
    before = entry_fingerprint(entry)
    (tmp_path / "rows.jsonl").write_text('{"id": 99}\n')
    assert entry_fingerprint(entry) != before


def test_a_fingerprint_of_a_hub_dataset_follows_its_keys():
    entries = [DictDefault({"path": "org/rows"} | extra) for extra in ({}, {"revision": "v2"}, {"split": "test"})]
    assert len({entry_fingerprint(entry) for entry in entries}) == 3
