"""Measures what scoring costs beside bare forward passes: ``python -m tests.benchmarks.bench_scoring MODEL_DIR``.

Three ways in turn, several rounds, each in a process of its own so that its peak memory is its own: the model's body
run on the same text with nothing measured, ``score_layers``, and the usual way, all hidden states of the text kept
(``output_hidden_states``). Prints medians of the wall time, without loading, and of the peak memory as a table.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.rounds import forget_peak, in_turn, peak_megabytes

WAYS = ("forward", "scoring", "keeping")
_TITLES = {
    "forward": "bare forward passes, no head",
    "scoring": "`score_layers`",
    "keeping": "forward passes that keep all hidden states",
}


def measure(way: str, options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds that one way takes and the peak memory of this process, in MB."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(options.model_dir, dtype=getattr(torch, options.dtype)).eval()
    vocabulary = model.get_input_embeddings().num_embeddings
    rows = torch.randint(0, vocabulary, (options.rows, options.tokens))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows.split(options.batch_size)]
    run = _runner(way, model)
    run(batches[:1])  # the first pass prepares kernels
    forget_peak()
    started = time.perf_counter()
    run(batches)
    return {"seconds": time.perf_counter() - started, "megabytes": peak_megabytes()}


def _runner(way: str, model: Any) -> Callable[[list[dict[str, Any]]], object]:
    import torch

    from axolotl_sdft import score_layers

    def forward(batches: list[dict[str, Any]]) -> None:
        with torch.no_grad():
            for batch in batches:
                model.base_model(**batch, use_cache=False)

    def keeping(batches: list[dict[str, Any]]) -> object:
        with torch.no_grad():
            return [model(**batch, use_cache=False, output_hidden_states=True).hidden_states for batch in batches]

    return {"forward": forward, "keeping": keeping, "scoring": lambda batches: score_layers(model, batches)}[way]


def main() -> None:
    """Run all ways in child processes and print the table, or one way in this process."""
    options = _options()
    if options.way:
        print(json.dumps(measure(options.way, options)))
        return
    print("\n".join(table(in_turn("tests.benchmarks.bench_scoring", WAYS, options.rounds))))


def table(found: dict[str, list[dict[str, float]]]) -> list[str]:
    """Return the lines of a Markdown table; ratios are medians of those within a round."""
    lines = ["| | seconds | times the bare passes | peak memory, MB |", "|---|---|---|---|"]
    for way, rounds in found.items():
        seconds, megabytes = (statistics.median(figures[key] for figures in rounds) for key in ("seconds", "megabytes"))
        pairs = zip(rounds, found["forward"], strict=True)
        ratio = statistics.median(figures["seconds"] / bare["seconds"] for figures, bare in pairs)
        lines.append(f"| {_TITLES[way]} | {seconds:.1f} | {ratio:.3f} | {megabytes:.0f} |")
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--rows", type=int, default=64, help="texts of random tokens (default: 64)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each (default: 256)")
    parser.add_argument("--batch-size", type=int, default=4, help="texts per forward pass (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is measured (default: 5)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--way", choices=WAYS, help="measure one way in this process and print it as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
