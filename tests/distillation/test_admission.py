"""Kinds of datasets that can't be rewritten, also where Python calls instead of a configuration."""

import pytest
from datasets import Dataset, DatasetDict

from axolotl_sdft import SelfDistillationConfig, distill_dataset
from axolotl_sdft.errors import DatasetError

ROWS = Dataset.from_dict({"instruction": ["Hi"], "output": ["Hello."]})


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (ROWS.to_iterable_dataset(), "dataset is streamed, .* load it with streaming=False"),
        (DatasetDict(train=ROWS, test=ROWS), r"dataset holds the splits train, test; pass one of them, .*\['train'\]"),
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
        (("input_ids", "attention_mask", "labels"), "its rows are tokenized already"),
        (("question", "response"), "Set another type or the field names"),
    ],
)
def test_a_missing_column_is_told_with_the_reason_where_the_others_show_it(columns, reason, seed_dir):
    dataset = Dataset.from_dict({name: ["x"] for name in columns})
    with pytest.raises(
        DatasetError, match=rf"dataset has no column 'instruction', .* its columns: {columns[0]}.*{reason}"
    ):
        distill_dataset(dataset, SelfDistillationConfig(), seed_model=seed_dir)


@pytest.mark.parametrize(
    ("kind", "reason"), [("chatml.intel", "compare answers"), ("pretrain", "running text"), ("kto", "compare answers")]
)
def test_rows_that_are_not_there_to_be_imitated_are_refused_by_their_type(kind, reason, seed_dir):
    with pytest.raises(DatasetError, match=rf"dataset.type is '{kind}', which can't be self-distilled: .*{reason}"):
        distill_dataset(ROWS, SelfDistillationConfig(), seed_model=seed_dir, dataset_config={"type": kind})
