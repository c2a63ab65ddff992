"""Measures several ways in turn, each in a process of its own, so that its peak memory is its own."""

import json
import subprocess
import sys
from collections.abc import Iterable

Figures = dict[str, float]


def in_turn(module: str, ways: Iterable[str], num_rounds: int) -> dict[str, list[Figures]]:
    """Return what a benchmark prints as JSON for each way, round by round.

    Args:
        module: The benchmark, run with this process's own arguments and ``--way``.
        ways: Names of the ways.
        num_rounds: How often each is measured.
    """
    found: dict[str, list[Figures]] = {way: [] for way in ways}
    for number in range(num_rounds):
        for way in found:
            child = [sys.executable, "-m", module, *sys.argv[1:], "--way", way]
            last_line = subprocess.run(child, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            found[way].append(json.loads(last_line))
            print(f"round {number + 1}, {way}: {last_line}", file=sys.stderr)
    return found
