"""The child process: how it is started and found, and that it ends in every way out."""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
import torch

from axolotl_sdft.config import VLLMGeneration
from axolotl_sdft.core.errors import ConfigError, MissingExtraError
from axolotl_sdft.inference.vllm import server
from axolotl_sdft.inference.vllm.server import VLLMServer, cause, find_vllm, flags, server_arguments
from tests.inference.vllm import fake_vllm
from tests.inference.vllm.conftest import install, is_running

ONE_SERVER = """
import os, sys, time, urllib.request
from pathlib import Path
from axolotl_sdft.config import VLLMGeneration
from axolotl_sdft.inference.vllm.server import VLLMServer
server = VLLMServer(Path("seed"), VLLMGeneration())
told = urllib.request.urlopen(server.url.removesuffix("/v1") + "/told").read().decode()
print("server:", told, flush=True)
"""


def wait_until_gone(pids):
    """Return when processes are gone; a test's own time limit is the only one."""
    while any(map(is_running, pids)):
        time.sleep(0.05)


# The command


def test_arguments_are_written_as_a_command_line_has_them():
    arguments = {
        "max_model_len": 64,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "quantization": None,
        "hf_overrides": {"a": [1]},
        "allowed_origins": ["x", "y"],
    }

    line = "--max-model-len 64 --enforce-eager --no-enable-prefix-caching --hf-overrides '{\"a\": [1]}'"
    assert list(flags(arguments)) == shlex.split(f"{line} --allowed-origins x y")


def test_the_users_arguments_follow_ours_with_hyphens_or_underscores():
    config = VLLMGeneration(dtype="float16", vllm_args={"max-model-len": 64, "generation_config": "auto"})

    assert server_arguments(config) == {
        **{"served_model_name": "seed-model", "host": "127.0.0.1", "dtype": "float16"},
        **{"generation_config": "auto", "max_model_len": 64},
    }


@pytest.mark.parametrize(
    ("processes", "gpus", "given", "engines"),
    [
        (8, 8, {}, 8),
        (8, 8, {"tensor_parallel_size": 4}, 2),
        (8, 8, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 2),
        (8, 8, {"tensor_parallel_size": 8}, None),
        (8, 4, {}, 4),
        (1, 8, {}, None),
        (8, 8, {"data_parallel_size": 3}, 3),
        (2, 0, {}, None),
    ],
)
def test_there_are_as_many_engines_as_the_processes_have_gpus_for(monkeypatch, processes, gpus, given, engines):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: gpus)
    monkeypatch.setattr(server, "local_device", lambda: torch.device("cpu"))

    assert server_arguments(VLLMGeneration(vllm_args=given)).get("data_parallel_size") == engines


# Where vLLM is


@pytest.mark.parametrize("module", ["cli.main", "openai.api_server"])
def test_vllm_is_started_by_its_command_or_where_that_fails_by_its_server(tmp_path, monkeypatch, module):
    install(fake_vllm.install(tmp_path, module), monkeypatch)

    assert find_vllm(None) == f"vllm.entrypoints.{module}"
    VLLMServer(tmp_path / "seed", VLLMGeneration()).close()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed in this environment")
def test_without_vllm_the_error_names_the_extra_and_the_other_way():
    way_out = r"vllm is not installed\); pip install 'axolotl-sdft\[vllm\]'.*with self_distillation\.generation\.python"
    with pytest.raises(MissingExtraError, match=way_out):
        find_vllm(None)


def test_the_python_of_another_environment_is_used(tmp_path):
    folder = fake_vllm.install(tmp_path / "site")
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nPYTHONPATH={folder} OTHER=yes exec {sys.executable} "$@"\n')
    other.chmod(0o755)

    child = VLLMServer(tmp_path / "seed", VLLMGeneration(python=str(other)))
    try:
        assert '"OTHER": "yes"' in told_by(child)
    finally:
        child.close()


def test_a_python_that_can_not_be_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"generation\.python is '.*nowhere', which can't be run \(No such file"):
        find_vllm(str(tmp_path / "nowhere"))


# How it lives


def told_by(child):
    with urllib.request.urlopen(child.url.removesuffix("/v1") + "/told") as response:
        return response.read().decode()


@pytest.mark.usefixtures("fake")
def test_the_server_starts_as_if_no_launcher_had_started_this_process(tmp_path, monkeypatch):
    launcher = {"RANK": "3", "MASTER_ADDR": "node", "VLLM_API_KEY": "secret"}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)

    child = VLLMServer(tmp_path / "seed", VLLMGeneration())
    try:
        told = told_by(child)
    finally:
        child.close()

    assert all(f'"{name}": null' in told for name in launcher)
    assert dict(os.environ) == before


@pytest.mark.usefixtures("fake")
def test_an_interrupt_while_it_starts_ends_it(tmp_path, monkeypatch):
    started = []

    def interrupted(child):
        started.append(child._keeper)
        raise KeyboardInterrupt

    monkeypatch.setattr(VLLMServer, "_answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        VLLMServer(tmp_path / "seed", VLLMGeneration())

    assert started[0].poll() is not None


@pytest.mark.usefixtures("fake")
def test_while_it_starts_the_log_tells_how_far_it_is(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="axolotl_sdft")
    monkeypatch.setattr(server, "_LOG_INTERVAL_S", 0.0)

    VLLMServer(tmp_path / "seed", VLLMGeneration()).close()

    assert "starting vLLM with {'served_model_name': 'seed-model'" in caplog.text
    assert re.search(r"vLLM is starting, \d+ s so far: ", caplog.text)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("way_out", [signal.SIGKILL, signal.SIGINT, None])
def test_a_run_that_ends_in_any_way_leaves_no_process_behind(way_out, tmp_path):
    # A process that was started in the background may ignore Ctrl-C.
    script = f"import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{ONE_SERVER}"
    script += "time.sleep(120)" if way_out else ""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # the log of a server that nobody has closed stays
    run = subprocess.Popen([sys.executable, "-c", script], env=environment, **streams)
    line = next(line for line in run.stdout if line.startswith("server:"))
    pids = json.loads(line.removeprefix("server:"))["pids"]
    if way_out:
        assert all(map(is_running, pids))
        run.send_signal(way_out)
    run.communicate()

    wait_until_gone(pids)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["INFO: loading", "(worker) RuntimeError: no memory", "EngineDeadError: it died"], "RuntimeError: no memory"),
        (["ConnectionResetError: by peer", "BrokenPipeError: gone", "ValueError: bad"], "ValueError: bad"),
        (["ConnectionResetError: by peer"], "ConnectionResetError: by peer"),
        (["serve: error: unrecognized arguments"], "error: unrecognized arguments"),
        (["INFO: loading", "Error:"], "see its log"),
        ([], "see its log"),
    ],
)
def test_a_server_ended_by_its_first_error_that_is_not_of_a_client_that_went_away(lines, expected):
    assert cause(lines) == expected
