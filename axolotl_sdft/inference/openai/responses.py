"""Reads the body of a response, which a server may make as long as it likes, up to what was asked for."""

import json
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx

from axolotl_sdft.inference.openai.retries import Failed, RefusedForGood

ACCEPTED = {"Accept": "application/json", "Accept-Encoding": "identity"}
"""Headers of each request. Nothing packed is asked for: a kilobyte of it may be a gigabyte."""

REPORT_BYTES = 2**16
"""Of a response that reports a fault, no more is read."""

LIST_BYTES = 2**22
"""Longest list of models: hosted servers describe hundreds."""

_LEAST_BYTES = 2**18
_PACKED = {"gzip", "x-gzip", "deflate"}
_EITHER_HEADER = 47  # zlib: that of gzip or its own, whichever is there
_STEP = 2**16  # bytes that are unpacked at a time


def answer_bytes(max_tokens: int, request_bytes: int, num_logprobs: int = 0) -> int:
    """Return how long a response may be that holds so many tokens: generously, since tokens differ in length.

    Args:
        max_tokens: The most tokens that were asked for.
        request_bytes: Length of the request, which some servers send back.
        num_logprobs: Log-probabilities per token that were asked for; each comes with its token and the token's bytes.
    """
    return _LEAST_BYTES + 4 * request_bytes + max_tokens * (128 + 1024 * num_logprobs)


async def read_body(response: httpx.Response, max_bytes: int) -> bytes:
    """Return the body of a response, unpacked; of one that reports a fault, its beginning.

    No more than ``max_bytes`` are in memory, and what a server sends beyond them is not read.

    Raises:
        RefusedForGood: There is more than ``max_bytes``.
        Failed: It is packed in a way that was not asked for and is not known here, or broken.
        httpx.HTTPError: The connection broke.
    """
    is_report = not 200 <= response.status_code < 300
    limit = min(max_bytes, REPORT_BYTES) if is_report else max_bytes
    announced = response.headers.get("content-length", "")
    if not is_report and announced.isdecimal() and int(announced[:20]) > limit:
        raise RefusedForGood(_too_long(limit))
    body = bytearray()
    async for piece in _unpacked(response):
        body += piece[: limit + 1 - len(body)]
        if len(body) > limit:
            if is_report:
                return bytes(body[:limit])
            raise RefusedForGood(_too_long(limit))
    return bytes(body)


def parsed(response: httpx.Response, body: bytes) -> Any:
    """Return the JSON of a body.

    Raises:
        Failed: It is something else; the message says what, where that can be told.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        pass
    kind = response.headers.get("content-type", "").partition(";")[0].strip()
    if kind == "text/event-stream" or body.startswith(b"data:"):
        raise Failed("the response is not JSON, but a stream, which was not asked for")
    raise Failed("the response is not JSON" + (f", but {kind}" if kind and "json" not in kind else ""))


async def _unpacked(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield a body in pieces of at most 64 KiB where it is packed, else as it comes."""
    packing = response.headers.get("content-encoding", "").strip().lower()
    if packing in ("", "identity"):
        async for piece in response.aiter_raw():
            yield piece
        return
    if packing not in _PACKED:
        raise Failed(f"the response is packed (content-encoding {packing!r}), which was not asked for")
    unpacker = zlib.decompressobj(_EITHER_HEADER)
    async for piece in response.aiter_raw():
        for unpacked in _pieces(unpacker, piece):
            yield unpacked


def _pieces(unpacker: Any, packed: bytes) -> Iterator[bytes]:
    try:
        unpacked = b" " * _STEP
        while (packed or len(unpacked) == _STEP) and not unpacker.eof:
            yield (unpacked := unpacker.decompress(packed, _STEP))
            packed = unpacker.unconsumed_tail
    except zlib.error as err:
        raise Failed(f"the response is packed, but broken: {err}") from None


def _too_long(limit: int) -> str:
    return f"the response is longer than {limit:,} bytes, the most that what was asked for can take"
