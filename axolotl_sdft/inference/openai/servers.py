"""One server: its connections, how many requests it gets at once, whether it is well, and bodies of bounded size."""

import json
import logging
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Any, Literal

import anyio
import httpx

from axolotl_sdft.core.errors import ConfigError, SdftError
from axolotl_sdft.inference.openai.api_key import ApiKey
from axolotl_sdft.inference.openai.retries import (
    QuestionRefusedError,
    RequestError,
    RequestTimeoutError,
    TransientError,
    backoff_seconds,
    describe,
    raise_for_answer,
)

LOG = logging.getLogger(__name__)

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
        raise QuestionRefusedError(_too_long(limit))
    body = bytearray()
    async for piece in _unpacked(response):
        body += piece[: limit + 1 - len(body)]
        if len(body) > limit:
            if is_report:
                return bytes(body[:limit])
            raise QuestionRefusedError(_too_long(limit))
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
        raise TransientError("the response is not JSON, but a stream, which was not asked for")
    raise TransientError("the response is not JSON" + (f", but {kind}" if kind and "json" not in kind else ""))


async def _unpacked(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield a body in pieces of at most 64 KiB where it is packed, else as it comes."""
    packing = response.headers.get("content-encoding", "").strip().lower()
    if packing in ("", "identity"):
        async for piece in response.aiter_raw():
            yield piece
        return
    if packing not in _PACKED:
        raise TransientError(f"the response is packed (content-encoding {packing!r}), which was not asked for")
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
        raise TransientError(f"the response is packed, but broken: {err}") from None


def _too_long(limit: int) -> str:
    return f"the response is longer than {limit:,} bytes, the most that what was asked for can take"


PROBE_S = 60.0
"""A server that needs longer than this for one word is as good as dead."""

_CONNECT_S = 10.0
_LONG_PAUSE_S = 30.0  # worth a line in the log
_SUSPICIOUS_FAILURES = 3  # one or two may be a row's fault, or a connection that the server had just closed
_KEEPALIVE_S = 2.0  # shorter than any server's own: a connection that both ends may close is a race


@cache
def _ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # reads all certificates of the machine


class Server:
    """One server: its connections, how many requests it gets at once, and how the last ones went."""

    def __init__(self, base_url: str, key: ApiKey, concurrency: int, timeout_s: float) -> None:
        self.base_url, self.key, self.concurrency, self.timeout_s = base_url, key, concurrency, timeout_s
        self.state: Literal["live", "unhealthy", "dead"] = "live"
        self.fault: RequestError | SdftError | None = None
        """Why it is unhealthy or dead."""
        self.model = ""
        """The name under which it knows the seed model, once hands have been shaken."""
        self.names: set[str] = set()
        """All names, in lower case, under which it may sign the answers of that model."""
        self.refused_fields: frozenset[str] = frozenset()
        self.in_flight = self.answered = 0
        self.limit = float(concurrency)
        self.paused_until = self._last_cut = 0.0
        self._failures = self._cuts = 0
        self._idle_clients: list[httpx.AsyncClient] = []

    async def get(self, path: str) -> Any:
        """Return the JSON under a path of the base URL; the faults are those of :meth:`post`."""
        return await self._parsed("GET", self.base_url + path, None, min(self.timeout_s, PROBE_S), LIST_BYTES)

    async def post(
        self,
        path: str,
        body: dict[str, Any],
        timeout_s: float | None = None,
        num_tokens: int = 0,
        num_logprobs: int = 0,
    ) -> Any:
        """Return the JSON that comes back for a body, without the key.

        Args:
            path: Path below the base URL, or a whole address.
            body: What is sent.
            timeout_s: Seconds for all of it; by default those of the settings.
            num_tokens: The most that the response can hold; a longer one is not read.
            num_logprobs: Log-probabilities that it holds for each of them.

        Raises:
            RequestError: None comes back, or not in time, or it is an error, or too long; the kind says whether asking
                again may help.
        """
        url = path if path.startswith("http") else self.base_url + path
        content = json.dumps(body).encode()
        max_bytes = answer_bytes(num_tokens, len(content), num_logprobs)
        return await self._parsed("POST", url, content, timeout_s or self.timeout_s, max_bytes)

    async def _parsed(self, method: str, url: str, content: bytes | None, timeout_s: float, max_bytes: int) -> Any:
        client = self._idle_clients.pop() if self._idle_clients else self._new_client()
        try:
            with anyio.fail_after(timeout_s):  # httpx itself would limit each read, but a server may dribble
                return await self._exchanged(client, method, url, content, max_bytes)
        except RecursionError:
            raise TransientError("the response is nested too deeply") from None
        except TimeoutError:
            raise RequestTimeoutError(f"no answer within {timeout_s:g} s") from None
        except RequestError as err:
            err.redact(self.key.redacted)
            raise err.with_traceback(None) from None  # the frames below hold what the server said
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, UnicodeError, OSError) as err:
            raise TransientError(self.key.redacted(describe(err))) from None
        finally:
            self._idle_clients.append(client)

    async def _exchanged(
        self, client: httpx.AsyncClient, method: str, url: str, content: bytes | None, max_bytes: int
    ) -> Any:
        """Return the JSON that comes back, read as far as it is wanted; the rest is cut off with the connection."""
        headers = ACCEPTED | ({"Content-Type": "application/json"} if content else {})
        request = client.build_request(method, url, content=content, headers=headers)
        response = await client.send(request, stream=True)
        try:
            body = await read_body(response, max_bytes)
        finally:
            await response.aclose()
        raise_for_answer(response, body, self.key.redacted)
        return self.key.cleaned(parsed(response, body))

    def _new_client(self) -> httpx.AsyncClient:
        """Return a client for one request at a time.

        A client looks through all of its connections several times for each request: with 64 requests in flight, one
        client for all of them takes ten times as long for each as a client for each does.
        """
        timeout = httpx.Timeout(None, connect=min(_CONNECT_S, self.timeout_s))
        limits = httpx.Limits(max_connections=1, keepalive_expiry=_KEEPALIVE_S)
        # A redirect is told, never followed: the key is for this server alone.
        try:
            return httpx.AsyncClient(
                auth=self.key, timeout=timeout, limits=limits, verify=_ssl_context(), follow_redirects=False
            )
        except (ValueError, ImportError, httpx.InvalidURL):  # the text may hold the proxy's password
            raise ConfigError(
                f"self_distillation.generation.base_urls: {self.base_url} can't be asked, since the proxy that "
                "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names can't be used; correct it, or name the server in NO_PROXY"
            ) from None

    def can_take(self, now: float) -> bool:
        """Say whether another request may be sent."""
        return self.state == "live" and self.in_flight < int(self.limit) and now >= self.paused_until

    def has_answered(self) -> None:
        """Note a success: the server may get a little more to do, up to its full share."""
        self.answered += 1
        self._failures = self._cuts = 0
        self.limit = min(self.concurrency, self.limit + 1.0 / self.limit)

    def has_throttled(self, sent_at: float, wait_s: float | None) -> bool:
        """Note that the server has too much to do: it gets half as much, after a pause.

        Returns:
            True when it can't get less, since this was the only request it had.
        """
        was_alone = self.limit < 2
        if sent_at > self._last_cut:  # all that were in flight together are one sign, not many
            self.limit = max(1.0, self.limit / 2)
            self._last_cut = time.monotonic()
            self._cuts += 1
        pause_s = backoff_seconds(self._cuts) if wait_s is None else wait_s
        self.paused_until = max(self.paused_until, time.monotonic() + pause_s)
        if pause_s >= _LONG_PAUSE_S:
            LOG.info("%s asks for a pause of %.0f s", self.base_url, pause_s)
        return was_alone

    def has_failed(self, sent_at: float, fault: RequestError) -> bool:
        """Note a failure.

        Returns:
            True when too many came in a row for the requests alone to be the reason.
        """
        self._failures += 1
        if isinstance(fault, RequestTimeoutError) and sent_at > self._last_cut:
            self.limit = max(1.0, self.limit / 2)  # too many at once also look like this
            self._last_cut = time.monotonic()
        return self._failures >= _SUSPICIOUS_FAILURES

    def is_back(self) -> None:
        """Note that the server is well."""
        self.state, self.fault, self._failures = "live", None, 0

    def accepts_model(self, name: str) -> bool:
        """Say whether an answer signed with this name comes from the model that was asked for.

        Hosted servers sign with a date behind the name.
        """
        name = name.lower()
        return name in self.names or name.startswith(f"{self.model.lower()}-")

    async def aclose(self) -> None:
        """Close all connections."""
        for client in self._idle_clients:
            await client.aclose()
