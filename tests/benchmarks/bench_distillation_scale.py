"""Time and memory of the self-distilled dataset around a backend that answers at once, by number of rows.

    python tests/benchmarks/bench_distillation_scale.py 10000 100000 1000000

Each size runs in processes of its own: one makes the rows, one rewrites them, one starts again on the full journal.
With ``--scan-only``, which a million rows need minutes less for, the rows are only read: what is asked, what is left
alone, and their digests. Prints a Markdown table. Peak memory is what the kernel reports for the process (it counts
mapped files that were read); the anonymous part of it, which is what the process itself holds, is sampled.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axolotl_sdft.distillation import pipeline
from axolotl_sdft.inference.interfaces import Answer, Prompt, Target
from axolotl_sdft.plugins.specifications import hookimpl

COLUMNS = {
    "rows": "Rows",
    "seconds": "Seconds",
    "rows_per_s": "Rows/s",
    "content_s": "Reading, s",
    "generation_s": "Generation, s",
    "build_s": "Building, s",
    "peak_mb": "Peak, MB",
    "above_start_mb": "Above start, MB",
    "anonymous_mb": "Own memory above start, MB",
    "scan_s": "Journal scan, s",
    "restart_s": "Restart without dataset, s",
}

SCAN_COLUMNS = {
    "rows": "Rows",
    "wall_s": "Seconds",
    "cpu_s": "CPU, s",
    "peak_mb": "Peak, MB",
    "above_start_mb": "Above start, MB",
    "anonymous_mb": "Own memory above start, MB",
}


class InstantBackend:
    """Answers at once with a few of the prompt's own words."""

    def __init__(self, model_dir: Path, config: Any) -> None:
        self._batch_rows = config.max_batch_size

    def check(self) -> None:
        """Find nothing wrong."""

    def batches(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        """Split prompts as they come."""
        return [list(prompts[at : at + self._batch_rows]) for at in range(0, len(prompts), self._batch_rows)]

    def generate(self, batches: Iterable[list[Prompt]]) -> Iterator[tuple[list[Prompt], list[Answer]]]:
        """Yield each batch with its answers."""
        for batch in batches:
            yield batch, [Answer(prompt.messages[-1]["content"][-60:], "stop", 15, -0.5) for prompt in batch]

    def answer_nll(self, targets: Sequence[tuple[Target, str]]) -> list[float]:
        """Return any number for each text."""
        return [float(len(text)) for _, text in targets]

    def close(self) -> None:
        """Free nothing."""


@hookimpl
def sdft_register_backends(register: Any) -> None:
    """Register the backend."""
    register("instant", InstantBackend)


def make_rows(folder: Path, num_rows: int) -> None:
    """Write short rows of their own words each."""
    from datasets import Dataset

    def rows() -> Iterator[dict[str, str]]:
        for index in range(num_rows):
            question = f"How many apples are left when {index % 97} of {index} are eaten?"
            yield {"instruction": question, "input": "", "output": f"There are {index - index % 97} apples left."}

    Dataset.from_generator(rows, cache_dir=str(folder / "cache")).save_to_disk(folder / "rows")


def rewrite(folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Rewrite the rows and return what it took."""
    task = _task(folder, settings)
    with _memory() as used:
        started = time.perf_counter()
        _ = task.dataset_dir  # reads all rows
        content_s = time.perf_counter() - started
        stamps: list[float] = []
        build = pipeline._build
        pipeline._build = lambda *args: (stamps.append(time.perf_counter()), build(*args))[1]
        pipeline.run_distillation(task)
        seconds = time.perf_counter() - started
    build_s = time.perf_counter() - stamps[0]
    figures = {"seconds": seconds, "rows_per_s": len(task.dataset) / seconds, "content_s": content_s}
    return figures | {"generation_s": seconds - build_s - content_s, "build_s": build_s} | used


def scan(folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Read all rows, as happens before anything is generated, and return what it took."""
    task = _task(folder, settings)
    with _memory() as used:
        started, started_cpu = time.perf_counter(), time.process_time()
        assert task.content.most_targets == 1
        figures = {"wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - started_cpu}
    return figures | used


def restart(folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Read the full journal, then run again on it with the dataset gone."""
    import shutil

    from axolotl_sdft.distillation.generation.journal import Journal

    task = _task(folder, settings)
    shutil.rmtree(task.dataset_dir)
    started = time.perf_counter()
    journal = Journal(task.answers_dir)
    journal.refresh()
    num_answers = len(journal)
    scan_s = time.perf_counter() - started
    journal.close()
    assert num_answers >= len(task.dataset)
    started = time.perf_counter()
    pipeline.run_distillation(task)
    return {"scan_s": scan_s, "restart_s": time.perf_counter() - started}


def _task(folder: Path, settings: dict[str, Any]) -> Any:
    from datasets import load_from_disk

    from axolotl_sdft import SelfDistillationConfig
    from axolotl_sdft.distillation.spec import DistillationSpec
    from axolotl_sdft.plugins.registry import registry

    registry().add_plugin(sys.modules[__name__], "instant")
    seed_dir = folder / "seed"
    seed_dir.mkdir(exist_ok=True)
    (seed_dir / "config.json").write_text("{}")
    config = SelfDistillationConfig(output_dir=str(folder / "out"), **settings)
    return DistillationSpec(load_from_disk(str(folder / "rows")), config, seed_dir, {"type": "alpaca"}, "instant")


def _status(key: str) -> float:
    """Return a figure of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":"))


@contextmanager
def _memory() -> Iterator[dict[str, float]]:
    """Give figures that are filled when the block ends: the peak, and how far it is above the start."""
    start, start_anonymous, peak_anonymous = _status("VmRSS"), _status("RssAnon"), 0.0
    is_over, used = threading.Event(), dict[str, float]()

    def watch() -> None:
        nonlocal peak_anonymous
        while not is_over.wait(0.05):
            peak_anonymous = max(peak_anonymous, _status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield used
    finally:
        is_over.set()
        watcher.join()
    peak = _status("VmHWM")
    used |= {"peak_mb": peak, "above_start_mb": peak - start, "anonymous_mb": peak_anonymous - start_anonymous}


def _in_child(step: str, folder: Path, argument: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--step", step, str(folder), argument]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _run_step(step: str, folder: Path, argument: str) -> dict[str, float]:
    if step == "make":
        make_rows(folder, int(argument))
        return {}
    return {"rewrite": rewrite, "restart": restart, "scan": scan}[step](folder, json.loads(argument))


def main() -> None:
    """Measure each size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help="how many rows; several numbers give several lines")
    parser.add_argument("--batch-rows", type=int, default=16, help="prompts in a batch; 1 is what servers get")
    parser.add_argument("--max-attempts", type=int, default=1)
    parser.add_argument("--scan-only", action="store_true", help="read the rows and stop")
    parser.add_argument("--step", choices=("make", "rewrite", "restart", "scan"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(_run_step(arguments.step, Path(arguments.rows[0]), arguments.rows[1])))
        return
    generation = {"backend": "instant", "max_batch_size": arguments.batch_rows, "temperature": 0.7}
    settings = json.dumps({"generation": generation, "max_attempts": arguments.max_attempts})
    columns = SCAN_COLUMNS if arguments.scan_only else COLUMNS
    print("| " + " | ".join(columns.values()) + " |\n|" + "---:|" * len(columns))
    for num_rows in map(int, arguments.rows or ("10000", "100000")):
        with tempfile.TemporaryDirectory() as folder:
            _in_child("make", Path(folder), str(num_rows))
            steps = ("scan",) if arguments.scan_only else ("rewrite", "restart")
            figures: dict[str, float] = {"rows": num_rows}
            for step in steps:
                figures |= _in_child(step, Path(folder), settings)
        print(
            "| " + " | ".join(f"{figures[key]:,.{1 if key.endswith('_s') else 0}f}" for key in columns) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
