"""What can go wrong with a request to a server, and how long to wait before the next one.

Every fault ends as one of three kinds, which differ in what is done about them: :class:`TransientError` (ask again),
:class:`ThrottledError` (ask again, but slower) and :class:`RefusedError` (asking again in this run would not help).
Only a :class:`QuestionRefusedError` is kept; after any other fault the question is asked again at the next start.
"""

import json
import math
import random
import re
from collections.abc import Callable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from axolotl_sdft.core.texts import printable

BACKOFF_S = 0.5
"""Longest wait after the first failure; it doubles with each further one."""

LONGEST_BACKOFF_S = 60.0
LONGEST_RETRY_AFTER_S = 3600.0
"""A server that asks for a longer pause is asked again after this one."""

_SHOWN_CHARACTERS = 300
_LONGEST_REASON = 2 * _SHOWN_CHARACTERS
_RETRIED = {408, 409, 425}
_ABOUT_THE_REQUEST = {400, 413, 422}
_ABOUT_THE_KEY = {401, 402, 403, 407}
_ABOUT_THE_ADDRESS = {404, 405, 410}


class RequestError(Exception):
    """A request did not bring a usable answer; the text says why, on one line that a terminal shows as it is."""

    def __init__(self, reason: str) -> None:
        super().__init__(_shortened(reason, _LONGEST_REASON))

    def redact(self, redacted: Callable[[str], str]) -> None:
        """Take secrets out of the text."""
        self.args = (redacted(str(self)),)


class TransientError(RequestError):
    """The server is down, slow or confused. The same request may succeed later or elsewhere."""


class RequestTimeoutError(TransientError):
    """No answer came in time."""


class ThrottledError(RequestError):
    """The server has more to do than it wants."""

    def __init__(self, reason: str, wait_s: float | None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        """Seconds that the server asks to wait, if it says so."""


class RefusedError(RequestError):
    """The server wants nothing to do with this request, however often it is sent."""


class QuestionRefusedError(RefusedError):
    """The question itself is the reason, or what the model says to it: it would come to the same in any later run."""


class BadRequestError(RefusedError):
    """The server finds fault with the request. The question is to blame if the server still answers another one."""


class EndpointError(RefusedError):
    """The server refuses, most likely for something that no row can help: the address, or the name of the model."""


class AuthError(EndpointError):
    """The server refuses the key, or a proxy does."""


def backoff_seconds(failures: int) -> float:
    """Return how long to wait after this many failures in a row: doubling, and at random in the upper half.

    At random, so that requests that failed together don't come back together. 0 failures: no wait.
    """
    if failures <= 0:
        return 0.0
    longest = min(LONGEST_BACKOFF_S, BACKOFF_S * 2.0 ** min(failures - 1, 32))
    return longest * random.uniform(0.5, 1.0)


def retry_after_seconds(header: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for, given as a number or as a date; None without one.

    A date in the past is 0 seconds. More than an hour is cut to an hour, and what can't be read is None.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            moment = parsedate_to_datetime(header)
        except (TypeError, ValueError):
            return None
        if moment.tzinfo is None:  # "-0000": universal time by RFC 5322
            moment = moment.replace(tzinfo=timezone.utc)
        seconds = (moment - (now or datetime.now(timezone.utc))).total_seconds()
    if math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)


def raise_for_answer(response: httpx.Response, body: bytes, redacted: Callable[[str], str] = str) -> None:
    """Return when a response reports success.

    Args:
        response: What came back.
        body: Its body, or the beginning of it.
        redacted: Takes secrets out of what the server says; some repeat the key that they refuse.

    Raises:
        RequestError: It does not; the kind tells what to do, and the text holds the status and what the server said.
    """
    status = response.status_code
    if 200 <= status < 300:
        return
    reason = redacted(f"HTTP {status} {response.reason_phrase}".rstrip())
    said = _what_it_said(body.decode("utf-8", "replace"), redacted)
    reason = f"{reason}: {said}" if said else reason
    wait_s = retry_after_seconds(response.headers.get("retry-after"))
    if status == 429 or (status == 503 and wait_s is not None):
        raise ThrottledError(reason, wait_s)
    if status >= 500 or status in _RETRIED:
        raise TransientError(reason)
    if status < 400:
        raise EndpointError(f"{reason}, redirected to {_target(response, redacted)}")
    if status in _ABOUT_THE_KEY:
        raise AuthError(reason)
    if status in _ABOUT_THE_REQUEST:
        raise BadRequestError(reason)
    raise (EndpointError if status in _ABOUT_THE_ADDRESS else RefusedError)(reason)


def _target(response: httpx.Response, redacted: Callable[[str], str]) -> str:
    """Return where a redirect points, without passwords and query."""
    location = response.headers.get("location", "")
    start, _, rest = location.partition("?")[0].partition("#")[0].rpartition("@")
    scheme = start.partition("//")[0] + "//" if "//" in start else ""
    return _shortened(redacted(f"{scheme}{rest}")) or "nowhere"


def describe(err: Exception) -> str:
    """Return what went wrong on the way, in a few words: many such errors have no text of their own."""
    kind = re.sub(r"(?<!^)(?=[A-Z])", " ", type(err).__name__).lower()
    return f"{kind}: {err}" if str(err) else kind


def fault_in(body: Any) -> str | None:
    """Return the fault that a part of a response reports under ``error``, or None: status 200 does not rule it out."""
    error = body.get("error") if isinstance(body, dict) else None
    return f"an error: {_message(error)}" if error else None


def _what_it_said(text: str, redacted: Callable[[str], str]) -> str:
    """Return the message in the body of a refusal, wherever this kind of server puts it."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):  # a page of a proxy, for example
        return _shortened(redacted(text))  # before it is shortened: the key may stand where the text is cut
    if isinstance(body, dict):
        for key in ("error", "message", "detail"):
            if key in body:
                return _message(body[key], redacted)
    return _message(body, redacted)


def _message(error: Any, redacted: Callable[[str], str] = str) -> str:
    message = error["message"] if isinstance(error, dict) and "message" in error else error
    try:
        return _shortened(redacted(str(message)))
    except RecursionError:
        return "a message that is nested too deeply"


def _shortened(text: str, length: int = _SHOWN_CHARACTERS) -> str:
    text = " ".join(printable(text).split())
    return text if len(text) <= length else f"{text[:length]}..."
