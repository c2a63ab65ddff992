"""A key that servers repeat is neither written nor logged, whatever a whole run leaves behind."""

import base64
import json
import logging

import pytest
from datasets import Dataset

from axolotl_sdft import distill_dataset
from axolotl_sdft.config import OpenAIGeneration, SelfDistillationConfig
from axolotl_sdft.core.errors import ConfigError
from tests.inference.openai.openai_server import (
    FakeServer,
    Fault,
)
from tests.inference.openai.rows import once_per_row

HTTP_LIBRARIES = ("openai", "httpx", "httpcore", "httpx2", "httpcore2")

pytestmark = pytest.mark.usefixtures("impatient")


def test_a_dataset_is_rewritten_by_two_servers_and_the_key_is_written_nowhere(seed_dir, tmp_path, monkeypatch, caplog):
    key = "sk-very-secret-4711"
    monkeypatch.setenv("SDFT_TEST_KEY", key)
    rows = Dataset.from_list([{"instruction": f"Question {n}?", "input": "", "output": f"{n}"} for n in range(20)])
    flaky = once_per_row(Fault(500, body=f"internal error, Authorization: Bearer {key}".encode()))
    for library in ("axolotl_sdft", *HTTP_LIBRARIES):
        caplog.set_level(logging.DEBUG, logger=library)
    with FakeServer(key=key) as first, FakeServer(flaky, key=key) as second:
        generation = OpenAIGeneration(
            backend="openai", base_urls=(first.url, second.url), api_key_env="SDFT_TEST_KEY", concurrency=4
        )
        output_dir = str(tmp_path / "out")
        config = SelfDistillationConfig(
            template="{{ reference }}", checks=(), gap_samples=0, output_dir=output_dir, generation=generation
        )
        distilled = distill_dataset(rows, config, seed_model=seed_dir)

    assert distilled["output"] == [f"re: {n}" for n in range(20)]
    assert all(headers["Authorization"] == f"Bearer {key}" for headers in first.headers + second.headers)
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any(b"SDFT_TEST_KEY" in text for text in written)
    assert not any(key.encode() in text for text in written)
    assert key not in caplog.text


KEY = "sk-very-secret-4711"


def said(**body):
    return json.dumps(body).encode()


def chosen(**choice):
    return said(choices=[{"message": {"content": "An answer"}, "finish_reason": "stop"} | choice])


LEAKS = [
    Fault(body=said(error={"message": f"upstream refused {KEY}"})),
    Fault(body=chosen(message={"content": f"Your key is {KEY}."})),
    Fault(body=chosen(message={"content": "Your key is " + "\u200b".join(KEY)})),
    Fault(body=chosen(message={"content": None, "refusal": f"not with {KEY}"})),
    Fault(body=chosen(finish_reason=KEY)),
    Fault(body=said(model=f"model of {KEY}", **json.loads(chosen()))),
    Fault(body=said(**{KEY: KEY})),
    Fault(400, body=said(error={"message": base64.b64encode(f"Bearer {KEY}".encode()).decode()})),
    Fault(400, {"X-Request-Key": KEY}, body=KEY.encode().hex().encode()),
    Fault(307, {"Location": f"http://127.0.0.1:9/{KEY}?key={KEY}"}),
    Fault(body=f"<p>{KEY}</p>".encode()),
]


def test_a_key_that_a_server_puts_everywhere_is_written_and_logged_nowhere(seed_dir, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SDFT_TEST_KEY", KEY)
    rows = Dataset.from_list(
        [{"instruction": f"Row {n}.", "input": "", "output": f"{n}"} for n in range(len(LEAKS) + 1)]
    )
    leaks = {str(number): fault for number, fault in enumerate(LEAKS)}
    for library in ("axolotl_sdft", *HTTP_LIBRARIES):
        caplog.set_level(logging.DEBUG, logger=library)
    with FakeServer(lambda text, number: leaks.get(text), key=KEY) as server:
        generation = OpenAIGeneration(
            **{"backend": "openai", "base_urls": (server.url,), "api_key_env": "SDFT_TEST_KEY", "max_retries": 1},
            extra_body={"provider": {"api_key": "another-secret"}, "user": "sk-third-secret-0123456789"},
        )
        output_dir = str(tmp_path / "out")
        config = SelfDistillationConfig(
            template="{{ reference }}", checks=(), gap_samples=0, output_dir=output_dir, generation=generation
        )
        distilled = distill_dataset(rows, config, seed_model=seed_dir)

    assert distilled["output"] == [*leaks, f"re: {len(LEAKS)}"]
    assert all(reasons[0].startswith("failed: ") for reasons in distilled["sdft_reasons"][:-1])
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    hidden = [
        KEY,
        base64.b64encode(KEY.encode()).decode()[:20],
        KEY.encode().hex(),
        "another-secret",
        "sk-third-secret",
    ]
    for secret in hidden:
        assert not any(secret.encode() in text for text in written), secret
        assert secret not in caplog.text
    assert any(b"extra_body" in text for text in written)


def test_a_key_among_the_names_of_models_is_not_shown(backend_for, monkeypatch):
    monkeypatch.setenv("SDFT_TEST_KEY", KEY)
    with FakeServer(model=f"\x1b[31m{KEY}", key=KEY) as server, pytest.raises(ConfigError, match="serves '") as caught:
        backend_for(server, api_key_env="SDFT_TEST_KEY").check()
    assert KEY not in str(caught.value)
    assert "\x1b" not in str(caught.value)
