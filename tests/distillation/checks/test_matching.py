"""Which answers say the same as the original, character by character or word by word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.distillation.checks import exact_match, normalized_match
from tests.distillation.checks.samples import asked, written


@pytest.mark.parametrize("text", ["Green tea", " Green tea\n"])
def test_an_exact_match_may_have_space_around_it(text: str):
    assert exact_match(written(text), asked(reference="Green tea")) is None


@pytest.mark.parametrize("text", ["green tea", "Green  tea", "Green tea.", ""])
def test_any_other_difference_is_no_exact_match(text: str):
    assert exact_match(written(text), asked(reference="Green tea")) is not None


def test_the_reason_shows_both_texts():
    assert exact_match(written("tea"), asked(reference="Green tea")) == "answer 'tea', original 'Green tea'"


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("The green tea!", "green tea"),
        ("an apple, a pear", "Apple pear"),
        ("1.5 cups", "1.5 Cups."),
        ("A", "a"),
        *((form.format(option), option) for form in ("{}.", "({})", "**{}**", '"{}"', "{}:") for option in "AB"),
        ("B", "(b)"),
        ("A", "(a)"),
        ("?!", "?!"),
        ("STRASSE", "Stra\N{LATIN SMALL LETTER SHARP S}e"),
    ],
)
def test_case_punctuation_spacing_and_articles_do_not_count(text: str, reference: str):
    assert normalized_match(written(text), asked(reference=reference)) is None


@pytest.mark.parametrize(
    ("text", "reference"),
    [("15", "1.5"), ("tea", "teas"), ("", "tea"), ("A", "the"), ("A.", "B."), ("-5", "5"), (".5", "5")],
)
def test_other_words_or_numbers_are_no_match(text: str, reference: str):
    assert normalized_match(written(text), asked(reference=reference)) is not None


@given(st.text(max_size=50))
def test_every_text_matches_itself(text: str):
    assert exact_match(written(text), asked(reference=text)) is None
    assert normalized_match(written(text), asked(reference=text)) is None
