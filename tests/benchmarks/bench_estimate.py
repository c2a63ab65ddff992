"""Compares the time that a dry run of rewriting foretells with what the rewriting takes.

    python -m tests.benchmarks.bench_estimate --model-dir models/SmolLM2-135M-Instruct

Two shapes: a few rows with long answers, and many rows with short ones. The rows are those of the quickstart. The
model is loaded once and not counted. Both sides count seconds of the processor on one thread, so that other work beside
does not change the ratio. The whole rewriting holds what the dry run leaves out: journal, checks, distribution gap and
the report.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import Dataset, load_dataset

from axolotl_sdft.config import SelfDistillationConfig
from axolotl_sdft.distillation.output import preview as previews
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.spec import DistillationSpec
from tests.benchmarks.effect_runs import markdown_table

ROWS = Path("example_configs/data/quickstart.jsonl")
SHAPES = {"few long": (12, 192, 4), "many short": (96, 24, 4)}
"""Rows, new tokens at most, and rows that the dry run shows."""


def main(argv: list[str] | None = None) -> None:
    """Measure both shapes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = load_dataset("json", data_files=str(ROWS), split="train")
    lines = []
    for name in options.shapes:
        foretold, taken = measure(options.model_dir, rows, *SHAPES[name])
        lines.append([name, *SHAPES[name], f"{foretold:.1f}", f"{taken:.1f}", f"{foretold / taken:.2f}"])
        print(lines[-1], flush=True)
    header = ["rows", "number", "new tokens at most", "shown", "foretold, s", "taken, s", "ratio"]
    print(markdown_table(header, lines))


def measure(model_dir: Path, rows: Dataset, num_rows: int, max_new_tokens: int, num_shown: int) -> tuple[float, float]:
    """Return the seconds of the processor that are foretold, and those that the whole rewriting takes."""
    with tempfile.TemporaryDirectory() as folder:
        config = SelfDistillationConfig.model_validate(
            {"output_dir": folder, "generation": {"max_new_tokens": max_new_tokens}}
        )
        spec = DistillationSpec(
            rows.select(range(num_rows)), config, model_dir.absolute(), {"type": "chat_template"}, "seed model"
        )
        backend = _loaded(spec)
        with mock.patch.object(previews.time, "monotonic", time.process_time):
            previewed = previews.preview(spec, num_shown)
        started = time.process_time()
        run_distillation(spec)
        taken = time.process_time() - started
        del backend
    return previewed.seconds_for(num_rows), taken


def _loaded(spec: DistillationSpec) -> Any:
    """Return a backend whose model is loaded, and let the spec give it to all that ask."""
    backend = spec.backend_factory(spec.seed_dir, spec.config.generation)
    backend.load()
    backend.close = lambda: None
    vars(spec)["backend_factory"] = lambda *_: backend
    return backend


if __name__ == "__main__":
    main()
