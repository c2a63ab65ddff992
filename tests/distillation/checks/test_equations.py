"""Which equations of an answer are looked at, and which of them hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.distillation.checks import arithmetic
from tests.distillation.checks.samples import asked, written


@pytest.mark.parametrize(
    "text",
    [
        "5 + 20 = 20 minutes",
        "So it is 40-3 = 10.",
        "$1 + $1 + $6 = $15",
        "6 x 12 = 64",
        "M = 3 + 4 = 8",
        "16 * 27 = 673, so",
        "3 * (4 + 5) = 17",
        "10 / 4 = 3.5",
        "1,000 \N{MULTIPLICATION SIGN} 2 = 200",
        "9 / 2 = 4",
        "20 / 3 = 6",
        "3^4 = 82",
        "17 mod 5 = 3",
        "17 // 5 = 4",
        "0.7 + 0.1 = 0.7999999999999999",
        "3 / 4 = 0.9",
        "12 * 25% = 4",
        "2 + 2 = 4 + 3 = 8, so",
    ],
)
def test_a_wrong_equation_is_rejected(text: str):
    assert arithmetic(written(text), asked()) is not None


@pytest.mark.parametrize(
    "text",
    [
        "3 * (4 + 5) = 27",
        "$1.20 x 4 = $4.80",
        "1,500 - 499.5 = 1,000.5",
        "10 / 3 = 3.33",
        "10/3 = 3",
        "70% * 50% = 35%",
        "5 / 25 * 100 = 20%",
        "5 \N{EN DASH} 8 = -3",
        "2 + 3 = 5 + 1 = 6",
        "20*.8=16 games",
        "1000 / 7 = 142.85714285714286",
        "2 / 3 = 0.6666666666666666",
        "200 / 3 = 67",
        "2 / 3 = 0.66",
        "2 / 3 = 0.67",
        "3^4 = 81",
        "2**5 + 1 = 33",
        "17 mod 5 = 2",
        "17 // 5 = 3",
        "6 / 8 = 3 / 4",
        "12,000 + 1 = 12,001",
        "17 / 5 = 3 remainder 2",
        "7 / 3 = 2 1/3",
    ],
)
def test_an_equation_that_holds_as_far_as_it_shows_passes(text: str):
    assert arithmetic(written(text), asked()) is None


@pytest.mark.parametrize(
    "text",
    [
        "2x + 3 = 9",
        "100-x+40-30 = 60",
        "12 miles * 2 = 25 minutes",
        "8 x 1 1/2 = 12",
        "192 / 1.2 = 1.2y / 1.2",
        "if 2 + 2 == 5:",
        "1/0 = 5",
        "The score was 3-4 = a loss",
        "(2 + 3 = 6",
        "items\n- 5 - 3 apples = 7",
        "In binary, 1 + 1 = 10.",
        "log 100 + 1 = 3",
        "1630-0030 = 1600 hours",
        "Some think that 2 + 2 = 5 is wrong.",
        "10:30 - 2 = 8",
        "\u221a16 + 2 = 6",
    ],
)
def test_an_equation_with_units_variables_or_no_value_is_left_alone(text: str):
    assert arithmetic(written(text), asked()) is None


def test_an_equation_of_the_original_is_not_held_against_the_answer():
    assert arithmetic(written("So 2 + 2 = 5."), asked(reference="In his book, 2+2=5.")) is None


def test_the_reason_quotes_the_equation():
    assert arithmetic(written("He needs 4 + 4 = 9 cups."), asked()) == "'4 + 4 = 9' is wrong"


@given(st.integers(0, 999), st.sampled_from("+-*"), st.integers(0, 999), st.integers(-2, 2))
def test_a_whole_number_equation_passes_exactly_when_it_is_true(left: int, sign: str, right: int, error: int):
    result = {"+": left + right, "-": left - right, "*": left * right}[sign] + error
    assert (arithmetic(written(f"{left} {sign} {right} = {result}"), asked()) is None) == (error == 0)
