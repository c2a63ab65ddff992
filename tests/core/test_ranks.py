"""The processes of one run find each other, keep in step, and don't take one of another run for their own."""

import json
import os
import threading
import time

import pytest

from axolotl_sdft.core import locks, ranks
from axolotl_sdft.core.errors import ArtifactError
from axolotl_sdft.core.ranks import together


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(ranks, "_MAX_POLL_S", 0.05)


def run_ranks(folder, work, world_size=3, delays=(0.0, 0.0, 0.0)):
    """Run each rank in a thread; return what each of them brought back, or its error."""
    results = {}

    def run(rank):
        time.sleep(delays[rank])
        try:
            with together(folder, rank, world_size, "the work", "busy") as group:
                results[rank] = work(group)
        except ArtifactError as err:
            results[rank] = str(err)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
        assert not thread.is_alive()
    return results


def test_all_ranks_know_each_other_and_what_each_brings_to_a_point(tmp_path):
    def work(group):
        return group.run_ids, group.reach("first", f"from {group.rank}"), group.reach("second")

    results = run_ranks(tmp_path, work, delays=(0.0, 0.2, 0.1))

    assert len({ids for ids, _, _ in results.values()}) == 1
    assert len(set(results[0][0])) == 3
    expected = {0: "from 0", 1: "from 1", 2: "from 2"}
    assert [dict(sorted(first.items())) for _, first, _ in results.values()] == [expected] * 3


def test_a_rank_does_not_pass_a_point_before_the_others_have_reached_it(tmp_path):
    passed = []

    def work(group):
        time.sleep(0.2 * group.rank)
        passed.append(("before", group.rank))
        group.reach("the point")
        passed.append(("after", group.rank))

    run_ranks(tmp_path, work)

    assert [when for when, _ in passed] == ["before"] * 3 + ["after"] * 3


def test_files_of_an_earlier_run_are_not_taken_for_ranks_of_this_one(tmp_path):
    first = run_ranks(tmp_path, lambda group: group.run_ids)
    second = run_ranks(
        tmp_path, lambda group: (group.reach("the point", "now"), group.run_ids)[1], delays=(0, 0.3, 0.1)
    )

    assert second[0] == second[1] == second[2]
    assert not set(first[0]) & set(second[0])


def test_damaged_files_of_ranks_are_waited_out(tmp_path):
    (tmp_path / "rank-00001.json").write_bytes(b"\0\0\0")
    (tmp_path / "rank-00002.json").write_text(json.dumps([1]))
    (tmp_path / "rank-x.json").write_text("{}")

    assert len(run_ranks(tmp_path, lambda group: group.run_ids)) == 3


def test_a_rank_that_stops_ends_the_wait_of_the_others_with_its_reason(tmp_path):
    def work(group):
        if group.rank == 1:
            raise ArtifactError("the disk is full")
        return group.reach("the point")

    results = run_ranks(tmp_path, work)

    assert results[1] == "the disk is full"
    assert "rank 1 on " in results[0]
    assert "has stopped: ArtifactError: the disk is full" in results[0]
    assert "has stopped" in results[2]


@pytest.fixture
def looks_aside_at_once(monkeypatch):
    monkeypatch.setattr(ranks, "_LOOK_ASIDE_S", 0)
    monkeypatch.setattr(locks, "_HEARTBEAT_S", 0.05)


@pytest.mark.usefixtures("looks_aside_at_once")
def test_ranks_that_are_about_to_make_different_things_are_told_so(tmp_path):
    results = {}

    def run(rank):
        try:
            with together(tmp_path / f".made-of-{rank}.ranks", rank, 2, "rewriting", "busy"):
                results[rank] = "met"
        except ArtifactError as err:
            results[rank] = str(err)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)

    for mine, other in ((0, 1), (1, 0)):
        assert f"rewriting: rank {mine} waits in {tmp_path}/.made-of-{mine}.ranks" in results[mine]
        assert f"rank {other} in {tmp_path}/.made-of-{other}.ranks" in results[mine]
        assert "they don't see the same rows, settings or seed model" in results[mine]


def a_rank_and_a_file_elsewhere(root):
    """Rank 0 of two, which has begun to wait, and the file of rank 1 where it makes another thing."""
    group = ranks.RankGroup(root / ".mine.ranks", 0, 2, "rewriting")
    other = root / ".other.ranks" / "rank-00001.json"
    for folder in (root / ".mine.ranks", other.parent):
        folder.mkdir()
    group._write()
    os.utime(group.path(0), (100, 100))
    return group, other


@pytest.mark.usefixtures("looks_aside_at_once")
@pytest.mark.parametrize("other", [{"launch": ["another"]}, {"has_met": True}, {"world_size": 5}, {"has_met": None}])
def test_a_living_rank_of_another_run_or_of_work_that_goes_on_is_not_taken_for_one_that_is_missing(tmp_path, other):
    group, path = a_rank_and_a_file_elsewhere(tmp_path)
    look = group._look_aside()

    def live(beat, entry):
        path.write_text(json.dumps(entry))
        os.utime(path, (beat, beat))
        look([1])

    for beat in (1, 2):
        live(beat, group._own | other)
    live(3, group._own)
    with pytest.raises(ArtifactError, match=r"rank 0 waits in .*mine\.ranks and rank 1 in .*other\.ranks"):
        live(4, group._own)


@pytest.mark.usefixtures("looks_aside_at_once")
@pytest.mark.parametrize("left", [{}, {"ended": "KeyError: 1"}])
def test_the_file_that_a_dead_rank_has_left_elsewhere_is_not_taken_for_one_that_is_missing(tmp_path, left):
    group, path = a_rank_and_a_file_elsewhere(tmp_path)
    path.write_text(json.dumps(group._own | left))
    os.utime(path, (99, 99))
    look = group._look_aside()
    for _ in range(3):
        look([1])


@pytest.mark.usefixtures("looks_aside_at_once")
def test_a_rank_elsewhere_that_has_ended_since_this_one_began_to_wait_is_told_of(tmp_path):
    group, path = a_rank_and_a_file_elsewhere(tmp_path)
    look = group._look_aside()
    path.write_text(json.dumps(group._own | {"ended": "ArtifactError: rank 1 waits elsewhere"}))
    os.utime(path, (101, 101))
    with pytest.raises(ArtifactError, match="they don't see the same rows"):
        look([1])


def test_machines_without_a_shared_disk_are_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("AXOLOTL_SDFT_PATIENCE_SECONDS", "0.2")
    with (
        pytest.raises(
            ArtifactError,
            match=r"waited \d+ s for the work, the start \(of 2 ranks there lack rank 1, of which there is no file; "
            r"files in .*\), .* WORLD_SIZE 2 is larger than LOCAL_WORLD_SIZE 1, .* disk that all of them share.* copy",
        ),
        together(tmp_path, 0, 2, "the work", "busy"),
    ):
        pass


def test_a_rank_that_is_alone_waits_for_nobody(tmp_path):
    with together(tmp_path, 0, 1, "the work", "busy") as group:
        assert group.reach("the point", "here") == {0: "here"}


def test_another_run_at_the_same_work_is_refused(tmp_path):
    with (
        together(tmp_path, 0, 1, "the work", "busy"),
        pytest.raises(ArtifactError, match="busy"),
        together(tmp_path, 0, 1, "the work", "busy"),
    ):
        pass
