"""Compares the speed of ways to have a seed model rewrite answers.

    python -m tests.benchmarks.bench_rewriting --model-dir models/SmolLM2-135M-Instruct --data dolly.jsonl
    python -m tests.benchmarks.bench_rewriting --model-dir DIR --data dolly.jsonl --server-url http://localhost:8000/v1
    python -m tests.benchmarks.bench_rewriting --model-dir DIR --data dolly.jsonl --random-shape 8b

The ways take turns, so that a machine that gets slower slows down all of them: the ``transformers`` backend, padded
``model.generate`` in batches, transformers' continuous batching, one row at a time in float32, and, where a server is
named, the ``openai`` backend. All get the same prompts, made by the template ``reference``, and decode greedily. The
first three share one model. Loading it is not measured.
Prints medians and ratios of the tokens per second as Markdown, the peak memory, and the share of texts that equal those
of the backend. Tokens are those written, the end of a turn among them, and no padding. Where other work runs beside,
the processor's time tells more than the clock's. ``--random-shape`` takes the tokenizer alone from ``--model-dir`` and
gives a model of that shape random weights.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from axolotl_sdft.config import OpenAIGeneration, TransformersGeneration
from axolotl_sdft.core.runtime import local_device
from axolotl_sdft.distillation.templates import resolve_template
from axolotl_sdft.inference.interfaces import Prompt, Target
from axolotl_sdft.inference.loading import load_seed_model
from axolotl_sdft.inference.local.backend import TransformersBackend
from axolotl_sdft.inference.prompts import load_tokenizer
from tests.benchmarks.random_models import SHAPES, random_llama
from tests.benchmarks.rewriting_ways import Way, WayMissingError, Written, continuous, one_by_one, padded, through
from tests.benchmarks.rounds import forget_peak, keep_figures, peak_megabytes, wait_for_device

TITLES = {
    "backend": "`transformers` backend",
    "padded": "padded `model.generate` in batches",
    "continuous": "`model.generate_batch`",
    "one-by-one": "one row at a time, float32, `model.generate`",
    "server": "`openai` backend",
}

Rounds = dict[str, list[dict[str, float]]]
"""Figures of each way, round by round."""


def read_prompts(data: Path, num_rows: int) -> list[Prompt]:
    """The rewriting prompts of the first rows: ``messages``, or ``instruction``, ``output`` and perhaps ``input``."""
    template = resolve_template("reference")
    with data.open(encoding="utf-8") as file:
        targets = [_target(json.loads(line)) for line in islice(file, num_rows)]
    return [Prompt((number, 0), tuple(template(target))) for number, target in enumerate(targets)]


def _target(row: Mapping[str, Any]) -> Target:
    if "messages" in row:
        *context, answer = row["messages"]
        return Target(tuple(context), answer["content"])
    question = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
    return Target(({"role": "user", "content": question},), row["output"])


def made_ways(options: argparse.Namespace, prompts: list[Prompt], closing: contextlib.ExitStack) -> dict[str, Way]:
    """Return the ways that were asked for and work here; of the others, print why they do not."""
    config = TransformersGeneration(max_new_tokens=options.new_tokens, temperature=0.0)
    model = _model(options, config)
    backend = closing.enter_context(contextlib.closing(TransformersBackend(options.model_dir, config, model)))
    makers: dict[str, Callable[[], Way]] = {
        "backend": lambda: through(backend),
        "padded": lambda: padded(options.model_dir, model, config),
        "continuous": lambda: continuous(options.model_dir, model, config, prompts),
        "one-by-one": lambda: _one_by_one(options, config),
    }
    ways: dict[str, Way] = {}
    for name in options.ways:
        try:
            ways[name] = makers[name]()
        except WayMissingError as err:
            print(f"{TITLES[name]}: not run, {err}", flush=True)
    if options.server_url:
        ways["server"] = _server(options, config, closing)
    return ways


def _model(options: argparse.Namespace, config: TransformersGeneration) -> Any:
    if options.random_shape:
        return random_llama(options.random_shape, str(local_device()), load_tokenizer(options.model_dir))
    return load_seed_model(options.model_dir, config)


def _one_by_one(options: argparse.Namespace, config: TransformersGeneration) -> Way:
    if options.random_shape:
        raise WayMissingError("it loads a model of its own in float32 from --model-dir; --random-shape has none")
    return one_by_one(options.model_dir, config)


def _server(options: argparse.Namespace, config: TransformersGeneration, closing: contextlib.ExitStack) -> Way:
    from axolotl_sdft.inference.openai.backend import OpenAIBackend  # a machine without servers may lack its packages

    asking = OpenAIGeneration(
        backend="openai", base_urls=(options.server_url,), max_new_tokens=config.max_new_tokens, temperature=0.0
    )
    backend = closing.enter_context(contextlib.closing(OpenAIBackend(options.model_dir, asking)))
    backend.check()
    return through(backend, counts_ends=True)  # servers do


def measure(ways: dict[str, Way], prompts: list[Prompt], num_rounds: int, keep: Path | None = None) -> Rounds:
    """Return seconds, tokens, their rate and the peak memory of each way in each round, and which texts agree.

    A way that fails is told of and left out. ``keep`` is a file for the figures found so far, after each way.
    """
    found: Rounds = {name: [] for name in ways}
    print("| round | way | tokens | s | CPU s | tokens/s | peak, MB |\n|---|---|---|---|---|---|---|", flush=True)
    for number in range(num_rounds):
        texts: dict[str, dict[Any, str]] = {}
        for name in list(found)[:: -1 if number % 2 else 1]:
            try:
                texts[name] = _measure(ways[name], prompts, found[name])
            except WayMissingError as err:
                print(f"{TITLES[name]}: not run, {err}", flush=True)
                del found[name]
                continue
            figures = found[name][-1]
            cells = [f"{figures[key]:.{digits}f}" for key, digits in _COLUMNS.items()]
            print(f"| {number} | {TITLES[name]} | {' | '.join(cells)} |", flush=True)
            keep_figures(keep, found)
        for name in found:
            found[name][-1]["same_texts"] = agreement(texts[name], texts[next(iter(found))])
    keep_figures(keep, found)
    return found


_COLUMNS = {"tokens": 0, "seconds": 1, "cpu_seconds": 1, "tokens_per_second": 1, "megabytes": 0}


def _measure(way: Way, prompts: list[Prompt], rounds: list[dict[str, float]]) -> dict[Any, str]:
    way.write(prompts[:1])  # loads the model, and prepares kernels
    forget_peak()
    started = time.perf_counter(), time.process_time()
    written: Written = way.write(prompts)
    wait_for_device()
    seconds, cpu_seconds = time.perf_counter() - started[0], time.process_time() - started[1]
    peak = peak_megabytes()
    way.release()
    rate = {"tokens": float(written.tokens), "seconds": seconds, "tokens_per_second": written.tokens / seconds}
    rounds.append({**rate, "cpu_seconds": cpu_seconds, "megabytes": peak})
    return written.texts


def agreement(texts: Mapping[Any, str], others: Mapping[Any, str]) -> float:
    """Return the share of rows for which two ways wrote the same text."""
    return sum(texts[key] == text for key, text in others.items()) / len(others)


def table(found: Rounds) -> list[str]:
    """Return the lines of a table of medians; ratios are to the first way, round by round."""
    header = (
        "way",
        "tokens/s, median",
        "times the first, median (least to most)",
        "peak, MB",
        "same texts as the first",
    )
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    first = next(iter(found.values()))
    for name, rounds in found.items():
        rates = [figures["tokens_per_second"] for figures in rounds]
        ratios = [rate / base["tokens_per_second"] for rate, base in zip(rates, first, strict=True)]
        shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        peak, same = (statistics.median(figures[key] for figures in rounds) for key in ("megabytes", "same_texts"))
        lines.append(f"| {TITLES[name]} | {statistics.median(rates):.1f} | {shown} | {peak:.0f} | {100 * same:.0f} % |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, measure, and print the tables."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    prompts = read_prompts(options.data, options.rows)
    with contextlib.ExitStack() as closing:
        found = measure(made_ways(options, prompts, closing), prompts, options.rounds, options.json)
    print("\n".join(["", *table(found)]))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="JSON lines with instruction, input and output")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    ways = [name for name in TITLES if name != "server"]
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways, help="default: all that work here")
    parser.add_argument("--random-shape", choices=SHAPES, help="random weights of this shape, made on the device")
    parser.add_argument("--server-url", help="a server of the same model, such as http://localhost:8000/v1")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
