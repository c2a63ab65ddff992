"""Compares the speed of ways to have a seed model rewrite answers.

    python -m tests.benchmarks.bench_rewriting --model-dir models/SmolLM2-135M-Instruct --data dolly.jsonl
    python -m tests.benchmarks.bench_rewriting --model-dir DIR --data dolly.jsonl --server-url http://localhost:8000/v1

The ways take turns, so that a machine that gets slower slows down all of them: one row at a time in float32 through
``model.generate``, the ``transformers`` backend, and, where a server is named, the ``openai`` backend. All get the same
prompts, made by the template ``reference``, and decode greedily. Loading the model is not measured.
Prints medians and ratios of the tokens per second as Markdown. Tokens are those written, the end of a turn among them.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from axolotl_sdft.config import TransformersGeneration
from axolotl_sdft.distillation.templates import resolve_template
from axolotl_sdft.inference.interfaces import Backend, Prompt, Target
from axolotl_sdft.inference.local.backend import TransformersBackend
from axolotl_sdft.inference.openai.backend import OpenAIBackend
from axolotl_sdft.inference.prompts import end_ids, load_tokenizer, prompt_ids

ONE_BY_ONE = "one row at a time, float32, `model.generate`"
EMBEDDED = "`transformers` backend"
SERVED = "`openai` backend"

Way = Callable[[list[Prompt]], int]


def read_prompts(data: Path, num_rows: int) -> list[Prompt]:
    """The rewriting prompts of the first rows, each with ``instruction``, ``output`` and perhaps ``input``."""
    template = resolve_template("reference")
    prompts = []
    with data.open(encoding="utf-8") as file:
        for number, line in enumerate(islice(file, num_rows)):
            row = json.loads(line)
            question = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
            target = Target(({"role": "user", "content": question},), row["output"])
            prompts.append(Prompt((number, 0), tuple(template(target))))
    return prompts


def one_by_one(model_dir: Path, config: TransformersGeneration) -> Way:
    """The reference way; returns how many tokens were written."""
    tokenizer = load_tokenizer(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    ends = end_ids(model.generation_config.eos_token_id, tokenizer)

    @torch.inference_mode()
    def write(prompts: list[Prompt]) -> int:
        written = 0
        for prompt in prompts:
            ids_1T = torch.tensor([prompt_ids(tokenizer, prompt.messages)])
            output_1T = model.generate(
                ids_1T,
                attention_mask=torch.ones_like(ids_1T),
                max_new_tokens=config.max_new_tokens,
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
            )
            written += output_1T.shape[1] - ids_1T.shape[1]
        return written

    return write


def through(backend: Backend) -> Way:
    """A backend; returns how many tokens were written."""

    def write(prompts: list[Prompt]) -> int:
        answers = [answer for _, batch in backend.generate(backend.batches(prompts)) for answer in batch]
        failed = [answer.error for answer in answers if answer.error]
        if failed:
            raise SystemExit(f"{len(failed)} rows failed: {failed[0]}")
        # The end of a turn is a token that was written; servers count it already.
        ended = sum(answer.finish_reason == "stop" for answer in answers)
        return sum(answer.num_tokens for answer in answers) + (0 if isinstance(backend, OpenAIBackend) else ended)

    return write


def measure(ways: dict[str, Way], prompts: list[Prompt], rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each way in each round."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    print("| round | way | tokens | s | tokens/s |\n|---|---|---|---|---|", flush=True)
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            started = time.perf_counter()
            tokens = ways[name](prompts)
            seconds = time.perf_counter() - started
            rates[name].append(tokens / seconds)
            print(f"| {number} | {name} | {tokens} | {seconds:.1f} | {tokens / seconds:.1f} |", flush=True)
    return rates


def print_ratios(rates: dict[str, list[float]]) -> None:
    """Print the medians, and the ratios to the first way round by round."""
    print("\n| way | tokens/s, median | times the first, median (least to most) |\n|---|---|---|")
    first = next(iter(rates.values()))
    for name, own in rates.items():
        ratios = [rate / base for rate, base in zip(own, first, strict=True)]
        shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {statistics.median(own):.1f} | {shown} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare ways to have a seed model rewrite answers.")
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="JSON lines with instruction, input and output")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--server-url", help="a server of the same model, such as http://localhost:8000/v1")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    prompts = read_prompts(arguments.data, arguments.rows)
    config = TransformersGeneration(max_new_tokens=arguments.new_tokens)
    with contextlib.ExitStack() as stack:
        embedded = stack.enter_context(contextlib.closing(TransformersBackend(arguments.model_dir, config)))
        ways = {ONE_BY_ONE: one_by_one(arguments.model_dir, config), EMBEDDED: through(embedded)}
        if arguments.server_url:
            asking = config.model_copy(update={"backend": "openai", "base_urls": (arguments.server_url,)})
            served = stack.enter_context(contextlib.closing(OpenAIBackend(arguments.model_dir, asking)))
            served.check()
            ways[SERVED] = through(served)
        for way in ways.values():
            way(prompts[:1])  # loads the model, and prepares kernels
        print_ratios(measure(ways, prompts, arguments.rounds))


if __name__ == "__main__":
    main()
