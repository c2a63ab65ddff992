"""Times scoring, patching and cutting a model, on the device where there is one, and says what memory each takes.

    python -m tests.benchmarks.random_models 8b DIR/8b       # 16 GB of random weights
    python -m tests.benchmarks.bench_pruning --model-dir DIR/8b --workdir DIR

The model is loaded in bfloat16. Calibration text is random tokens; every map of the patch is kept, whatever it is
worth, so that writing it is timed as well. Each stage is run once.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.effect_runs import markdown_table
from tests.benchmarks.rounds import forget_peak, keep_figures, peak_megabytes, process_megabytes, wait_for_device

Figures = dict[str, dict[str, float]]


def stages(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Give the name of each stage with what runs it; a stage finds what the former ones left."""
    import torch
    from transformers import AutoModelForCausalLM

    from axolotl_sdft import cut_layers, fit_patch, score_layers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    left: dict[str, Any] = {}

    def load() -> None:
        settings = {"dtype": torch.bfloat16, "device_map": {"": device}}
        left["model"] = AutoModelForCausalLM.from_pretrained(options.model_dir, **settings).eval()
        left["batches"] = batches(left["model"].config.vocab_size, options)

    def patch() -> None:
        left["patch"] = fit_patch(left["model"], left["batches"], options.drop_layers, hold_out=False)

    yield "load", load
    yield "score", lambda: score_layers(left["model"], left["batches"])
    yield "patch", patch
    yield "cut, bare", lambda: cut_layers(options.model_dir, options.drop_layers, options.workdir / "bare")
    target = options.workdir / "patched"
    yield "cut, patched", lambda: cut_layers(options.model_dir, options.drop_layers, target, patch=left["patch"])


def batches(vocabulary: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return calibration text of random tokens, the same each time."""
    import torch

    torch.manual_seed(0)
    rows = torch.randint(0, vocabulary, (options.rows, options.tokens))
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows.split(options.batch_size)]


def measured(options: argparse.Namespace) -> Figures:
    """Return seconds and peak memory of each stage; the checkpoints that were made are deleted."""
    found: Figures = {}
    for name, run in stages(options):
        forget_peak()
        started = time.perf_counter()
        run()
        wait_for_device()
        seconds = time.perf_counter() - started
        # On a GPU the first is that of the device.
        found[name] = {"seconds": seconds, "megabytes": peak_megabytes(), "process_megabytes": process_megabytes()}
        keep_figures(options.json, found)
        for made in ("bare", "patched"):  # at once: a disk may have room for one
            shutil.rmtree(options.workdir / made, ignore_errors=True)
    return found


def table(found: Figures) -> str:
    """Return the table of all stages."""
    keys = {"seconds": 1, "megabytes": 0, "process_megabytes": 0}
    rows = [[name, *(f"{figures[key]:.{digits}f}" for key, digits in keys.items())] for name, figures in found.items()]
    return markdown_table(
        ["stage", "seconds", "peak of the device, or without one of the process, MB", "process, MB"], rows
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True, help="where the cut models are written, then deleted")
    parser.add_argument("--drop-layers", type=int, nargs="+", default=list(range(20, 28)))
    parser.add_argument("--rows", type=int, default=64, help="texts of random tokens (default: 64)")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of each (default: 512)")
    parser.add_argument("--batch-size", type=int, default=8, help="texts per forward pass (default: 8)")
    parser.add_argument("--json", type=Path, help="file for the figures, written after each stage")
    print(table(measured(parser.parse_args(arguments))))


if __name__ == "__main__":
    main()
