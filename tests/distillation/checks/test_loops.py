"""Which answers run in circles."""

import pytest

from axolotl_sdft.distillation.checks import repetition
from tests.distillation.checks.samples import asked, written


@pytest.mark.parametrize(
    "text",
    [
        "She has 9 cakes.\n" + "A: 12 - 3 = 9\n" * 8,
        "Tea is good, and " + "pin the tail on the donkey, a " * 7 + "pin the",
        "Tea grows on hills in Asia and it is picked by hand twice a year.\n" * 2,
        "very " * 30,
        "1. Count all of the cups and saucers.\n2. Count all of the cups and saucers.\n"
        "3. Count all of the cups and saucers.\nThen pour.",
    ],
)
def test_an_answer_that_runs_in_circles_is_repetition(text: str):
    assert repetition(written(text), asked()) is not None


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 72.\n\nThe answer is 72.",
        "Gymnast: flexible\nSteel: inflexible\nRubber: flexible\nLeather: flexible\nWood: inflexible\nYoga: flexible",
        "2 x 1 = 2\n2 x 2 = 4\n2 x 3 = 6\n2 x 4 = 8\n2 x 5 = 10\n2 x 6 = 12",
        "if a:\n    return 1\nif b:\n    return 2\nif c:\n    return 3\n}\n}\n}\n}",
        "No, no, no! Tea, tea, tea. Yes, yes, yes.",
        "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n| 5 | 6 |",
    ],
)
def test_a_list_a_table_or_code_is_no_repetition(text: str):
    assert repetition(written(text), asked()) is None


def test_a_refrain_passes_where_the_original_has_one():
    song = "Row, row, row your boat gently down the stream.\n" * 4
    assert repetition(written(song), asked()) is not None
    assert repetition(written(song), asked(reference=song)) is None


def test_the_reason_says_how_much_goes_round():
    # "b c" follows "a" eight times: 16 of 17 words, the first three of which begin the loop
    assert repetition(written("a" + " b c" * 8), asked()) == "the last 16 words run in a loop"
