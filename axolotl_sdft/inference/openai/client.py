"""The ``openai`` SDK, held to bounds: what one exchange may take, what is asked again, what it may say.

The SDK makes requests, sends them again, parses what comes back. What it lacks is done where all of that passes, in the
``send`` of its HTTP client, and its errors leave here as faults that hold no key.
"""

import json
import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import anyio
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError

from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.inference.openai.api_key import ApiKey
from axolotl_sdft.inference.openai.faults import (
    QuestionRefusedError,
    RequestError,
    RequestTimeoutError,
    TransientError,
    describe,
    fault_of_status,
    is_throttled,
)

if TYPE_CHECKING:
    from openai import RequestOptions

REPORT_BYTES = 2**16
"""Of a response that reports a fault, no more is read."""

_LIST_BYTES = 2**22  # longest list of models: hosted servers describe hundreds
_LEAST_BYTES = 2**18
_CONNECT_S = 10.0
_LANE_SIZE = 32  # connections
_KEEPALIVE_S = 2.0  # shorter than any server's own: a connection that both ends may close is a race
_READABLE = {"", "identity", "gzip", "deflate"}
_FAULT = "axolotl_sdft_fault"
_AGAIN = "x-should-retry"  # the SDK obeys it
_KEPT_HEADERS = ("location", "retry-after")

# httpx, or httpx2 where the SDK has moved on to that.
_HTTP: Any = sys.modules[DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0]]


class Client:
    """Talks to one server through the SDK.

    Args:
        base_url: The server.
        key: Its key.
        timeout_s: Seconds for all of an exchange, unless a call says otherwise.
        max_retries: How often the SDK sends a request again, unless a call says otherwise.
        trust_env: Whether the proxies of the environment stand between.
    """

    def __init__(self, base_url: str, key: ApiKey, timeout_s: float, max_retries: int, trust_env: bool = True) -> None:
        self._base_url, self._key, self._trust_env = base_url, key, trust_env
        self._timeout_s, self._max_retries = timeout_s, max_retries
        self._sdk: AsyncOpenAI | None = None

    async def request(self, path: str, body: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Return the JSON under a path of the base URL, or at a whole address, without the key.

        Args:
            path: Where.
            body: What is sent; without one, it is asked for by GET.
            options: ``timeout`` and ``max_retries``, where they are not those of all.

        Raises:
            RequestError: None comes back, or not in time, or it is an error, or too long; the kind says whether asking
                again may help.
        """
        sdk = self._sdk or self._start()
        try:
            told = cast("RequestOptions", options)
            call = sdk.get if body is None else partial(sdk.post, body=body)
            return self._key.cleaned(await call(path, cast_to=object, options=told))
        except RecursionError:
            fault: RequestError = TransientError("the response is nested too deeply")
        except APIStatusError as err:
            fault = err.response.extensions.get(_FAULT) or fault_of_status(err.response, err.body, self._key.redacted)
            is_handed_back = err.response.headers.get(_AGAIN) == "false"
            fault.was_repeated = isinstance(fault, TransientError) and not is_handed_back
        except APIConnectionError as err:
            fault = TransientError(describe(err.__cause__ or err))
            fault.was_repeated = True
        except (ValueError, OSError, OpenAIError, _HTTP.InvalidURL) as err:  # such as an odd address
            fault = TransientError(describe(err))
        fault.args = (self._key.redacted(str(fault)),)
        raise fault  # outside of the handlers: the SDK's error holds the request, and that the key

    def _start(self) -> AsyncOpenAI:
        try:
            http_client = _BoundedClient(self._key, self._trust_env)
        except (ValueError, ImportError, _HTTP.InvalidURL):  # the text may hold the proxy's password
            raise ConfigError(
                f"self_distillation.generation.base_urls: {self._base_url} can't be asked, since the proxy that "
                "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names can't be used; correct it, or name the server in NO_PROXY"
            ) from None
        # The SDK would keep a key that it is given; it is put in as the request leaves.
        self._sdk = AsyncOpenAI(
            base_url=self._base_url,
            api_key="-",
            http_client=http_client,
            timeout=self._timeout_s,
            max_retries=self._max_retries,
        )
        return self._sdk

    async def aclose(self) -> None:
        """Close all connections."""
        if self._sdk is not None:
            await self._sdk.close()
            self._sdk = None


class _BoundedClient(DefaultAsyncHttpxClient):
    """The SDK's own HTTP client, with what the SDK lacks: a bound on the time and on the size, and the key put in late.

    It hands on a response as the SDK is to see it. A fault of our own goes with it, since SDKs differ in the exceptions
    that they send a request again for, but agree on ``x-should-retry``.
    """

    def __init__(self, key: ApiKey, trust_env: bool) -> None:
        self._certificates = _HTTP.create_ssl_context(trust_env=trust_env)  # read once: that takes 40 ms
        # The SDK would follow redirects: one is told, never followed, since the key is for this server alone.
        super().__init__(follow_redirects=False, trust_env=trust_env, verify=self._certificates)
        self._key = key
        self._lanes: list[_Lane] = []

    async def send(self, request: Any, **options: Any) -> Any:
        """Return a response, read as far as it is wanted; the rest is cut off with the connection."""
        self._key.put_into(request.headers)
        request.headers["accept-encoding"] = "identity"  # a kilobyte of what is packed may be a megabyte
        limits = request.extensions["timeout"]
        timeout_s = limits["read"]
        limits["connect"] = min(_CONNECT_S, timeout_s)
        try:
            # The SDK's time-out is for each read, but a server may dribble.
            with anyio.fail_after(timeout_s):
                return await self._exchanged(request, options | {"stream": True, "follow_redirects": False})
        except TimeoutError:
            # Handed back at once: the server may have too many to answer, and another one may have time.
            return _report(request, RequestTimeoutError(f"no answer within {timeout_s:g} s"), again=False)
        except RequestError as err:
            return _report(request, err, again=isinstance(err, TransientError))

    async def aclose(self) -> None:
        """Close all connections."""
        for lane in self._lanes:
            await lane.aclose()
        await super().aclose()

    async def _exchanged(self, request: Any, options: dict[str, Any]) -> Any:
        lane = self._free_lane()
        lane.in_flight += 1
        try:
            response = await lane.send(request, **options)
            try:
                body = await _read_body(response, _most_bytes(request))
            finally:
                await response.aclose()
        finally:
            lane.in_flight -= 1
        self.cookies.extract_cookies(response)  # the next request may go by another lane
        headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
        if response.is_success:
            _check_json(response, body)
            headers["content-type"] = "application/json"
        elif is_throttled(response):
            # The SDK would have each request wait for itself, ignore a long Retry-After, and go on with as many: the
            # pause is the server's, and it is to get fewer.
            headers[_AGAIN] = "false"
        told = {name: response.extensions[name] for name in ("reason_phrase",) if name in response.extensions}
        return _HTTP.Response(response.status_code, headers=headers, content=body, request=request, extensions=told)

    def _free_lane(self) -> "_Lane":
        lane = next((lane for lane in self._lanes if lane.in_flight < _LANE_SIZE), None)
        if lane is None:
            limits = _HTTP.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEPALIVE_S)
            lane = _Lane(trust_env=self.trust_env, limits=limits, verify=self._certificates)
            self._lanes.append(lane)
        return lane


class _Lane(DefaultAsyncHttpxClient):
    """Some of a client's connections.

    For each request, HTTP clients look at all of their connections, twice. With hundreds in one pool that takes longer
    than all the rest of a request, and one process could no longer keep a node of GPUs busy.
    """

    in_flight = 0


def _report(request: Any, fault: RequestError, again: bool) -> Any:
    headers = {_AGAIN: "true" if again else "false"}
    return _HTTP.Response(500, headers=headers, request=request, extensions={_FAULT: fault})


def answer_bytes(max_tokens: int, request_bytes: int, num_logprobs: int = 0) -> int:
    """Return how long a response may be that holds so many tokens: generously, since tokens differ in length.

    Args:
        max_tokens: The most tokens that were asked for.
        request_bytes: Length of the request, which some servers send back.
        num_logprobs: Log-probabilities per token that were asked for; each comes with its token and the token's bytes.
    """
    return _LEAST_BYTES + 4 * request_bytes + max_tokens * (128 + 1024 * num_logprobs)


def _most_bytes(request: Any) -> int:
    """Return how long the response to a request may be."""
    if request.method == "GET":
        return _LIST_BYTES
    asked = json.loads(request.content)
    num_tokens = asked.get("max_tokens", 0) + (len(asked["prompt"]) if asked.get("echo") else 0)
    more = [asked.get(name) for name in ("logprobs", "top_logprobs")]  # a number, or whether there is one at all
    num_logprobs = sum(int(count) for count in more if isinstance(count, int)) + bool(asked.get("echo"))
    return answer_bytes(num_tokens, len(request.content), num_logprobs)


async def _read_body(response: Any, max_bytes: int) -> bytes:
    """Return the body of a response, unpacked; of one that reports a fault, its beginning.

    What a server sends beyond ``max_bytes`` is not read.

    Raises:
        QuestionRefusedError: There is more than ``max_bytes``.
        TransientError: It is packed in a way that was not asked for and is not known here.
    """
    packing = response.headers.get("content-encoding", "").strip().lower()
    if packing not in _READABLE:
        raise TransientError(f"the response is packed (content-encoding {packing!r}), which was not asked for")
    limit = max_bytes if response.is_success else min(max_bytes, REPORT_BYTES)
    announced = response.headers.get("content-length", "")[:20]
    if response.is_success and announced.isdecimal() and int(announced) > limit:
        raise QuestionRefusedError(_too_long(limit))
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece[: limit + 1 - len(body)]
        if len(body) > limit:
            if response.is_success:
                raise QuestionRefusedError(_too_long(limit))
            break
    return bytes(body[:limit])


def _too_long(limit: int) -> str:
    return f"the response is longer than {limit:,} bytes, the most that what was asked for can take"


def _check_json(response: Any, body: bytes) -> None:
    """Return when a body is JSON, which the SDK would not insist on.

    Raises:
        TransientError: It is something else; the message says what, where that can be told.
    """
    try:
        json.loads(body)
        return
    except (ValueError, RecursionError):
        pass
    kind = response.headers.get("content-type", "").partition(";")[0].strip()
    if kind == "text/event-stream" or body.startswith(b"data:"):
        raise TransientError("the response is not JSON, but a stream, which was not asked for")
    raise TransientError("the response is not JSON" + (f", but {kind}" if kind and "json" not in kind else ""))
