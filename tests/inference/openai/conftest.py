"""What the tests of servers share."""

import contextlib

import openai._base_client
import pytest

from axolotl_sdft.config import OpenAIGeneration
from axolotl_sdft.inference.openai import faults, servers
from axolotl_sdft.inference.openai.backend import OpenAIBackend


@pytest.fixture
def impatient(monkeypatch):
    """Wait hundredths of seconds where a user would wait seconds; that of the SDK has no setting."""
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(openai._base_client, "MAX_RETRY_DELAY", 0.05)
    monkeypatch.setattr(faults, "BACKOFF_S", 0.01)
    monkeypatch.setattr(faults, "LONGEST_BACKOFF_S", 0.05)
    monkeypatch.setattr(servers, "PROBE_INTERVAL_S", 0.05)


@pytest.fixture
def backend_for(seed_dir):
    """Make backends that are closed when the test ends."""
    with contextlib.ExitStack() as stack:

        def make(*servers, **settings):
            settings = {"base_urls": [server.url for server in servers], "backend": "openai"} | settings
            backend = OpenAIBackend(seed_dir, OpenAIGeneration(**{"temperature": 0.0} | settings))
            stack.callback(backend.close)
            return backend

        yield make
