"""What the studies of effect share: runs that are kept once they are finished, and tables of them.

A study is a list of runs, each told by its settings. A finished run is one line of a JSON lines file, so a study that
was stopped goes on where it was, and settings that are asked for later are added to those that are there.

With the environment variable ``EFFECT_LOCK`` set to a file, only one run at a time works on the machine, whichever
study it belongs to.
"""

import contextlib
import fcntl
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Settings = Mapping[str, Any]
Figures = dict[str, Any]

SEEDS = (0, 1, 2)


class FinishedRuns:
    """The finished runs of a study, by their settings.

    Args:
        path: JSON lines file, one finished run a line; made with the first run. A last line that a kill has torn is
            left out, and its run is made again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, settings: Settings) -> Figures | None:
        """Return the figures of the run with exactly these settings, or None where it is not finished."""
        wanted = _as_json(settings)
        return next((figures for known, figures in self._lines() if known == wanted), None)

    def find_or_make(self, settings: Settings, measure: Callable[[], Figures]) -> Figures:
        """Return the figures of a run, found or made now; made ones are on disk when this returns.

        Figures are what JSON can hold. The seconds that the run took are added to them as ``seconds``.
        """
        found = self.find(settings)
        if found is not None:
            return found
        with _alone_on_the_machine():
            # Another process may have made it meanwhile.
            return self.find(settings) or self._make(settings, measure)

    def _make(self, settings: Settings, measure: Callable[[], Figures]) -> Figures:
        print(f"{time.strftime('%H:%M:%S')} run {json.dumps(settings)}", file=sys.stderr, flush=True)
        started = time.monotonic()
        figures = measure()
        figures = _as_json({**figures, "seconds": round(time.monotonic() - started, 1)})
        self._append({"settings": settings, "figures": figures})
        print(f"{time.strftime('%H:%M:%S')} took {figures['seconds']} s", file=sys.stderr, flush=True)
        return figures

    def _append(self, line: Mapping[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        torn = self._path.is_file() and not self._path.read_bytes().endswith(b"\n")
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(("\n" if torn else "") + json.dumps(line) + "\n")

    def _lines(self) -> Iterator[tuple[Settings, Figures]]:
        if not self._path.is_file():
            return
        for line in self._path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                run = json.loads(line)
                yield run["settings"], run["figures"]


def _as_json(value: Any) -> Any:
    """Return a value as it comes back from a file: tuples as lists, paths as text."""
    return json.loads(json.dumps(value, default=str))


@contextlib.contextmanager
def _alone_on_the_machine() -> Iterator[None]:
    path = os.environ.get("EFFECT_LOCK")
    if not path:
        yield
        return
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def seeds_first(seeds: Iterable[int], variants: Sequence[Settings]) -> list[dict[str, Any]]:
    """Return the settings of all runs, every variant with the first seed before any with the second.

    A study that was stopped so has a whole table of fewer seeds rather than a part of a table.
    """
    return [{**variant, "seed": seed} for seed in seeds for variant in variants]


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """Return ``"mean ± sample standard deviation"``; of one value, that value alone, and of none ``"-"``."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table, lines joined."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def read_rows(path: Path, count: int | None = None) -> list[dict[str, Any]]:
    """Return the first rows of a JSON lines file, or all."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:count]]
