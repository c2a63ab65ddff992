"""Which final numbers are equal, and where the final number of an answer is."""

import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axolotl_sdft.distillation.checks import numeric_answer, resolve_checks
from axolotl_sdft.errors import MissingExtraError
from tests.distillation.checks.samples import asked, written


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("She has 18 eggs.", "#### 18"),
        ("It costs $18.00", "The answer is 18."),
        ("That makes 36/2", "18"),
        ("The answer is 1,234 miles in 5 days.", "1234"),
        ("48 + 24 = 72 clips in April and May", "The answer is 72."),
        (r"So it is \boxed{\frac{1}{2}} of all 7.", "0.5"),
        (r"Therefore $x = \frac{36}{2}$.", "18"),
        (r"\(\sqrt{16}\)", "4"),
        ("10 - 15 = -5", "-5"),
        ("**Answer:** 50%", "50"),
        ("The answer is 5. They are 30/6 = 5 cups.", "5"),
        ("The answer is 5, since 2 + 3 = 5. Check: 2 + 2 = 4, one more is 5. The answer is 5.", "5"),
        ("The solution is 7.", "The answer is 7."),
    ],
)
def test_equal_numbers_are_equal_however_they_are_written(text: str, reference: str):
    assert numeric_answer(written(text), asked(reference=reference)) is None


@pytest.mark.parametrize(
    ("text", "reference", "reason"),
    [
        ("The answer is 17.", "The answer is 18.", "answer 17, reference 18"),
        ("18 eggs, so the answer is 9.", "18", "answer 9, reference 18"),
        ("The answer is -5.", "5", "answer -5, reference 5"),
        (r"\boxed{\sqrt{2}}", "2", r"answer \sqrt{2}, reference 2"),
        ("A lot of eggs.", "18", "no number, reference 18"),
        ("18", "A lot of eggs.", "the reference holds no number"),
        ("none", "none", "the reference holds no number"),
        ("The answer is 35. Check it. The solution is: 35 + 10 = 45.", "45", "answer 35 and 45, reference 45"),
        ("The answer is 35. Check it. The solution is: 35 + 10 = 45.", "35", "answer 45, reference 35"),
        ("The answer is 31. In the end, 22 + 17 = 38 people came.", "31", "answer 38, reference 31"),
        (r"\boxed{4} The answer is 5.", "5", "answer 4 and 5, reference 5"),
        (r"\boxed{9^{9^{9^9}}}", "9", "answer 9^{9^{9^9}}, reference 9"),
    ],
)
def test_another_number_or_none_is_rejected(text: str, reference: str, reason: str):
    assert numeric_answer(written(text), asked(reference=reference)) == reason


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_whole_numbers_agree_exactly_when_they_are_the_same(answer: int, reference: int):
    target = asked(reference=f"The answer is {reference:,}.")
    assert (numeric_answer(written(f"I get {answer}."), target) is None) == (answer == reference)
    assert numeric_answer(written(f"I get {reference}.0"), target) is None


def test_expressions_are_compared_outside_the_main_thread_as_well():
    reasons: list[str | None] = []
    target = asked(reference="18")
    worker = threading.Thread(target=lambda: reasons.append(numeric_answer(written(r"\boxed{\frac{36}{2}}"), target)))
    worker.start()
    worker.join()
    assert reasons == [None]


def test_a_missing_math_verify_shows_when_the_checks_are_resolved(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=r"numeric_answer, which needs math-verify.*pip install math-verify"):
        resolve_checks(["numeric_answer"])
