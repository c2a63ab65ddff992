"""The real ``axolotl`` command in a fork of a process that has its imports done.

They take longer than all that a command does with a tiny model. Each process of the tests has one such server at most,
which runs nothing itself, so every command finds the modules as they are after their import.
"""

import multiprocessing
import os
import sys

from tests.benchmarks.children import run_here

_PRELOADED = (
    *("axolotl.cli.main", "axolotl.cli.train", "axolotl.cli.merge_lora", "axolotl.cli.evaluate"),
    *("axolotl.core.builders", "axolotl.utils.data", "trl.trainer.reward_trainer", "peft", "datasets"),
    *("axolotl_sdft.integrations.axolotl.plugin", "axolotl_sdft.inference.local.backend"),
    *("axolotl_sdft.distillation.output.dataset", "axolotl_sdft.pruning.pipeline"),
)


def run(words, folder, log, environment, stdin="", limit=1200):
    """Run a command in a folder, all that it prints going into a file, and return its exit code."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(_PRELOADED))
    child = server.Process(target=_run_here, args=(words, folder, log, dict(environment), stdin))
    child.start()
    child.join(limit)
    if child.exitcode is None:
        child.kill()
        child.join()
    return child.exitcode


def _run_here(words, folder, log, environment, stdin):
    read_end, write_end = os.pipe()
    os.write(write_end, stdin.encode())
    os.close(write_end)
    os.dup2(read_end, 0)
    sys.stdin = os.fdopen(0)  # multiprocessing has closed its own
    # What this process starts by itself, such as workers that load data, must not come from a server of its own.
    multiprocessing.set_start_method(None, force=True)
    run_here("axolotl.cli.main", words, log, folder, environment)
