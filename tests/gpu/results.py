"""What a run of all parts found, on which machine: as a file, which keeps what is finished, and as a short table."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

from tests.benchmarks.effect_runs import markdown_table
from tests.benchmarks.rounds import keep_figures

REPOSITORY = Path(__file__).parents[2]
_PACKAGES = ("torch", "transformers", "axolotl", "trl", "peft", "accelerate", "bitsandbytes", "liger_kernel")
_SHOWN = ("device", "versions", "commit")


def machine() -> dict[str, Any]:
    """Return what figures depend on: device, driver, versions and commit."""
    return {
        **gpu(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": commit(),
    }


def gpu() -> dict[str, str]:
    """Return name, driver and memory of the first GPU as ``nvidia-smi`` tells them; without one, the CPU's name."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()
        name, driver, memory = lines[0].split(", ")
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        return {"device": f"CPU ({platform.processor() or platform.machine()})"}
    return {"device": name, "driver": driver, "memory": memory, "devices": str(len(lines))}


def commit() -> str:
    """Return the commit of this folder, with a sign where files differ from it; ``unknown`` outside a repository."""
    describe = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class Results:
    """A file of results that grows part by part.

    Parts that an earlier run left in the file stay where device, versions and commit are the same. Else the former file
    is moved aside, to a name with ``earlier`` and a number.

    Args:
        path: Of the file.
        about: What :func:`machine` gave.
        command: How the run was started.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], command: str) -> None:
        self._path = path
        former = _read(path)
        is_same = all(former.get(key) == about[key] for key in _SHOWN)
        if path.exists() and not is_same:
            names = (path.with_name(f"{path.stem}-earlier-{number}{path.suffix}") for number in count(1))
            path.replace(next(name for name in names if not name.exists()))
        self._all = {**about, "command": command, "parts": former.get("parts", {}) if is_same else {}}

    def add(self, name: str, result: Mapping[str, Any]) -> None:
        """Keep the result of a part; it is on disk when this returns."""
        self._all["parts"][name] = dict(result)
        keep_figures(self._path, self._all)

    def table(self, names: list[str]) -> str:
        """Return a table of these parts."""
        rows = []
        for name in names:
            result = self._all["parts"][name]
            rows.append([name, result["status"], f"{result['seconds']:.0f}", result.get("reason", "")])
        return markdown_table(["part", "status", "seconds", "why"], rows)


def _read(path: Path) -> dict[str, Any]:
    """Return what an earlier run left, empty where there is nothing that can be read."""
    try:
        former = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return former if isinstance(former, dict) else {}
