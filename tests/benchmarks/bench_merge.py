"""Times a SLERP of two checkpoints against mergekit's, and measures the peak memory of each.

    python -m tests.benchmarks.bench_merge --workdir bench --gigabytes 1 --mergekit ../mergekit-venv/bin/mergekit-yaml

Makes two random bfloat16 Llamas once, then runs each way in turn, several rounds, each in a process of its own: so
imports count. Prints medians; memory is the largest resident set, which counts pages of files that are mapped.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.bench_cut import make_checkpoint
from tests.benchmarks.rounds import in_turn

RATIO = 0.3
OURS, MERGEKIT = "merge_models", "mergekit slerp"


def command(way: str, options: argparse.Namespace, output: Path) -> list[str]:
    """Return what runs one way, writing into ``output``."""
    first, second = model_dirs(options)
    if way == OURS:
        program = "import sys; from axolotl_sdft.evaluation.merging.merge import merge_models; "
        program += f"merge_models(*sys.argv[1:], ratio={RATIO})"
        return [sys.executable, "-c", program, str(first), str(second), str(output)]
    recipe = options.workdir / "slerp.yml"
    recipe.write_text(
        json.dumps(
            {
                "models": [{"model": str(first)}, {"model": str(second)}],
                **{"merge_method": "slerp", "base_model": str(first), "parameters": {"t": RATIO}, "dtype": "bfloat16"},
            }
        )
    )
    return [options.mergekit, str(recipe), str(output), "--no-copy-tokenizer"]


def model_dirs(options: argparse.Namespace) -> tuple[Path, Path]:
    """Return the folders of the two models, made unless they are there."""
    folders = tuple(options.workdir / f"{name}-{options.gigabytes}" for name in ("first", "second"))
    for folder in folders:
        if not folder.exists():
            make_checkpoint(folder, options.gigabytes)
    return folders[0], folders[1]


def measure(way: str, options: argparse.Namespace) -> dict[str, float]:
    """Run one way once and return its seconds and peak megabytes; what it wrote is deleted."""
    output = options.workdir / "merged"
    shutil.rmtree(output, ignore_errors=True)
    model_dirs(options)
    os.sync()  # what the previous way left to be written must not slow down this one
    start = time.perf_counter()
    subprocess.run(command(way, options, output), check=True, capture_output=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(output)
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3}


def main() -> None:
    """Run the rounds and print a table, or, as a child, measure one way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mergekit", help="mergekit-yaml of an environment that has mergekit")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options)))
        return
    model_dirs(options)
    ways = (OURS, MERGEKIT) if options.mergekit else (OURS,)
    print("| Way | seconds | peak MB |\n|---|---|---|")
    for way, rounds in in_turn("tests.benchmarks.bench_merge", ways, options.rounds).items():
        seconds, peak = (statistics.median(figures[key] for figures in rounds) for key in ("seconds", "peak_mb"))
        print(f"| {way} | {seconds:.2f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
