"""Processes of their own, forked from one that has the imports done.

The imports take longer than all that is done with a tiny model. Each process of the tests has one such server at most,
which runs nothing itself, so everything forked from it finds the modules as they are after their import.
"""

import contextlib
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.children import begin, run_here, tail

_PRELOADED = (
    *("axolotl.cli.main", "axolotl.cli.train", "axolotl.cli.merge_lora", "axolotl.cli.evaluate"),
    *("axolotl.core.builders", "axolotl.utils.data", "trl.trainer.reward_trainer", "peft", "datasets"),
    *("axolotl_sdft.integrations.axolotl.plugin", "axolotl_sdft.inference.local.backend"),
    *("axolotl_sdft.distillation.output.dataset", "axolotl_sdft.pruning.pipeline"),
    *("tests.distillation.runs", "tests.training.micro_batches"),
)


def server() -> Any:
    """Return the context of multiprocessing whose processes are forked from the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))  # what is not installed is left out
    return context


def run_axolotl(
    words: list[str], folder: Path, log: Path, environment: Mapping[str, str], stdin: str = "", limit: float = 1200
) -> int | None:
    """Run a command of Axolotl in a folder, all that it prints going into a file, and return its exit code."""
    child = server().Process(target=_axolotl, args=(words, folder, log, dict(environment), stdin))
    child.start()
    child.join(limit)
    if child.exitcode is None:
        child.kill()
        child.join()
    code: int | None = child.exitcode
    return code


def run_ranks(work: Callable[[Path], None], folder: Path, limit: float = 900) -> None:
    """Run a function as two ranks that train together on this CPU; both must end well.

    Args:
        work: Takes the folder; finds its number in the environment variable ``RANK``, as a launcher would give it.
        folder: Where the ranks leave their results and, in a file each, what they print.
        limit: Most seconds that they may take.
    """
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    shared |= {"ACCELERATE_USE_CPU": "true"}
    logs = [folder / f"rank{rank}.log" for rank in (0, 1)]
    ranks = [
        server().Process(
            target=_rank, args=(work, folder, log, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}), daemon=True
        )
        for rank, log in enumerate(logs)
    ]
    for rank in ranks:
        rank.start()
    try:
        for rank, log in zip(ranks, logs, strict=True):
            rank.join(limit)
            assert rank.exitcode == 0, f"{log} ends in:\n{tail(log)}"
    finally:  # one that waits for a rank that has failed
        for rank in ranks:
            rank.kill()


def _axolotl(words: list[str], folder: Path, log: Path, environment: dict[str, str], stdin: str) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, stdin.encode())
    os.close(write_end)
    os.dup2(read_end, 0)
    sys.stdin = os.fdopen(0)  # multiprocessing has closed its own
    # What this process starts by itself, such as workers that load data, must not come from a server of its own.
    multiprocessing.set_start_method(None, force=True)
    run_here("axolotl.cli.main", words, log, folder, environment)


def _rank(work: Callable[[Path], None], folder: Path, log: Path, environment: dict[str, str]) -> None:
    import torch

    begin(log, environment)
    torch.set_num_threads(1)
    work(folder)


def _free_port() -> int:
    """Return a port that nothing is given by chance before the ranks listen there, as those of the upper range are."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")
