"""Compares the `openai` backend with a bare HTTP client that sends the same requests to the same server.

    python -m tests.benchmarks.bench_openai_backend --fake --rows 2000
    python -m tests.benchmarks.bench_openai_backend --base-url http://localhost:8000/v1 --model-dir DIR --rows 256 \\
        --data rows.jsonl

The two take turns, so that a server that warms up or a machine that slows down touches both. What is printed is a
Markdown table, the ratio of rows per second, which is to be at least 0.95, and how many answers a second one core could
ask for, if servers were fast enough: what a row takes of this process's own computing tells that on any server.
"""

import argparse
import asyncio
import contextlib
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from axolotl_sdft.config import OpenAIGeneration
from axolotl_sdft.inference.interfaces import Prompt
from axolotl_sdft.inference.openai.backend import OpenAIBackend
from axolotl_sdft.inference.openai.chat_protocol import chat_request


def prompts_from(data: Path | None, num_rows: int) -> list[Prompt]:
    """The first text field of each row, or made-up questions."""
    if data is None:
        texts = [f"Which number comes after {number}?" for number in range(num_rows)]
    else:
        with data.open(encoding="utf-8") as file:
            texts = [next(iter(json.loads(line).values())) for _, line in zip(range(num_rows), file, strict=False)]
    return [Prompt((row, 0), ({"role": "user", "content": text},)) for row, text in enumerate(texts)]


def run_backend(model_dir: Path, config: OpenAIGeneration, prompts: list[Prompt]) -> tuple[float, float, int]:
    """Seconds, seconds of computing and tokens of all answers, without the check beforehand."""
    with contextlib.closing(OpenAIBackend(model_dir, config)) as backend:
        backend.check()
        started, computed = time.perf_counter(), time.process_time()
        answers = [answer for _, [answer] in backend.generate(backend.batches(prompts))]
        seconds, computing = time.perf_counter() - started, time.process_time() - computed
    failed = [answer.error for answer in answers if answer.error]
    if failed:
        raise SystemExit(f"{len(failed)} rows failed: {failed[0]}")
    return seconds, computing, sum(answer.num_tokens for answer in answers)


async def run_bare(model: str, config: OpenAIGeneration, prompts: list[Prompt]) -> tuple[float, float, int]:
    """The same with nothing but an HTTP client: as many workers as requests in flight, no retries, no checks."""
    waiting, tokens = iter(prompts), 0
    limits = httpx.Limits(max_connections=None)

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal tokens
        for prompt in waiting:
            body = chat_request(config, model, prompt, frozenset())
            response = await client.post(f"{config.base_urls[0]}/chat/completions", json=body)
            tokens += response.json()["usage"]["completion_tokens"]

    async with httpx.AsyncClient(timeout=None, limits=limits) as client:
        await client.get(f"{config.base_urls[0]}/models")
        started, computed = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work(client) for _ in range(config.concurrency)))
        return time.perf_counter() - started, time.process_time() - computed, tokens


def served_model(base_url: str) -> str:
    """The first model that a server lists."""
    return httpx.get(f"{base_url}/models").json()["data"][0]["id"]


@contextlib.contextmanager
def fake_server(reply_s: float) -> Iterator[str]:
    """A server in a process of its own that answers after a fixed time, however many ask."""
    command = [sys.executable, "-m", "tests.inference.openai.openai_server", "--port", "0", "--reply-s", str(reply_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http\S+", process.stdout.readline())
            assert found is not None
            yield found[0]
        finally:
            process.terminate()


def measure(base_url: str, model_dir: Path, arguments: argparse.Namespace) -> None:
    """Print the table and the ratio."""
    model = served_model(base_url)
    config = OpenAIGeneration(
        base_urls=(base_url,),
        model=model,
        concurrency=arguments.concurrency,
        max_new_tokens=arguments.max_new_tokens,
        temperature=0.0,
    )
    prompts = prompts_from(arguments.data, arguments.rows)
    rates: dict[str, list[float]] = {"bare client": [], "openai backend": []}
    computing: list[float] = []
    print("| round | client | s | rows/s | tokens/s | computing, ms a row |\n|---|---|---|---|---|---|")
    for number in range(arguments.rounds):
        for client in list(rates)[:: 1 if number % 2 else -1]:
            bare = client == "bare client"
            seconds, busy, tokens = (
                asyncio.run(run_bare(model, config, prompts)) if bare else run_backend(model_dir, config, prompts)
            )
            rate, busy_ms = len(prompts) / seconds, 1000 * busy / len(prompts)
            rates[client].append(rate)
            computing += [] if bare else [busy_ms]
            print(f"| {number} | {client} | {seconds:.2f} | {rate:.1f} | {tokens / seconds:.1f} | {busy_ms:.2f} |")
    ratios = [ours / bare for ours, bare in zip(rates["openai backend"], rates["bare client"], strict=True)]
    print(f"\nratio, median of {len(ratios)}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"openai backend: at most {1000 / statistics.median(computing):.0f} answers a second and core")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare the openai backend with a bare HTTP client.")
    server = parser.add_mutually_exclusive_group(required=True)
    server.add_argument("--base-url")
    server.add_argument("--fake", action="store_true", help="start a server that answers without a model")
    parser.add_argument("--model-dir", type=Path, default=Path("seed"))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--reply-s", type=float, default=0.5, help="how long the fake server takes for an answer")
    parser.add_argument("--data", type=Path, help="JSON lines; the first field of each is asked")
    arguments = parser.parse_args()
    with fake_server(arguments.reply_s) if arguments.fake else contextlib.nullcontext(arguments.base_url) as base_url:
        measure(base_url, arguments.model_dir, arguments)


if __name__ == "__main__":
    main()
