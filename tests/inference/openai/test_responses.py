"""Servers that send more than was asked for, or in another form."""

import asyncio
import contextlib
import gzip
import json
import tracemalloc
import zlib

import pytest

from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.inference.openai.api_key import ApiKey
from axolotl_sdft.inference.openai.client import REPORT_BYTES, Client, answer_bytes
from axolotl_sdft.inference.openai.faults import (
    AuthError,
    EndpointError,
    RefusedError,
    RequestTimeoutError,
    TransientError,
)

GIGABYTE = 2**30
MEGABYTE = 2**20


class RawServer:
    """Answers each request with a head, and a body that a generator writes until the client hangs up."""

    def __init__(self, head, body):
        self.head, self.body, self.sent, self.requests = head, body, 0, []

    async def serve(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(self.head.encode() + b"\r\n\r\n")
            for piece in self.body():
                if isinstance(piece, float):
                    await asyncio.sleep(piece)
                    continue
                writer.write(piece)
                self.sent += len(piece)
                await writer.drain()
        writer.close()


def asked(head, body, timeout_s=10.0, num_tokens=0, key="SDFT_NO_KEY"):
    """Return what is made of one response, and the server that sent it."""
    raw = RawServer(head, body)

    async def ask():
        listening = await asyncio.start_server(raw.serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        client = Client(f"http://127.0.0.1:{port}/v1", ApiKey(key), timeout_s, max_retries=0)
        try:
            return await client.request("/chat/completions", {"model": "seed", "max_tokens": num_tokens})
        finally:
            await client.aclose()
            listening.close()

    try:
        return asyncio.run(ask()), raw
    except Exception as err:
        err.raw = raw
        raise


def packed_zeros(num_bytes, wbits):
    """Yield so many zeros, packed."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    for _ in range(0, num_bytes, MEGABYTE):
        yield packer.compress(bytes(MEGABYTE)) + packer.flush(zlib.Z_SYNC_FLUSH)
        yield 0.0  # the client reads in the same thread
    yield packer.flush()


def endless(piece):
    while True:
        yield piece


def peak_of(call):
    """Return the most memory that Python objects took up during a call, in bytes."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


OK = "HTTP/1.1 200 OK\r\nContent-Type: application/json"


@pytest.mark.parametrize(("packing", "wbits"), [("gzip", 31), ("deflate", 15), ("GZIP", 31)])
def test_a_gigabyte_that_comes_packed_is_refused_after_little_of_it(packing, wbits):
    def ask():
        with pytest.raises(RefusedError, match=r"longer than 262,\d+ bytes, the most that what was asked for can take"):
            asked(f"{OK}\r\nContent-Encoding: {packing}", lambda: packed_zeros(GIGABYTE, wbits))

    assert peak_of(ask) < 100 * MEGABYTE  # a piece of 64 KiB, unpacked


@pytest.mark.parametrize("packing", ["br", "zstd", "gzip, gzip", "compress", "\x1bodd"])
def test_what_is_packed_in_another_way_is_not_unpacked(packing):
    with pytest.raises(TransientError, match=r"is packed \(content-encoding '.*'\), which was not asked for"):
        asked(f"{OK}\r\nContent-Encoding: {packing}", lambda: [b"x" * 100])


def test_packed_rubbish_is_told():
    with pytest.raises(TransientError, match="decoding error"):
        asked(f"{OK}\r\nContent-Encoding: gzip", lambda: [b"rubbish, not gzip"])


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [1, 65536, 65535, 200_000])
def test_an_answer_that_comes_packed_is_read_whole(packing, size):
    text = json.dumps({"text": "x" * size}).encode()
    packed = gzip.compress(text) if packing == "gzip" else zlib.compress(text)
    parts = [packed[start : start + 50] for start in range(0, len(packed), 50)]
    body, raw = asked(f"{OK}\r\nContent-Encoding: {packing}", lambda: parts)
    assert body == {"text": "x" * size}
    assert "accept-encoding: identity" in raw.requests[0].lower()


def test_a_body_without_end_is_cut_off_at_what_was_asked_for():
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"

    def ask():
        with pytest.raises(RefusedError, match="the response is longer than") as caught:
            asked(f"{OK}\r\nTransfer-Encoding: chunked", lambda: endless(chunk), num_tokens=512)
        assert caught.value.raw.sent < 20 * MEGABYTE

    assert peak_of(ask) < 20 * MEGABYTE


def test_a_body_that_announces_too_much_is_not_read_at_all():
    with pytest.raises(RefusedError, match="the response is longer than") as caught:
        asked(f"{OK}\r\nContent-Length: {10**15}", lambda: [b"x", 0.05] * 20)
    assert caught.value.raw.sent < 20


def test_an_answer_as_long_as_was_asked_for_is_read():
    text = json.dumps({"text": "\N{GRINNING FACE}" * 4096}).encode()  # 12 bytes for each token
    assert len(text) < answer_bytes(4096, 0)
    body, _ = asked(f"{OK}\r\nContent-Length: {len(text)}", lambda: [text], num_tokens=4096)
    assert body == {"text": "\N{GRINNING FACE}" * 4096}


def test_the_bound_grows_with_tokens_log_probabilities_and_the_request():
    assert answer_bytes(0, 0) == 262_144
    assert answer_bytes(100, 0) == 262_144 + 12_800
    assert answer_bytes(100, 0, num_logprobs=1) == 262_144 + 115_200
    assert answer_bytes(0, 1000) == 262_144 + 4000


def test_a_byte_now_and_then_does_not_stretch_the_time():
    with pytest.raises(RequestTimeoutError, match=r"no answer within 0\.5 s"):
        asked(f"{OK}\r\nTransfer-Encoding: chunked", lambda: endless_drops(), timeout_s=0.5)


def endless_drops():
    while True:
        yield 0.05
        yield b"1\r\n \r\n"


def test_the_report_of_a_fault_is_read_at_its_beginning_only():
    body = b'{"error": {"message": "no room"}}'
    with pytest.raises(TransientError, match=r"^HTTP 500 Busy: no room$"):
        asked(f"HTTP/1.1 500 Busy\r\nContent-Length: {len(body)}", lambda: [body])
    with pytest.raises(TransientError, match=r"^HTTP 500 Busy: x+\.\.\.$") as caught:
        asked("HTTP/1.1 500 Busy\r\nConnection: close", lambda: endless(b"x" * 1000))
    assert caught.value.raw.sent < 200 * REPORT_BYTES


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        ("text/event-stream", b'data: {"choices": []}\n\n', "not JSON, but a stream, which was not asked for"),
        ("application/json", b"data: {}\n\n", "not JSON, but a stream"),
        ("text/html; charset=utf-8", b"<html>", "the response is not JSON, but text/html"),
        ("application/json", b"{", "the response is not JSON$"),
        ("application/json", b"", "the response is not JSON$"),
        ("application/json", b"\xff\xfe\x00", "the response is not JSON$"),
        ("application/json", b"1" * 10_000, "the response is not JSON$"),
        ("application/json", b"[" * 100_000, "not JSON|nested too deeply"),
        ("application/json", b"[" * 100_000 + b"]" * 100_000, "not JSON|nested too deeply"),
    ],
)
def test_a_body_of_another_form_is_told(kind, body, message, monkeypatch):
    monkeypatch.setenv("SDFT_TEST_KEY", "sk-very-secret-4711")  # so that the texts in it are looked at
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"
    with pytest.raises(TransientError, match=message):
        asked(head, lambda: [body], key="SDFT_TEST_KEY")


def test_a_redirect_is_told_without_password_and_query_and_gets_no_key(monkeypatch):
    monkeypatch.setenv("SDFT_TEST_KEY", "sk-very-secret-4711")
    there = "https://me:hidden@elsewhere/v1/sk-very-secret-4711?token=hidden#hidden"
    with pytest.raises(EndpointError, match=r"redirected to https://elsewhere/v1/\[redacted key\]$") as caught:
        asked(f"HTTP/1.1 307 Go\x1b[31m\r\nLocation: {there}\r\nContent-Length: 0", lambda: [], key="SDFT_TEST_KEY")
    assert len(caught.value.raw.requests) == 1
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("place", ["reason", "body", "error", "page"])
def test_a_key_is_taken_out_of_a_refusal_wherever_it_stands(monkeypatch, place):
    key = "sk-very-secret-4711"
    monkeypatch.setenv("SDFT_TEST_KEY", key)
    bodies = {
        "body": json.dumps({"detail": [{"input": f"Bearer {key}"}]}),
        "error": json.dumps({"error": {"message": f"bad key {key}"}}),
        "page": f"<p>{'x' * 290}{key}</p>",  # where the text is cut
    }
    body = bodies.get(place, "").encode()
    reason = f"Bad {key}" if place == "reason" else "Bad"
    with pytest.raises(AuthError) as caught:
        asked(f"HTTP/1.1 401 {reason}\r\nContent-Length: {len(body)}", lambda: [body], key="SDFT_TEST_KEY")
    assert "very-sec" not in str(caught.value)


def test_the_text_of_a_fault_is_one_line_without_escapes():
    body = json.dumps({"error": {"message": "no\n\x1b]0;owned\x07\rroom\x9b2J"}}).encode()
    with pytest.raises(RefusedError) as caught:
        asked(f"HTTP/1.1 400 Bad\r\nContent-Length: {len(body)}", lambda: [body])
    mark = "\N{REPLACEMENT CHARACTER}"
    assert str(caught.value) == f"HTTP 400 Bad: no {mark}]0;owned{mark}{mark}room{mark}2J"


@pytest.mark.parametrize("proxy", ["odd://me:hidden@proxy:1", "http://me:hidden@[::1"])
def test_a_proxy_that_can_not_be_used_is_one_error_without_its_password(monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigError, match=r"base_urls: .* the proxy that .* names can't be used") as caught:
        asked(OK, lambda: [])
    assert "hidden" not in str(caught.value)
