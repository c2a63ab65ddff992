"""Ranks on machines without a shared disk stop at once, unless each of them has all that is needed."""

import shutil
from datetime import timedelta

import pytest
import torch.distributed as dist

from tests.distillation import runs


@pytest.fixture
def launched(tmp_path):
    """Starts each rank in a folder of its own, or in the same one, as torchrun would: with a store to talk by."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=600))
    processes = []

    def start(*roots):
        launcher = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        places = {"WORLD_SIZE": str(len(roots)), "LOCAL_WORLD_SIZE": "1"}
        for rank, root in enumerate(roots):
            processes.append(runs.start(root, RANK=str(rank), **launcher, **places))
        return processes[-len(roots) :]

    yield start
    for process in processes:
        process.kill()


def test_ranks_that_share_no_folder_stop_before_any_answer_and_name_both_folders(tmp_path, launched):
    ranks = launched(tmp_path / "one", tmp_path / "two")

    assert [rank.end() for rank in ranks] == [1, 1]
    for root in (tmp_path / "one", tmp_path / "two"):
        said = runs.error_of(root)
        assert said.startswith("ArtifactError: self_distillation.output_dir: rank 0 on ")
        assert f"({tmp_path}/one/out) does not see the files of rank 1 on " in said
        assert f"({tmp_path}/two/out) after" in said
        assert "not everything is made yet (rank 0, 1)" in said
        assert "run axolotl self-distill on one machine and copy this folder to each" in said
        assert not runs.generated(root)
        assert not list((root / "out").iterdir())  # nothing is left behind


def test_ranks_that_share_a_folder_share_the_work(tmp_path, launched):
    runs.finish(*launched(tmp_path, tmp_path))

    assert len(runs.result(tmp_path)) == runs.NUM_ROWS
    assert len(runs.shares(tmp_path)) == 2
    assert not list((tmp_path / "out").glob(".rank-*"))


def test_ranks_that_hold_copies_of_the_finished_rows_use_them(tmp_path, launched):
    runs.rewrite(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")

    ranks = launched(tmp_path / "one", tmp_path / "two")

    runs.finish(*ranks)
    for rank in ranks:
        said = rank.log.read_text()
        assert "the ranks have separate folders, each with all that is needed; they are used" in said
        assert "using the distilled dataset" in said


def test_a_rank_whose_copy_is_missing_stops_all_of_them_and_is_named(tmp_path, launched):
    runs.rewrite(tmp_path / "one")

    ranks = launched(tmp_path / "one", tmp_path / "two")

    assert [rank.end() for rank in ranks] == [1, 1]
    assert all("not everything is made yet (rank 1)" in runs.error_of(tmp_path / name) for name in ("one", "two"))


def test_without_a_store_a_rank_that_never_comes_into_sight_ends_the_wait(tmp_path):
    alone = runs.start(tmp_path, RANK="0", WORLD_SIZE="2", AXOLOTL_SDFT_PATIENCE_SECONDS="0.3")

    assert alone.end() == 1
    said = runs.error_of(tmp_path)
    assert "of 2 ranks there lack rank 1, of which there is no file" in said
    assert "WORLD_SIZE is 2 and LOCAL_WORLD_SIZE is not set, so other machines may take part" in said
    assert "make what is needed on one machine first and copy the folder to the others" in said
