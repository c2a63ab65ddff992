import pytest

from axolotl_sdft.config import CalibrationConfig
from axolotl_sdft.errors import DatasetError
from axolotl_sdft.pruning.calibration import encode_texts

TEXTS = ["one two three four five six", "one", "", "one two three"]


def test_texts_are_batched_by_length_and_padded_on_the_right(tiny_llama_dir):
    batches = encode_texts(TEXTS, tiny_llama_dir, CalibrationConfig(batch_size=2))
    assert [batch["attention_mask"].tolist() for batch in batches] == [[[1, 0, 0], [1, 1, 1]], [[1] * 6]]
    assert batches[0]["input_ids"][0, 0] == batches[0]["input_ids"][1, 0] == batches[1]["input_ids"][0, 0]


def test_texts_are_cut_to_the_sequence_length(tiny_llama_dir):
    (batch,) = encode_texts(["word " * 50], tiny_llama_dir, CalibrationConfig(sequence_len=8))
    assert batch["input_ids"].shape == (1, 8)


def test_texts_without_a_token_are_refused(tiny_llama_dir):
    with pytest.raises(DatasetError, match=r"layer_pruning\.calibration holds no text; check its path, split and type"):
        encode_texts([""], tiny_llama_dir, CalibrationConfig())
