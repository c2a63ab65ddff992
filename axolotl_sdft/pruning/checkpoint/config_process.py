"""Asks transformers' config classes in a process of their own, so that this one needs neither their time nor memory.

Importing transformers imports torch: seconds and half a gigabyte. The child hides torch, which no config class needs;
should one refuse to work without it, a second child asks again with torch there.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.pruning.checkpoint import derived_config

LOG = logging.getLogger(__name__)

_TASKS: dict[str, Callable[..., Any]] = {
    "check": derived_config.check,
    "count_layers": derived_config.count_layers,
    "prune": derived_config.prune,
    "reasons_against": derived_config.reasons_against,
}


class PendingConfig:
    """An answer that may still be computed; :meth:`result` waits for it."""

    def __init__(self, task: str, arguments: dict[str, Any]) -> None:
        self._task, self._arguments = task, arguments
        self._child = None if "transformers" in sys.modules else _start_child(task, arguments, hide_torch=True)

    def result(self) -> Any:
        """Return the answer, computed once.

        Raises:
            CheckpointError: As the task itself does.
        """
        return self._result

    def cancel(self) -> None:
        """End the child, should it still run, when nobody waits for the answer any more."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.communicate()

    @cached_property
    def _result(self) -> Any:
        if self._child is None:
            return _TASKS[self._task](**self._arguments)
        answer = _finish(self._child)
        if answer.get("was_refused"):
            answer = _finish(_start_child(self._task, self._arguments, hide_torch=False))
        for warning in answer["warnings"]:
            LOG.warning("%s", warning)
        if "error" in answer:
            raise CheckpointError(answer["error"])
        return answer["value"]


def start(task: str, config: dict[str, Any], **arguments: Any) -> PendingConfig:
    """Begin one of the tasks named in ``_TASKS``, in a child unless transformers is imported."""
    return PendingConfig(task, {"config": config, **arguments})


def _start_child(task: str, arguments: dict[str, Any], hide_torch: bool) -> "subprocess.Popen[str]":
    package_root = str(Path(__file__).parents[3])
    search_path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryFile("w+", encoding="utf-8") as job:  # unlike a pipe, it takes a large config at once
        json.dump({"task": task, "arguments": arguments, "hide_torch": hide_torch}, job)
        job.seek(0)
        return subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=job,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": search_path, "PYTHONIOENCODING": "utf-8"},
        )


def _finish(child: "subprocess.Popen[str]") -> dict[str, Any]:
    output, errors = child.communicate()
    if child.returncode != 0:
        last_line = (errors.strip().splitlines() or ["it said nothing"])[-1]
        raise CheckpointError(
            f"the process that asks transformers about config.json ended with status {child.returncode}: {last_line}"
        )
    answer: dict[str, Any] = json.loads(output)
    return answer


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    """Carry out a task in the child; its warnings and its error come back as texts."""
    if job["hide_torch"]:
        sys.modules["torch"] = None  # type: ignore[assignment]  # how Python marks a module that can't be imported
    kept = _KeptWarnings()
    logging.getLogger("axolotl_sdft").addHandler(kept)
    try:
        return {"value": _TASKS[job["task"]](**job["arguments"]), "warnings": kept.messages}
    except CheckpointError as err:
        was_refused = job["hide_torch"] and isinstance(err, derived_config.RefusedConfigError)
        return {"error": str(err), "was_refused": was_refused, "warnings": kept.messages}


class _KeptWarnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def main() -> None:
    """Read a job from standard input and write the answer, as JSON, to standard output."""
    output, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not come between
    json.dump(_answer(json.load(sys.stdin)), output)


if __name__ == "__main__":
    main()
