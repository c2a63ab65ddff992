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
        "2^3 + 1 = 8",
        "192 / 1.2 = 1.2y / 1.2",
        "if 2 + 2 == 5:",
        "1/0 = 5",
        "The score was 3-4 = a loss",
        "(2 + 3 = 6",
        "items\n- 5 - 3 apples = 7",
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
