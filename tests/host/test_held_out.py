import numpy as np
import pytest

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault
from datasets import Dataset, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from axolotl_sdft.errors import ConfigError
from axolotl_sdft.host.held_out import is_split, rows_folder, split_rows, without_repeats


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


@settings(deadline=None)
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


def test_rows_that_are_equal_to_an_earlier_one_are_left_out():
    kept = without_repeats([rows(1, 2, 1), rows(3, 2)])
    assert [list(each["id"]) for each in kept] == [[1, 2], [3]]


def test_rows_are_kept_in_a_folder_that_is_named_by_their_content(tmp_path):
    folder = rows_folder(rows(1, 2, 3).select([0, 2]), tmp_path, "held-out")
    assert list(load_from_disk(str(folder))["id"]) == [1, 3]
    stamp = folder.stat().st_mtime_ns
    assert rows_folder(rows(1, 3), tmp_path, "held-out") == folder
    assert folder.stat().st_mtime_ns == stamp
    assert rows_folder(rows(1, 4), tmp_path, "held-out") != folder
