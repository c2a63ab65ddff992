"""Asks math-verify whether two expressions are equal, with a time limit that holds in every thread.

math-verify hands expressions to sympy, which may compute for hours inside one call of C code. Its own limit is a signal
handler: it works in the main thread alone, and not while C code runs. So the work is done in a process of its own, and
an alarm of the operating system ends that process when time is up. The time is what the process computes, not what the
clock shows: the same answer gets the same verdict however busy the machine is.
"""

import atexit
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from axolotl_sdft.core.errors import MissingExtraError

_MAX_MEMORY = 4 << 30  # bytes of address space; large powers would take all there is
_MAX_LENGTH = 300  # characters of an expression; a longer one is not an answer that is meant to be read
_HAS_ALARM = hasattr(signal, "setitimer")
# Seconds of the clock beyond the limit until the process is killed from outside. With an alarm that only matters where
# it does not compute at all.
_GRACE_S = 60.0 if _HAS_ALARM else 1.0
_WORKER = "from axolotl_sdft.distillation.checks.math_worker import serve; serve()"


def import_math_verify() -> Any:
    """Return the module ``math_verify``, kept from warning about every call without a time limit.

    Raises:
        MissingExtraError: It can't be imported.
    """
    try:
        import math_verify
    except ImportError as err:
        raise MissingExtraError(
            f"self_distillation.checks names numeric_answer, which needs math-verify ({err}); pip install math-verify, "
            "or remove the check"
        ) from err
    for module in ("math_verify.grader", "math_verify.parser"):
        logging.getLogger(module).setLevel(logging.ERROR)
    return math_verify


@dataclass
class Allowance:
    """How long all comparisons of one answer may take together."""

    left_s: float
    """Seconds of computing that are left."""


class MathWorker:
    """A process that compares expressions; started at the first question, and again after one that took too long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        atexit.register(self.close)

    def are_equal(self, first: str, second: str, allowance: Allowance) -> bool | None:
        """Say whether two LaTeX expressions have the same value; None where the allowance does not suffice to tell.

        What the comparison took is gone from the allowance afterwards.
        """
        if max(len(first), len(second)) > _MAX_LENGTH or allowance.left_s <= 0:
            return None
        with self._lock:
            process, left_s = self._started(), allowance.left_s
            reply = _asked(process, json.dumps([first, second, left_s]), left_s + _GRACE_S)
            if not reply:
                self.close()
                allowance.left_s = 0.0
                return None
            is_equal, seconds = json.loads(reply)
            allowance.left_s -= seconds
            return bool(is_equal)

    def close(self) -> None:
        """End the process, if this one started it."""
        if self._process is not None and self._owner == os.getpid():
            _end(self._process)
        self._process = None

    def _started(self) -> "subprocess.Popen[str]":
        """Return a process that is ready. A forked copy of this process starts its own: pipes can't be shared."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            import_math_verify()
            paths = os.pathsep.join(path for path in sys.path if path)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                env={**os.environ, "PYTHONPATH": paths},
            )
            self._owner = os.getpid()
            _read_line(self._process, seconds=600)  # imports take seconds, which no answer is to blame for
        return self._process


def serve() -> None:
    """Answer questions from standard input until it ends; a question that takes too long ends the process."""
    math_verify = import_math_verify()
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such limit on this system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    replies, sys.stdout = sys.stdout, sys.stderr
    _equal(math_verify, "x+1", "1+x")  # what the first comparison loads is not part of its time
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        first, second, seconds = json.loads(line)
        started = time.process_time()
        _set_alarm(seconds)
        equal = _equal(math_verify, first, second)
        _set_alarm(0)
        print(json.dumps([equal, time.process_time() - started]), file=replies, flush=True)


def _set_alarm(seconds: float) -> None:
    if _HAS_ALARM:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process, whatever it is doing
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _equal(math_verify: Any, first: str, second: str) -> bool:
    try:
        parsed = [math_verify.parse(f"${each}$", parsing_timeout=None) for each in (first, second)]
        return all(parsed) and bool(math_verify.verify(*parsed, timeout_seconds=None))
    except (Exception, RecursionError, MemoryError):  # whatever sympy meets in a text that is not a formula
        return False


def _asked(process: "subprocess.Popen[str]", question: str, seconds: float) -> str:
    assert process.stdin is not None
    try:
        process.stdin.write(question + "\n")
        process.stdin.flush()
    except OSError:  # it ended meanwhile
        return ""
    return _read_line(process, seconds)


def _read_line(process: "subprocess.Popen[str]", seconds: float) -> str:
    """Return the next line of a process; empty where it ends, or is killed after ``seconds``."""
    assert process.stdout is not None
    killer = threading.Timer(seconds, process.kill)
    killer.daemon = True
    killer.start()
    try:
        return process.stdout.readline()
    finally:
        killer.cancel()


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            pipe.close()  # type: ignore[union-attr]
