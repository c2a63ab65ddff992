"""One process at a time, whatever the file system can do, and a word on what the others wait for."""

import errno
import fcntl
import itertools
import json
import logging
import multiprocessing
import os
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from axolotl_sdft.core import locks
from axolotl_sdft.core.artifacts import find_or_make
from axolotl_sdft.core.errors import ArtifactError
from axolotl_sdft.core.locks import Heartbeat, Waiting, Watch, only_one

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


@contextmanager
def held_elsewhere(path):
    """A thread that holds the lock until the event that this gives is set, at the latest when the block ends."""
    is_held, is_over = threading.Event(), threading.Event()

    def hold():
        with only_one(path, "the work"):
            is_held.set()
            is_over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    try:
        yield is_over
    finally:
        is_over.set()
        thread.join()


class Clock:
    """Time that goes on only while somebody sleeps."""

    def __init__(self, while_asleep=lambda: None):
        self.now, self._while_asleep = 0.0, while_asleep

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self._while_asleep()


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
    beats = itertools.count()
    clock = Clock(while_asleep=lambda: os.utime(held, ns=(next(beats), next(beats))))
    monkeypatch.setattr(locks, "time", clock)

    with pytest.raises(ArtifactError, match="busy"), only_one(tmp_path / "lock", "the work", busy="busy"):
        pass

    assert clock.now > locks._STALE_S


def test_another_fault_of_the_lock_is_one_clear_error(tmp_path, monkeypatch):
    def fail(descriptor, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with (
        pytest.raises(ArtifactError, match=r"lock: the lock for the work can't be had \(Input/output error\)"),
        only_one(tmp_path / "lock", "the work"),
    ):
        pass


def say_and(act, say):
    """Return what logs and then acts."""

    def both(*args):
        say(*args)
        act()

    return both


def test_who_waits_says_for_what_and_on_whom(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "_REMIND_S", 0.2)
    caplog.set_level(logging.INFO)
    with held_elsewhere(tmp_path / "lock") as is_over:
        monkeypatch.setattr(locks.LOG, "info", say_and(is_over.set, locks.LOG.info))
        with only_one(tmp_path / "lock", "the work"):
            pass

    assert f"s: process {os.getpid()} on {socket.gethostname()!r} is at it; the lock {tmp_path / 'lock'}" in caplog.text


def on_two_machines(monkeypatch, patience="0.3"):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("AXOLOTL_SDFT_PATIENCE_SECONDS", patience)


def test_a_wait_for_another_machine_without_a_sign_of_life_comes_to_an_end(tmp_path, monkeypatch):
    on_two_machines(monkeypatch)
    monkeypatch.setattr(locks, "_HEARTBEAT_S", 10**6)
    with (
        held_elsewhere(tmp_path / "lock"),
        pytest.raises(ArtifactError, match=r"waited \d+ s for the work .*must be on a disk that all of them share"),
        only_one(tmp_path / "lock", "the work"),
    ):
        pass


def test_a_wait_for_another_machine_that_lives_goes_on(tmp_path, monkeypatch):
    on_two_machines(monkeypatch, patience="100")
    clock = Clock()
    monkeypatch.setattr(locks, "time", clock)
    sign = tmp_path / "lock.owner"
    waiting = Waiting("the work", "here", lambda: "someone", Watch(sign))
    for beat in range(5):
        clock.now += 90
        sign.touch()
        os.utime(sign, (beat, beat))
        waiting.go_on()
    clock.now += 101
    with pytest.raises(ArtifactError, match=r"waited 551 s for the work .* the last 101 s without a sign of life"):
        waiting.go_on()


def test_a_process_that_lives_shows_it_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_HEARTBEAT_S", 0.01)
    sign = tmp_path / "sign"
    sign.touch()
    heartbeat = Heartbeat(sign)
    try:
        for _ in range(3):
            os.utime(sign, (0, 0))
            while sign.stat().st_mtime == 0:
                time.sleep(0.01)
    finally:
        heartbeat.stop()
