"""Runs the stage in processes of their own, which can be killed, with the echo backend and rows of one to three turns.

They are forked from one that has imported everything, so each starts in milliseconds.
"""

import multiprocessing
import os
import resource
import time
from pathlib import Path

from datasets import Dataset, load_from_disk

from axolotl_sdft import SelfDistillationConfig
from axolotl_sdft.core import ranks
from axolotl_sdft.distillation import generation
from axolotl_sdft.distillation.journal import Journal
from axolotl_sdft.distillation.transform import DistillationTask
from axolotl_sdft.plugins import registry
from tests.distillation import echo_backend

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.distillation.runs"])

registry()  # loading all plugins takes seconds, which the processes forked from this one save

NUM_ROWS = 300
NUM_TARGETS = sum(1 + index % 3 for index in range(NUM_ROWS))


def chat_rows(num_rows=NUM_ROWS):
    """Conversations of one, two, three, one, ... trained turns."""
    rows = []
    for index in range(num_rows):
        messages = []
        for turn in range(1 + index % 3):
            messages.append({"role": "user", "content": f"Question {turn} of {index}"})
            messages.append({"role": "assistant", "content": f"Answer {turn} of {index}"})
        rows.append({"id": index, "messages": messages})
    return Dataset.from_list(rows)


def echo_task(root, num_rows=NUM_ROWS):
    """The work of all runs: answers that end in a 7 are rejected, and asked for twice more."""
    settings = {"template": "plain", "checks": ("no_seven",), "on_reject": "retry", "generation": {"backend": "echo"}}
    config = SelfDistillationConfig(output_dir=str(root / "out"), **settings)
    seed_dir = root / "seed"
    seed_dir.mkdir(parents=True, exist_ok=True)
    (seed_dir / "config.json").write_text("{}")
    return DistillationTask(chat_rows(num_rows), config, seed_dir, {"type": "chat_template"}, "seed")


def _run(root, env, window_rows, max_file_bytes, started):
    os.environ.update(env)
    generation._WINDOW_ROWS = window_rows
    ranks._MAX_POLL_S = 0.02
    registry().add_plugin(echo_backend, "echo")
    task = echo_task(root)
    if max_file_bytes is not None:  # no file may grow further, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    started.set()
    try:
        task.run()
    except OSError as err:
        (root / "error.txt").write_text(f"{type(err).__name__}: {err}")
        raise SystemExit(1) from err


def start(root, seconds_per_batch=0.0, window_rows=64, max_file_bytes=None, **env):
    """Return a process that has just begun to rewrite the rows."""
    started = CONTEXT.Event()
    env = {"ECHO_SECONDS": str(seconds_per_batch), "ECHO_LOG": str(root / "generated.txt")} | env
    process = CONTEXT.Process(target=_run, args=(root, env, window_rows, max_file_bytes, started))
    process.start()
    assert started.wait(60)
    return process


def finish(*processes):
    """Wait for processes that must end well."""
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


def rewrite(root, num_ranks=1, **settings):
    """Rewrite the rows on some ranks, to the end."""
    ranks = [start(root, RANK=str(rank), WORLD_SIZE=str(num_ranks), **settings) for rank in range(num_ranks)]
    finish(*ranks)


def result(root):
    """Return the rows of the distilled dataset."""
    return load_from_disk(str(distilled_dir(root))).to_list()


def distilled_dir(root):
    (folder,) = (root / "out").glob("distilled-*")
    return folder


def journaled(root):
    """Return what stands in the journal: the keys of all answers."""
    keys = set()
    for folder in (root / "out").glob("answers-*"):
        journal = Journal(folder)
        journal.refresh()
        keys |= set(journal)
    return keys


def shares(root):
    """Return how many answers stand in each file of the journal."""
    (folder,) = (root / "out").glob("answers-*")
    files = sorted(folder.glob("answers-*.jsonl"))
    return [sum('"question"' in line for line in path.read_text().splitlines()) for path in files]


def generated(root):
    """Return the key of each answer that was generated, in order."""
    log = root / "generated.txt"
    return [bytes.fromhex(line) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for_answers(root, count):
    """Wait until the journal holds more answers than so many."""
    deadline = time.monotonic() + 60
    while len(journaled(root)) <= count and time.monotonic() < deadline:
        time.sleep(0.01)


def error_of(root):
    """Return the error that ended a run."""
    return (Path(root) / "error.txt").read_text()
