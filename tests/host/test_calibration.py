import json

import pytest

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault

from axolotl_sdft.config import CalibrationConfig
from axolotl_sdft.errors import DatasetError
from axolotl_sdft.host.calibration import calibration_entries, calibration_texts


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(cfg, seed_dir, **settings):
    calibration = CalibrationConfig(**settings)
    cfg = DictDefault(cfg)
    return calibration_texts(cfg, calibration_entries(cfg, calibration), calibration, seed_dir)


def test_the_training_set_is_read_as_conversations_in_the_chat_template(tmp_path, tiny_llama_dir):
    rows = [{"instruction": f"Question {n}", "input": "", "output": f"Answer {n}"} for n in range(3)]
    entry = {"path": write_rows(tmp_path / "rows.jsonl", rows), "type": "alpaca"}

    read = texts({"datasets": [entry]}, tiny_llama_dir)

    assert len(read) == 3
    assert "<|im_start|>user\nQuestion 1<|im_end|>\n<|im_start|>assistant\nAnswer 1<|im_end|>" in read[1]


def test_samples_are_spread_over_all_datasets(tmp_path, tiny_llama_dir):
    entries = [
        {"path": write_rows(tmp_path / f"{name}.jsonl", [{"text": f"{name}{n}"} for n in range(4)])} for name in "ab"
    ]
    assert texts({"datasets": entries}, tiny_llama_dir, num_samples=4) == ["a0", "a2", "b0", "b2"]


def test_a_calibration_path_of_plain_text_needs_no_type(tmp_path, tiny_llama_dir):
    path = write_rows(tmp_path / "text.jsonl", [{"text": "Once upon a time."}])
    assert texts({}, tiny_llama_dir, path=path) == ["Once upon a time."]


def test_the_type_is_found_from_the_columns(tmp_path, tiny_llama_dir):
    path = write_rows(tmp_path / "qa.jsonl", [{"question": "Why?", "answer": "Because."}])
    (read,) = texts({}, tiny_llama_dir, path=path)
    assert "Why?" in read
    assert "Because." in read


def test_columns_that_fit_no_format_are_refused_by_name(tmp_path, tiny_llama_dir):
    path = write_rows(tmp_path / "odd.jsonl", [{"left": "a", "right": "b"}])
    with pytest.raises(DatasetError, match=r"calibration.type is not set, and the columns left, right fit no"):
        texts({}, tiny_llama_dir, path=path)
