import logging
from pathlib import Path

import pytest
import torch

from axolotl_sdft.training.teachers.replay_buffer import MicroBatch, load_memory, memory_path, save_memory

CPU = torch.device("cpu")
WINDOW = [
    MicroBatch({"labels": torch.tensor([[1, 2]]), "max_length_q": 2}, {"hidden": torch.tensor([[0.5]])}),
    MicroBatch({"labels": torch.tensor([[3, 4]])}, {"hidden": torch.tensor([[0.25]])}),
]


def test_a_window_comes_back_as_it_was_saved(tmp_path: Path):
    save_memory(WINDOW, tmp_path / "checkpoint-1", 0, 1)
    loaded = load_memory(tmp_path / "checkpoint-1", 0, 1, CPU)
    assert [micro_batch.inputs["labels"].tolist() for micro_batch in loaded] == [[[1, 2]], [[3, 4]]]
    assert [micro_batch.kept["hidden"].tolist() for micro_batch in loaded] == [[[0.5]], [[0.25]]]
    assert loaded[0].inputs["max_length_q"] == 2


def test_each_rank_has_a_file_of_its_own(tmp_path: Path):
    for rank in (0, 1):
        save_memory(WINDOW[rank:], tmp_path, rank, 2)
    assert [len(load_memory(tmp_path, rank, 2, CPU)) for rank in (0, 1)] == [2, 1]


def refusal(folder: Path, caplog: pytest.LogCaptureFixture, world_size: int = 1) -> str:
    with caplog.at_level(logging.WARNING):
        assert load_memory(folder, 0, world_size, CPU) == []
    return caplog.text


def test_a_missing_file_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert "dynsdpb_memory.pt is missing" in refusal(tmp_path, caplog)
    assert "the first step repeats nothing" in caplog.text


def test_the_memory_of_another_number_of_processes_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    save_memory(WINDOW, tmp_path, 0, 2)
    assert "was saved by 2 processes, not 3" in refusal(tmp_path, caplog, world_size=3)
    assert "dynsdpb_memory.pt is missing" in refusal(tmp_path, caplog, world_size=1)


def test_a_torn_file_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    save_memory(WINDOW, tmp_path, 0, 1)
    path = memory_path(tmp_path, 0, 1)
    path.write_bytes(path.read_bytes()[:100])
    assert "can't be read" in refusal(tmp_path, caplog)
