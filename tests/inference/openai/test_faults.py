from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.inference.openai import faults
from axolotl_sdft.inference.openai.faults import (
    AuthError,
    BadRequestError,
    EndpointError,
    RefusedError,
    ThrottledError,
    TransientError,
    backoff_seconds,
    fault_of_status,
    retry_after_seconds,
)


@given(st.integers(1, 500))
def test_each_failure_doubles_the_wait_up_to_a_minute_and_chance_takes_up_to_half_of_it(failures):
    longest = min(60.0, 0.5 * 2 ** (failures - 1))
    assert longest / 2 <= backoff_seconds(failures) <= longest


def test_the_first_try_does_not_wait_and_two_waits_differ():
    assert backoff_seconds(0) == 0.0
    assert len({backoff_seconds(5) for _ in range(20)}) > 1


@given(st.integers(0, 3600))
def test_retry_after_means_the_same_as_seconds_and_as_a_date(seconds):
    now = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
    assert retry_after_seconds(str(seconds)) == seconds
    assert retry_after_seconds(format_datetime(now + timedelta(seconds=seconds), usegmt=True), now) == seconds


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("soon", None),
        ("nan", None),
        ("", None),
        ("-5", 0.0),
        ("inf", faults.LONGEST_RETRY_AFTER_S),
        ("86400", faults.LONGEST_RETRY_AFTER_S),
        ("Sun, 01 Mar 2026 11:59:00 GMT", 0.0),
        ("Sun, 01 Mar 2026 12:00:09 -0000", 9.0),
    ],
)
def test_an_odd_retry_after_is_bounded_or_ignored(header, expected):
    assert retry_after_seconds(header, datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)) == expected


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (307, {"location": "https://there/v1"}, EndpointError),
        (400, {}, BadRequestError),
        (401, {}, AuthError),
        (403, {}, AuthError),
        (404, {}, EndpointError),
        (408, {}, TransientError),
        (409, {}, TransientError),
        (413, {}, BadRequestError),
        (418, {}, RefusedError),
        (422, {}, BadRequestError),
        (429, {}, ThrottledError),
        (500, {}, TransientError),
        (503, {}, TransientError),
        (503, {"retry-after": "1"}, ThrottledError),
        (599, {}, TransientError),
    ],
)
def test_a_status_decides_what_is_done_about_it(status, headers, kind):
    fault = fault_of_status(httpx.Response(status, headers=headers), "")

    assert type(fault) is kind
    assert str(fault).startswith(f"HTTP {status}")


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "too long", "code": 7}},
        {"message": "too long", "code": 7},
        {"error": "too long"},
        {"detail": "too long"},
        "too\nlong",
    ],
)
def test_what_the_server_said_is_found_wherever_it_stands(body):
    assert str(fault_of_status(httpx.Response(400), body)) == "HTTP 400 Bad Request: too long"


def test_a_long_page_of_a_proxy_is_cut_short():
    assert len(str(fault_of_status(httpx.Response(502), "x" * 5000))) < 400


def test_what_is_nested_too_deeply_is_told_without_it():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    deep = {"message": "at the bottom"}
    for _ in range(100_000):
        deep = {"error": deep}

    assert str(fault_of_status(httpx.Response(502), nested)).endswith("a message that is nested too deeply")
    assert str(fault_of_status(httpx.Response(502), deep)).endswith("at the bottom")
