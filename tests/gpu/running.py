"""Runs the commands of a part one after the other, each for as long as it may, and tells what became of it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.children import run_module, tail

Result = dict[str, Any]
"""``status``, ``seconds``, and where there are any ``reason``, ``figures`` and ``log``."""


@dataclass(frozen=True)
class Command:
    """A module that is run."""

    name: str
    module: str
    arguments: tuple[str, ...]
    limit: float
    """Most seconds that it may take."""

    figures: Callable[[], Any] = lambda: None
    """Reads what it measured, once it is over; None where there is nothing."""

    is_needed: bool = False
    """Whether the commands after it need what it makes."""

    folder: Path | None = None
    """Where it runs; None for here."""

    skipped: str | None = None
    """Why it is not run here."""


@dataclass(frozen=True)
class Part:
    """What is run together, under a name."""

    name: str
    commands: tuple[Command, ...] = ()
    skipped: str | None = None
    """Why it is not run here."""

    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def limit(self) -> float:
        """Most seconds that it may take, what it needs and finds made left out."""
        return sum(command.limit for command in self.commands if not command.is_needed)


def run_part(part: Part, logs: Path, deadline: float) -> Result:
    """Run a part and return its result, with those of its commands under ``commands``; never raises.

    Args:
        part: What is run.
        logs: Folder for what the commands print.
        deadline: When all is over, by ``time.monotonic``.
    """
    if part.skipped:
        return {"status": "skipped", "reason": part.skipped, "seconds": 0.0, "commands": {}}
    started = time.monotonic()
    found: dict[str, Result] = {}
    for command in part.commands:
        log = logs / f"{part.name}-{command.name}.log".replace(" ", "-")
        found[command.name] = result = _run(command, log, part.environment, deadline)
        print(f"  {command.name}: {result['status']}, {result['seconds']:.0f} s", flush=True)
        if command.is_needed and result["status"] != "done":
            break
    return {**_summary(found), "seconds": round(time.monotonic() - started, 1), "commands": found}


def _run(command: Command, log: Path, environment: Mapping[str, str], deadline: float) -> Result:
    if command.skipped:
        return {"status": "skipped", "reason": command.skipped, "seconds": 0.0}
    started = time.monotonic()
    limit = min(command.limit, deadline - started)
    if limit <= 0:
        return {"status": "skipped", "reason": "the time for all parts was up", "seconds": 0.0}
    code = run_module(command.module, command.arguments, log, limit, folder=command.folder, environment=environment)
    result: Result = {"status": "done", "seconds": round(time.monotonic() - started, 1)}
    if code is None:
        result |= {"status": "timed out", "reason": f"stopped after {limit:.0f} s"}
    elif code:
        result |= {"status": "failed", "reason": f"exit code {code}"}
    try:
        result["figures"] = command.figures()
    except Exception as err:  # what a stopped command left may be anything
        result |= {"status": "failed", "reason": f"no figures: {type(err).__name__}: {err}"} if code == 0 else {}
    if result["status"] != "done":
        result["log"] = tail(log)
    return result


def _summary(found: Mapping[str, Result]) -> Result:
    """Return the status of a part, the gravest of its commands, and why each that was not done was not."""
    reasons = [f"{name}: {result['reason']}" for name, result in found.items() if result["status"] != "done"]
    statuses = {result["status"] for result in found.values()}
    status = next(each for each in ("failed", "timed out", "done", "skipped") if each in statuses)
    return {"status": status, **({"reason": "; ".join(reasons)} if reasons else {})}
