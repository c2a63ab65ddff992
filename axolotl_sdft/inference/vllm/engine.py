"""Starts and feeds a vLLM engine that lives in a child process, so that nothing of it is left when training begins."""

import dataclasses
import gc
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from multiprocessing import active_children
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

from axolotl_sdft.config import nearest_key_hint
from axolotl_sdft.core.errors import BackendError, ConfigError, MissingExtraError
from axolotl_sdft.core.runtime import compute_dtype

LOG = logging.getLogger(__name__)

Tag = TypeVar("Tag")

_WARDEN = """
import os, signal, sys, time
sys.stdin.read()  # ends when the other end of the pipe does
for wait_s, sign in ((0, signal.SIGTERM), (5, signal.SIGKILL)):
    time.sleep(wait_s)
    for pid in map(int, sys.argv[1:]):
        try:
            os.kill(pid, sign)
        except ProcessLookupError:
            continue
"""

_KEY = "self_distillation.generation"
_MOST_AT_ONCE = 1024  # what vLLM decodes at once on its largest GPUs, unless max_num_seqs says otherwise
_QUEUED = 256  # so that a slot that gets free is filled at once

_LAUNCHER_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
)


def check_vllm(vllm_args: Mapping[str, Any]) -> None:
    """Find what would keep an engine from starting, without loading a model.

    Raises:
        MissingExtraError: vLLM is not installed.
        ConfigError: ``vllm_args`` holds what vLLM does not know, or there are fewer GPUs than the ranks need.
    """
    known = {field.name for field in dataclasses.fields(_vllm().EngineArgs)}
    for name in vllm_args:
        if name not in known:
            raise ConfigError(f"{_KEY}.vllm_args: vLLM knows no argument {name!r}; {_nearest(name, known)}")
    _own_devices(vllm_args)


class Engine:
    """One vLLM engine on this rank's own GPUs (or the CPU), from the time it is made until it is closed."""

    def __init__(self, model_dir: Path, dtype: str, vllm_args: Mapping[str, Any]) -> None:
        vllm = _vllm()
        settings = {"model": str(model_dir), "dtype": _dtype_name(dtype), "disable_log_stats": True, **vllm_args}
        LOG.info("starting vLLM %s with %s", vllm.__version__, settings)
        earlier = set(active_children())
        try:
            with _engine_environment(_own_devices(vllm_args)), _hidden_main_module():
                self._llm = vllm.LLM(**settings)
        except Exception as err:
            raise ConfigError(
                f"{_KEY}.backend is vllm, but vLLM could not load {model_dir}: {err}. Where memory is short, lower "
                f"{_KEY}.vllm_args.max_model_len or gpu_memory_utilization; backend: transformers needs no vLLM"
            ) from err
        self._warden = _start_warden([child.pid for child in active_children() if child not in earlier])
        self.max_tokens: int = self._llm.llm_engine.model_config.max_model_len
        """Longest prompt and answer together, in tokens."""
        self._numbers = count()
        self._most_in_flight = vllm_args.get("max_num_seqs", _MOST_AT_ONCE) + _QUEUED

    def run(self, requests: Iterable[tuple[Tag, list[int], Any]]) -> Iterator[tuple[Tag, Any]]:
        """Yield each request's tag with its finished output, in the order in which they finish.

        Requests (tag, prompt ids, sampling parameters) are drawn as the engine gets through them. One whose prompt
        leaves no room for an answer comes back with None. When the caller stops early, what is under way is given up.

        Raises:
            BackendError: The engine's process died.
        """
        engine, waiting = self._llm.llm_engine, iter(requests)
        tags: dict[str, Tag] = {}
        try:
            while True:
                while len(tags) < self._most_in_flight and (request := next(waiting, None)) is not None:
                    tag, ids, parameters = request
                    if len(ids) >= self.max_tokens:
                        yield tag, None
                        continue
                    name = str(next(self._numbers))
                    tags[name] = tag
                    engine.add_request(name, self._rendered(ids), parameters)
                if not tags:
                    return
                for output in _step(engine):
                    if output.finished:
                        yield tags.pop(output.request_id), output
        finally:
            if tags:
                engine.abort_request(list(tags))

    def close(self) -> None:
        """End the engine's process, and with it all of its memory."""
        self._llm.llm_engine.engine_core.shutdown()
        self._warden.kill()
        self._warden.communicate()
        del self._llm
        gc.collect()

    def _rendered(self, ids: list[int]) -> Any:
        prompt = {"prompt_token_ids": ids}
        renderer = getattr(self._llm, "renderer", None)  # older releases do this themselves, newer ones soon won't
        return prompt if renderer is None else renderer.render_cmpl([prompt])[0]


def _start_warden(pids: Sequence[int | None]) -> "subprocess.Popen[bytes]":
    """Start a process that ends others when this one is gone, even killed: an engine on its own would stay for good."""
    return subprocess.Popen(
        [sys.executable, "-c", _WARDEN, *map(str, pids)], stdin=subprocess.PIPE, start_new_session=True
    )


def _vllm() -> Any:
    try:
        import vllm

        _ = vllm.LLM, vllm.EngineArgs  # loaded when asked for, which shows whether its libraries are there
    except ModuleNotFoundError as err:
        raise MissingExtraError(
            f"{_KEY}.backend is vllm, but {err.name} is not installed; pip install 'axolotl-sdft[vllm]'"
        ) from err
    except ImportError as err:
        raise MissingExtraError(
            f"{_KEY}.backend is vllm, but vLLM can't be imported ({err}); install the one that was built for this "
            "machine's torch, with pip install 'axolotl-sdft[vllm]'"
        ) from err
    return vllm


def _step(engine: Any) -> list[Any]:
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        return engine.step()
    except EngineDeadError as err:
        raise BackendError(
            f"{_KEY}.backend: vLLM's engine died, for the reason that it logged above; what it had answered is kept. "
            f"Where memory ran out, lower {_KEY}.vllm_args.gpu_memory_utilization or max_num_seqs; then run again"
        ) from err


def _nearest(name: str, known: Iterable[str]) -> str:
    hint = nearest_key_hint(name, known)
    return hint if hint.startswith("did you mean") else "see vLLM's EngineArgs"  # they are hundreds


def _dtype_name(name: str) -> str:
    """Return vLLM's name of the dtype; ``auto`` is the one that the hardware computes fast in."""
    from vllm.platforms import current_platform

    if name != "auto":
        return name
    is_cpu = current_platform.is_cpu()
    dtype = compute_dtype(name, torch.device("cpu")) if is_cpu else current_platform.supported_dtypes[0]
    return str(dtype).removeprefix("torch.")


def _own_devices(vllm_args: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment variable that shows the engine this rank's own GPUs, and no others.

    Raises:
        ConfigError: The ranks of this machine together need more GPUs than there are.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return {}
    variable = current_platform.device_control_env_var
    named = os.environ.get(variable)
    visible = named.split(",") if named else [str(number) for number in range(torch.accelerator.device_count())]
    return {variable: ",".join(_share(visible, vllm_args))}


def _share(visible: list[str], vllm_args: Mapping[str, Any]) -> list[str]:
    per_rank = vllm_args.get("tensor_parallel_size", 1) * vllm_args.get("pipeline_parallel_size", 1)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    ranks = max(rank + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if ranks * per_rank > len(visible):
        raise ConfigError(
            f"{_KEY}.vllm_args: {ranks} processes times {per_rank} GPUs each are {ranks * per_rank}, but "
            f"{len(visible)} are visible; lower tensor_parallel_size, or run axolotl self-distill in fewer processes"
        )
    return visible[rank * per_rank : (rank + 1) * per_rank]


@contextmanager
def _engine_environment(devices: Mapping[str, str]) -> Iterator[None]:
    """Start an engine as if no launcher had started this process; afterwards the environment is as before.

    Each engine is a world of its own. With torchrun's variables it would join the rendezvous of the training ranks.
    """
    before = dict(os.environ)
    for name in before:
        if name in _LAUNCHER_VARIABLES or name.startswith("TORCHELASTIC_"):
            del os.environ[name]
    # In this process the engine would share torch.distributed and CUDA's memory with the training that follows.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    # A fork would inherit whatever has touched CUDA so far, which CUDA does not survive.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ |= devices
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _hidden_main_module() -> Iterator[None]:
    """Keep a spawned process from running this one's script again: few scripts are written with that in mind."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
