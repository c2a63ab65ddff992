"""One process at a time, whatever the file system can do, and a word on what the others wait for."""

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import socket
import threading
import time

import pytest

from axolotl_sdft.core import locks
from axolotl_sdft.core.artifacts import find_or_make
from axolotl_sdft.core.errors import ArtifactError
from axolotl_sdft.core.locks import only_one

WITHOUT_LOCKS = [
    OSError(errno.ENOLCK, "No locks available"),
    OSError(errno.ENOTSUP, "Operation not supported"),
    OSError(errno.EOPNOTSUPP, "Operation not supported"),
    OSError(errno.ENOSYS, "Function not implemented"),
    NotImplementedError("no flock here"),
]


@pytest.fixture(params=WITHOUT_LOCKS, ids=lambda error: f"{type(error).__name__} {getattr(error, 'errno', '')}")
def no_locks(request, monkeypatch):
    """A file system that has no locks."""

    def fail(descriptor, operation):
        raise request.param

    monkeypatch.setattr(fcntl, "flock", fail)


def held_by_a_thread(path, hold_s, taken):
    with only_one(path, "the work"):
        taken.append(time.monotonic())
        time.sleep(hold_s)
        taken.append(time.monotonic())


def test_without_locks_a_file_takes_their_place_which_is_said(tmp_path, no_locks, caplog):
    spans = []
    threads = [threading.Thread(target=held_by_a_thread, args=(tmp_path / "lock", 0.1, spans)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert spans == sorted(spans)  # each ended before the next began
    assert len(spans) == 6
    assert f"the file system of {tmp_path} has no locks; files are used instead" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_is_made_once_without_locks(tmp_path, no_locks):
    target, made = tmp_path / "made", []

    def make():
        made.append(1)
        target.mkdir()

    assert [find_or_make(target, make, target.exists) for _ in range(2)] == [True, False]
    assert made == [1]


def test_the_file_of_a_process_that_has_died_here_is_taken_away(tmp_path, no_locks, caplog):
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    (tmp_path / "lock.held").write_text(json.dumps({"host": socket.gethostname(), "process": process.pid, "id": "x"}))

    with only_one(tmp_path / "lock", "the work"):
        pass

    assert "lock.held was left behind by a process that is gone; it is taken away" in caplog.text


def test_the_file_of_a_process_elsewhere_is_taken_away_when_it_was_silent_for_long(tmp_path, no_locks, monkeypatch):
    monkeypatch.setattr(locks, "_STALE_S", 0.3)
    (tmp_path / "lock.held").write_text(json.dumps({"host": "elsewhere", "process": 1, "id": "x"}))
    started = time.monotonic()

    with only_one(tmp_path / "lock", "the work"):
        assert time.monotonic() - started >= 0.3


def test_the_file_of_a_process_elsewhere_that_lives_is_left_alone(tmp_path, no_locks, monkeypatch):
    monkeypatch.setattr(locks, "_STALE_S", 0.5)
    held = tmp_path / "lock.held"
    held.write_text(json.dumps({"host": "elsewhere", "process": 1, "id": "x"}))
    is_over = threading.Event()

    def live():
        while not is_over.wait(0.05):
            os.utime(held)

    alive = threading.Thread(target=live)
    alive.start()
    try:
        with pytest.raises(ArtifactError, match="busy"), only_one(tmp_path / "lock", "the work", busy="busy"):
            pass
    finally:
        is_over.set()
        alive.join()


def test_another_fault_of_the_lock_is_one_clear_error(tmp_path, monkeypatch):
    def fail(descriptor, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with (
        pytest.raises(ArtifactError, match=r"lock: the lock for the work can't be had \(Input/output error\)"),
        only_one(tmp_path / "lock", "the work"),
    ):
        pass


def test_who_waits_says_for_what_and_on_whom(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "_REMIND_S", 0.2)
    caplog.set_level(logging.INFO)
    spans = []
    first = threading.Thread(target=held_by_a_thread, args=(tmp_path / "lock", 1.0, spans))
    first.start()
    while not spans:
        time.sleep(0.01)
    with only_one(tmp_path / "lock", "the work"):
        pass
    first.join()

    assert f"s: process {os.getpid()} on {socket.gethostname()!r} is at it; the lock {tmp_path / 'lock'}" in caplog.text


def on_two_machines(monkeypatch, patience="0.3"):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("AXOLOTL_SDFT_PATIENCE_SECONDS", patience)


def test_a_wait_for_another_machine_without_a_sign_of_life_comes_to_an_end(tmp_path, monkeypatch):
    on_two_machines(monkeypatch)
    monkeypatch.setattr(locks, "_HEARTBEAT_S", 60)
    spans = []
    first = threading.Thread(target=held_by_a_thread, args=(tmp_path / "lock", 1.5, spans))
    first.start()
    while not spans:
        time.sleep(0.01)
    with (
        pytest.raises(ArtifactError, match=r"waited . s for the work .*must be on a disk that all of them share"),
        only_one(tmp_path / "lock", "the work"),
    ):
        pass
    first.join()


def test_a_wait_for_another_machine_that_lives_goes_on(tmp_path, monkeypatch):
    on_two_machines(monkeypatch)
    monkeypatch.setattr(locks, "_HEARTBEAT_S", 0.05)
    spans = []
    first = threading.Thread(target=held_by_a_thread, args=(tmp_path / "lock", 1.0, spans))
    first.start()
    while not spans:
        time.sleep(0.01)
    with only_one(tmp_path / "lock", "the work"):
        assert len(spans) == 2
    first.join()
