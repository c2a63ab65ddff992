"""Measures several ways in turn, each in a process of its own, so that its peak memory is its own."""

import contextlib
import json
import resource
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.children import run_module, tail

Figures = dict[str, float]


def in_turn(module: str, ways: Iterable[str], num_rounds: int, keep: Path | None = None) -> dict[str, list[Figures]]:
    """Return what a benchmark prints as JSON for each way, round by round.

    Args:
        module: The benchmark, run with this process's own arguments and ``--way``.
        ways: Names of the ways.
        num_rounds: How often each is measured.
        keep: File that holds the figures found so far, after each way.
    """
    found: dict[str, list[Figures]] = {way: [] for way in ways}
    for number in range(num_rounds):
        for way in found:
            found[way].append(_printed_figures(module, way))
            print(f"round {number + 1}, {way}: {found[way][-1]}", file=sys.stderr, flush=True)
            keep_figures(keep, found)
    return found


def _printed_figures(module: str, way: str) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        code = run_module(module, [*sys.argv[1:], "--way", way], log)
        printed = tail(log, 1000)
    if code:
        raise SystemExit(f"{printed}\n{way}: exit code {code}")
    figures: Figures = json.loads([line for line in printed.splitlines() if line.startswith("{")][-1])
    return figures


def keep_figures(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write figures as JSON where a file is named; a reader finds the former ones or these, whole."""
    if path is not None:
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)


def wait_for_device() -> None:
    """Return when the device has done all that it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def forget_peak() -> None:
    """Start the peak anew where the system can: loading in another dtype takes more than running."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> float:
    """Return the peak memory of the device where there is one, else of this process, in MiB."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return process_megabytes()


def process_megabytes() -> float:
    """Return the peak memory of this process outside a device, in MiB."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    peak = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
    return (peak if peak is not None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024
