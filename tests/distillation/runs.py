"""Runs the stage in processes of their own, which can be killed, with the echo backend and rows of one to three turns.

They are forked from one that has imported everything, so each starts in milliseconds. What a process logs, the
traceback that ends it, and where it stands when it does not end go to a file of its own, which a test that fails shows.
"""

import faulthandler
import logging
import os
import resource
import signal
import time
from pathlib import Path

from datasets import Dataset, load_from_disk

from axolotl_sdft import SelfDistillationConfig
from axolotl_sdft.core import locks, ranks, shared_folders
from axolotl_sdft.distillation.generation import rounds
from axolotl_sdft.distillation.generation.journal import Journal
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.spec import DistillationSpec
from axolotl_sdft.plugins.registry import registry
from tests.benchmarks.children import begin
from tests.distillation import echo_backend
from tests.forks import server

registry()  # loading all plugins takes seconds, which the processes forked from this one save

PATIENCE_S = 600  # a process that has not come so far by then hangs, however busy the machine is

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


def make_seed(root):
    """Return the seed model's folder. Its file is made once: ranks that read it at the same time must see the same."""
    config_file = root / "seed" / "config.json"
    if not config_file.exists():
        config_file.parent.mkdir(parents=True)
        config_file.write_text("{}")
    return config_file.parent


def echo_spec(root, num_rows=NUM_ROWS):
    """The work of all runs: answers that end in a 7 are rejected, and asked for twice more."""
    settings = {"template": "plain", "checks": ("no_seven",), "max_attempts": 3, "generation": {"backend": "echo"}}
    config = SelfDistillationConfig(output_dir=str(root / "out"), **settings)
    return DistillationSpec(chat_rows(num_rows), config, make_seed(root), {"type": "chat_template"}, "seed")


def _run(root, log, env, window_rows, max_file_bytes, started):
    begin(log, env)
    _tell_where_it_stands()
    rounds._WINDOW_ROWS = window_rows
    ranks._MAX_POLL_S, ranks._LOOK_ASIDE_S, locks._HEARTBEAT_S = 0.02, 0.1, 0.1
    ranks._ARRIVAL_S, shared_folders._VISIBLE_S = PATIENCE_S, 0.1
    registry().add_plugin(echo_backend, "echo")
    spec = echo_spec(root)
    if max_file_bytes is not None:  # no file may grow further, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    started.set()
    try:
        run_distillation(spec)
    except OSError as err:
        (root / "error.txt").write_text(f"{type(err).__name__}: {err}")
        raise


def _tell_where_it_stands():
    """Log all that this process says, and the stack of each thread whenever it is asked."""
    faulthandler.enable(2)
    faulthandler.register(signal.SIGUSR1, 2)
    logging.basicConfig(level=logging.INFO, force=True)  # whatever the imports have set up


class Run:
    """A process that rewrites the rows."""

    def __init__(self, root, env, *settings):
        root.mkdir(parents=True, exist_ok=True)
        make_seed(root)  # before any process reads it
        self.log = root / f"process-{len(list(root.glob('process-*.log')))}.log"
        self.log.touch()
        started = server().Event()
        # A daemon: one that hangs is killed when the tests end, rather than waited for.
        self._process = server().Process(target=_run, args=(root, self.log, env, *settings, started), daemon=True)
        self._process.start()
        wait_until(started.is_set, lambda: self.describe("has not started"), self)

    @property
    def is_alive(self):
        return self._process.is_alive()

    def kill(self):
        self._process.kill()
        self._process.join()

    def end(self):
        """Wait for the end and return the exit code. One that does not come fails the test, and says where it hangs."""
        self._process.join(PATIENCE_S)
        if self.is_alive:
            os.kill(self._process.pid, signal.SIGUSR1)
            self._process.join(5)  # long enough to write the stacks
            said = self.describe(f"did not end within {PATIENCE_S} s")
            self.kill()
            raise AssertionError(said)
        return self._process.exitcode

    def describe(self, what):
        state = "is alive" if self.is_alive else f"ended with {self._process.exitcode}"
        return f"process {self._process.pid} {what}, {state}; {self.log} holds:\n{self.log.read_text()}"


def start(root, window_rows=64, max_file_bytes=None, pause_after=None, **env):
    """Return a process that has just begun to rewrite the rows.

    With ``pause_after`` it waits after so many batches of its own until :func:`resume` is called.
    """
    env = {"ECHO_LOG": str(root / "generated.txt")} | env
    if pause_after is not None:
        env |= {"ECHO_PAUSE_AFTER": str(pause_after), "ECHO_RESUME": str(root / "resume")}
    return Run(root, env, window_rows, max_file_bytes)


def resume(root):
    """Let all processes that have paused go on."""
    (root / "resume").touch()


def finish(*processes):
    """Wait for processes that must end well."""
    try:
        for process in processes:
            assert process.end() == 0, process.describe("failed")
    finally:
        for process in processes:
            process.kill()


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


def wait_for_answers(root, count, *processes):
    """Wait until the journal holds more answers than so many, which these processes give."""
    wait_until(
        lambda: len(journaled(root)) > count,
        lambda: "\n".join(process.describe(f"gave not more than {count} answers") for process in processes),
        *processes,
    )


def wait_until(is_so, describe, *processes):
    """Wait until something is so; fail where it does not come, or where a process that has to bring it has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        are_alive = all(process.is_alive for process in processes)
        assert (are_alive and time.monotonic() < deadline) or is_so(), describe()
        time.sleep(0.01)


def error_of(root):
    """Return the error that ended a run."""
    return (Path(root) / "error.txt").read_text()
