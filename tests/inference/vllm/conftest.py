"""A vLLM that answers without a model, in a child process like the real one."""

import json
import os
import tempfile
import urllib.request
from functools import cache

import pytest

from axolotl_sdft.inference.prompts import load_tokenizer
from tests.inference.openai.conftest import impatient as impatient
from tests.inference.vllm import fake_vllm

loaded_once = cache(load_tokenizer)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Have ``vllm`` stand for the fake one in this environment."""
    install(fake_vllm.install(tmp_path / "site"), monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # logs of servers that failed stay


def install(folder, monkeypatch):
    """Put a folder before all others on the path of child processes."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))


def told(backend):
    """What a backend's running server has been asked, and how it was started."""
    with urllib.request.urlopen(backend._child.url.removesuffix("/v1") + "/told") as response:
        return json.load(response)


def is_running(pid):
    """Whether a process is there and not only waited for."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
