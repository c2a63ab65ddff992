"""What can go wrong with a request to a server, as one of three kinds that differ in what is done about them.

:class:`TransientError`: ask again. :class:`ThrottledError`: ask again, but slower. :class:`RefusedError`: asking again
in this run would not help. Only a :class:`QuestionRefusedError` is kept; after any other fault the question is asked
again at the next start.
"""

import math
import random
import re
from collections.abc import Callable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from axolotl_sdft.core.texts import printable

BACKOFF_S = 0.5
"""Longest wait after the first failure; it doubles with each further one."""

LONGEST_BACKOFF_S = 60.0
LONGEST_RETRY_AFTER_S = 3600.0
"""A server that asks for a longer pause is asked again after this one."""

_SHOWN_CHARACTERS = 300
_LONGEST_REASON = 2 * _SHOWN_CHARACTERS
_SAID_UNDER = ("error", "message", "detail", "msg")


class RequestError(Exception):
    """A request did not bring a usable answer; the text says why, on one line that a terminal shows as it is."""

    was_repeated = False
    """Whether the SDK has sent the request as often as it may."""

    def __init__(self, reason: str) -> None:
        super().__init__(_shortened(reason, _LONGEST_REASON))


class TransientError(RequestError):
    """The server is down, slow or confused. The same request may succeed later or elsewhere."""


class RequestTimeoutError(TransientError):
    """No answer came in time."""


class ThrottledError(RequestError):
    """The server has more to do than it wants."""

    wait_s: float | None = None
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


_KINDS: dict[int, type[RequestError]] = {
    **dict.fromkeys((400, 413, 422), BadRequestError),
    **dict.fromkeys((401, 402, 403, 407), AuthError),
    **dict.fromkeys((404, 405, 410), EndpointError),
    **dict.fromkeys((408, 409, 425), TransientError),
    429: ThrottledError,
}


def fault_of_status(response: Any, body: Any, redacted: Callable[[str], str] = str) -> RequestError:
    """Return what a response means whose status is not one of success.

    Args:
        response: What came back.
        body: Its body, or what that holds under ``error``, as the SDK reads it.
        redacted: Takes secrets out of what the server says; some repeat the key that they refuse.
    """
    status = response.status_code
    reason = redacted(f"HTTP {status} {response.reason_phrase}".rstrip())
    if status < 400:
        return EndpointError(f"{reason}, redirected to {_target(response.headers.get('location', ''), redacted)}")
    said = _message(body, redacted)
    kind = _KINDS.get(status, TransientError if status >= 500 else RefusedError)
    fault = (ThrottledError if is_throttled(response) else kind)(f"{reason}: {said}" if said else reason)
    if isinstance(fault, ThrottledError):
        fault.wait_s = retry_after_seconds(response.headers.get("retry-after"))
    return fault


def is_throttled(response: Any) -> bool:
    """Say whether a server that has too much to do asks for a pause."""
    told = retry_after_seconds(response.headers.get("retry-after"))
    return response.status_code == 429 or (response.status_code == 503 and told is not None)


def backoff_seconds(failures: int) -> float:
    """Return how long to wait after this many failures in a row: doubling, and at random in the upper half.

    At random, so that requests that failed together don't come back together. 0 failures: no wait.
    """
    longest = min(LONGEST_BACKOFF_S, BACKOFF_S * 2.0 ** min(failures - 1, 32)) if failures > 0 else 0.0
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
    return None if math.isnan(seconds) else min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)


def describe(err: BaseException) -> str:
    """Return what went wrong on the way, in a few words: many such errors have no text of their own."""
    kind = re.sub(r"(?<!^)(?=[A-Z])", " ", type(err).__name__).lower()
    return f"{kind}: {err}" if str(err) else kind


def fault_in(body: Any) -> str | None:
    """Return the fault that a part of a response reports under ``error``, or None: status 200 does not rule it out."""
    error = body.get("error") if isinstance(body, dict) else None
    return f"an error: {_message(error)}" if error else None


def message_in(body: Any) -> str | None:
    """Return what a response says that holds nothing of what was asked for, or None: gateways do so with status 200."""
    said = _message(body) if isinstance(body, dict) and not body.keys().isdisjoint(_SAID_UNDER) else ""
    return f"the message: {said}" if said else None


def _target(location: str, redacted: Callable[[str], str]) -> str:
    """Return where a redirect points, without passwords and query."""
    start, _, rest = location.partition("?")[0].partition("#")[0].rpartition("@")
    scheme = start.partition("//")[0] + "//" if "//" in start else ""
    return _shortened(redacted(f"{scheme}{rest}")) or "nowhere"


def _message(error: Any, redacted: Callable[[str], str] = str) -> str:
    """Return the message in the body of a refusal, wherever this kind of server puts it."""
    while isinstance(error, dict) and (key := next((key for key in _SAID_UNDER if error.get(key)), None)):
        error = error[key]
    if error is None:
        return ""
    try:
        return _shortened(redacted(str(error)))  # before it is shortened: the key may stand where the text is cut
    except RecursionError:
        return "a message that is nested too deeply"


def _shortened(text: str, length: int = _SHOWN_CHARACTERS) -> str:
    text = " ".join(printable(text).split())
    return text if len(text) <= length else f"{text[:length]}..."
