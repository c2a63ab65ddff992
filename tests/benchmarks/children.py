"""Runs modules as processes of their own, each in a group that is ended with it.

A child is a new interpreter, or, where the environment variable ``RUN_AS_FORKS`` is set, a fork of this process: it
then finds the imports done, which take longer than all that a tiny model does. A process that has used a GPU can't be
forked.
"""

import gc
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import multiprocess

RUN_AS_FORKS = "RUN_AS_FORKS"


def run_module(
    module: str,
    arguments: Sequence[str],
    log: Path,
    limit: float | None = None,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> int | None:
    """Run a module's ``main`` to its end and return its exit code; None where it was killed at its limit.

    Nothing of what it started is left running.

    Args:
        module: Dotted name; run as the program that it is, or by its ``main``.
        arguments: Of its command line.
        log: File for all that it prints.
        limit: Most seconds that it may take.
        folder: Where it runs; None for here.
        environment: Variables that are set for it beside those of this process.
    """
    forked = bool(os.environ.get(RUN_AS_FORKS))
    child = (_fork if forked else _interpreter)(module, arguments, log, folder, dict(environment or {}))
    try:
        return _wait_for_fork(child, limit) if forked else child.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.join() if forked else child.wait()


def _interpreter(module: str, arguments: Sequence[str], log: Path, folder: Path | None, changes: dict[str, str]) -> Any:
    with log.open("wb") as file:
        streams: dict[str, Any] = {"stdout": file, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.Popen(command, cwd=folder, env=os.environ | changes, start_new_session=True, **streams)


def _fork(module: str, arguments: Sequence[str], log: Path, folder: Path | None, changes: dict[str, str]) -> Any:
    target = multiprocessing.get_context("fork").Process
    child: Any = target(target=run_here, args=(module, list(arguments), log, folder, changes))
    child.start()
    with suppress(ProcessLookupError, PermissionError):
        os.setpgid(child.pid, child.pid)  # the child does so as well: whichever comes first
    return child


def begin(log: Path, changes: Mapping[str, str]) -> None:
    """Make a fork ready: what it prints goes into a file, and no search for garbage looks at what the imports made."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(standard), "w", buffering=1) for standard in (1, 2))
    os.environ.update(changes)
    gc.freeze()


def run_here(module: str, arguments: list[str], log: Path, folder: Path | None, changes: dict[str, str]) -> None:
    """Run a module's ``main`` in this process, a fork that is to do nothing else, and end it with the exit code."""
    with suppress(PermissionError):
        os.setpgid(0, 0)
    begin(log, changes)
    if folder is not None:
        os.chdir(folder)
    sys.argv = [module, *arguments]
    # To save a dataset the library starts interpreters of its own, which would import everything once more.
    multiprocess.context._concrete_contexts["spawn"] = multiprocess.get_context("fork")
    code = importlib.import_module(module).main()
    sys.exit(code)


def _wait_for_fork(child: Any, limit: float | None) -> int:
    child.join(limit)
    if child.exitcode is None:
        raise subprocess.TimeoutExpired(child.name, limit or 0)
    code: int = child.exitcode
    return code


def tail(log: Path, num_lines: int = 20) -> str:
    """Return the last lines of what a child printed, without progress bars' former states."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.rpartition("\r")[2] for line in text.splitlines()]
    return "\n".join([line for line in lines if line.strip()][-num_lines:])
