"""Runs ``vllm serve`` as a child process that is gone, with all of its memory, before training begins.

Nothing of vLLM is imported: it may live in another environment, whose pins are its own.
"""

import difflib
import http.client
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from axolotl_sdft.config import VLLMGeneration
from axolotl_sdft.core.errors import BackendError, ConfigError, MissingExtraError
from axolotl_sdft.core.runtime import compute_dtype, is_multi_node, local_device
from axolotl_sdft.core.safe_output import masked
from axolotl_sdft.core.texts import one_line, shortened

LOG = logging.getLogger(__name__)

NAME = "seed-model"
"""The name under which the child serves the seed model."""

_KEY = "self_distillation.generation"
_LOG_INTERVAL_S = 30.0
_LONGEST_START_S = 3600.0
_LONGEST_HELP_S = 300.0
_POLL_S = 0.2
_END_S = 30.0
_SHOWN_LINES = 30
_TELLING = re.compile(r"\b(\w+(Error|Exception)|error): \S")
_OF_CLIENTS = ("ConnectionResetError", "ConnectionAbortedError", "BrokenPipeError")

# Of the launcher that started this process: with them, the child would join the rendezvous of the training ranks.
_LAUNCHER_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
)

# Without its distribution's metadata, as in builds under another name, vLLM's own command fails; its server does not.
_FIND = """
import importlib.metadata, importlib.util, sys
if importlib.util.find_spec("vllm") is None:
    sys.exit("vllm is not installed")
try:
    importlib.metadata.version("vllm")
    print("vllm.entrypoints.cli.main")
except importlib.metadata.PackageNotFoundError:
    print("vllm.entrypoints.openai.api_server")
"""

# Stands between this process and vLLM, in a group of their own. When this process is gone, even killed, the pipe ends,
# and so does the group: a server on its own would hold the GPUs for good.
_KEEPER = """
import os, signal, subprocess, sys, threading, time
signal.signal(signal.SIGTERM, lambda *_: None)
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
end = threading.Event()
threading.Thread(target=lambda: (sys.stdin.buffer.read(), end.set()), daemon=True).start()
while child.poll() is None and not end.wait(0.1):
    pass
if child.poll() is not None:
    print(f"vLLM ended with status {child.returncode}", flush=True)
os.killpg(0, signal.SIGTERM)
for _ in range(100):
    if child.poll() is not None:
        break
    time.sleep(0.1)
os.killpg(0, signal.SIGKILL)
"""


def find_vllm(python: str | None) -> str:
    """Return the module that serves models with the vLLM of an environment.

    Args:
        python: The environment's interpreter; None: this one.

    Raises:
        ConfigError: The interpreter can't be run.
        MissingExtraError: vLLM is not installed there.
    """
    interpreter = python or sys.executable
    try:
        found = subprocess.run([interpreter, "-c", _FIND], capture_output=True, text=True, check=False)
    except OSError as err:
        raise ConfigError(
            f"{_KEY}.python is {python!r}, which can't be run ({err.strerror}); name the Python interpreter of the "
            "environment that vLLM is installed in, such as /envs/vllm/bin/python"
        ) from err
    if found.returncode:
        reason = one_line((found.stderr.strip().splitlines() or ["it says nothing"])[-1])
        raise MissingExtraError(
            f"{_KEY}.backend is vllm, but {interpreter} can't serve with it ({reason}); pip install "
            f"'axolotl-sdft[vllm]', or, where its pins clash with those here, name the Python of another environment "
            f"with {_KEY}.python"
        )
    return found.stdout.strip()


def check_arguments(config: VLLMGeneration) -> None:
    """Return when the vLLM that is installed knows all ``vllm_args``, as its own help lists them; starts no server.

    A vLLM whose help can't be read is not held against them: it says so itself when it starts.

    Raises:
        ConfigError: It does not know one of them.
    """
    if not config.vllm_args:
        return
    command = [config.python or sys.executable, "-m", *_start_of_command(config.python), "--help=all"]
    try:
        told = subprocess.run(
            command, capture_output=True, text=True, check=False, env=_environment(), timeout=_LONGEST_HELP_S
        ).stdout
    except subprocess.TimeoutExpired:
        return
    known = {flag.removeprefix("no-") for flag in re.findall(r"(?<![\w-])--([a-z0-9][a-z0-9-]*)", told)}
    if "port" not in known:
        return
    for name in config.vllm_args:
        if name.replace("_", "-").partition(".")[0] not in known:
            near = difflib.get_close_matches(name, [flag.replace("-", "_") for flag in known], n=1)
            way_out = f"did you mean {near[0]!r}?" if near else "vllm serve --help=all lists those it knows"
            raise ConfigError(f"{_KEY}.vllm_args holds {name!r}, which the installed vLLM does not know; {way_out}")


class VLLMServer:
    """One ``vllm serve`` of the seed model on this machine's GPUs (or the CPU), from its start until it is closed.

    Making it returns when the server answers.

    Raises:
        BackendError: vLLM ended before it answered. The end of its log is shown.
    """

    def __init__(self, model_dir: Path, config: VLLMGeneration) -> None:
        self._model_dir = model_dir
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}/v1"
        self._log = Path(tempfile.mkdtemp(prefix="axolotl-sdft-vllm-")) / "vllm.log"
        arguments = server_arguments(config)
        LOG.info("starting vLLM with %s; its log is %s", masked(arguments), self._log)
        if is_multi_node():
            LOG.warning("vLLM writes on this machine; the GPUs of the others idle unless they are in its Ray cluster")
        serving = _start_of_command(config.python, model_dir)
        command = [config.python or sys.executable, "-m", *serving, *flags(arguments | {"port": self._port})]
        keeper = [sys.executable, "-I", "-S", "-c", _KEEPER, *command]
        with self._log.open("wb") as log:
            self._keeper = subprocess.Popen(
                keeper,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for this process, which then ends the others in order
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        started = last = time.monotonic()
        while not self._answers():
            now = time.monotonic()
            if self.has_ended() or now - started > _LONGEST_START_S:
                raise self.failure("did not start")
            if now - last >= _LOG_INTERVAL_S:
                last = now
                LOG.info("vLLM is starting, %.0f s so far: %s", now - started, (self._lines() or ["-"])[-1])
            time.sleep(_POLL_S)
        LOG.info("vLLM answers at %s after %.0f s", self.url, time.monotonic() - started)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def has_ended(self, wait_s: float = 0.0) -> bool:
        """Say whether all processes of the server are gone, or are within some seconds."""
        try:
            self._keeper.wait(wait_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def failure(self, what: str) -> BackendError:
        """Return the error that says what became of the server. The end of its log is shown, and its file stays."""
        lines = self._lines()
        for line in lines[-_SHOWN_LINES:]:
            LOG.error("vLLM: %s", line)
        kept = self._log.rename(self._log.with_name("failed.log")) if self._log.exists() else self._log
        return BackendError(
            f"{_KEY}.backend is vllm, but vLLM {what} with {self._model_dir}: {shortened(cause(lines), 300)}. "
            f"Its log is {kept}. What was answered before is kept. Where memory is short, lower {_KEY}.vllm_args."
            "max_model_len or gpu_memory_utilization; where an argument is wrong, correct it in vllm_args; then run "
            "again"
        )

    def _lines(self) -> list[str]:
        text = self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""
        return [one_line(line) for line in text.splitlines() if line.strip()]

    def close(self) -> None:
        """End the server's processes, and with them all of their memory."""
        if self._keeper.stdin is not None:
            self._keeper.stdin.close()
        try:
            self._keeper.wait(_END_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._keeper.pid, signal.SIGKILL)
            self._keeper.wait()
        self._log.unlink(missing_ok=True)
        if not any(self._log.parent.iterdir()):
            shutil.rmtree(self._log.parent, ignore_errors=True)


def cause(lines: Sequence[str]) -> str:
    """Return what the lines of a log say that a server ended by: their first error, since later ones follow from it.

    That a client went away ends no server, so such an error is taken only where there is no other.
    """
    errors = [line[found.start() :] for line in lines if (found := _TELLING.search(line))]
    return next((error for error in errors if not error.startswith(_OF_CLIENTS)), next(iter(errors), "see its log"))


def server_arguments(config: VLLMGeneration) -> dict[str, Any]:
    """Return the arguments of ``vllm serve``, by name: ours, then the user's."""
    ours = {
        "served_model_name": NAME,
        "host": "127.0.0.1",
        "dtype": str(compute_dtype(config.dtype, local_device())).removeprefix("torch."),
        # Each request holds all settings of its sampling; vLLM is to add none from the checkpoint.
        "generation_config": "vllm",
        **({"trust_remote_code": True} if config.trust_remote_code else {}),
    }
    return ours | _one_engine_per_process(config.vllm_args) | config.vllm_args


def _one_engine_per_process(given: Mapping[str, Any]) -> dict[str, int]:
    """Return how many engines the GPUs that the launcher gave to training allow, where the user does not say."""
    import torch

    if any(name.startswith("data_parallel") for name in given) or not torch.accelerator.is_available():
        return {}
    per_engine = given.get("tensor_parallel_size", 1) * given.get("pipeline_parallel_size", 1)
    processes = min(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.accelerator.device_count())
    engines = processes // per_engine
    return {"data_parallel_size": engines} if engines > 1 else {}


def flags(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield arguments as a command line has them: ``{"max_model_len": 64}`` is ``--max-model-len 64``.

    True is a flag alone, False the one that starts with ``--no-``, None nothing, a mapping JSON, and a list several
    values.
    """
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if value is True or value is False:
            yield f"--{flag}" if value else f"--no-{flag}"
        elif isinstance(value, Mapping):
            yield from (f"--{flag}", json.dumps(value))
        elif value is not None:
            yield f"--{flag}"
            yield from map(str, value if isinstance(value, list | tuple) else [value])


def _start_of_command(python: str | None, model_dir: Path | None = None) -> list[str]:
    """Return the module that serves, with its first arguments; without a model, those that its help is asked with."""
    module = find_vllm(python)
    if module.endswith("cli.main"):
        return [module, "serve", *([] if model_dir is None else [str(model_dir)])]
    return [module, *([] if model_dir is None else ["--model", str(model_dir)])]


def _environment() -> dict[str, str]:
    """Return the environment of the child: that of a process of its own, which wants no key."""
    left_out = {*_LAUNCHER_VARIABLES, "VLLM_API_KEY"}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in left_out and not name.startswith("TORCHELASTIC_")
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
