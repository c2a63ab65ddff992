"""Which answers are empty, cut off, or of quite another length than the original."""

import pytest

from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.distillation.checks import empty, length_ratio, resolve_checks, truncated
from axolotl_sdft.inference.interfaces import Answer
from tests.distillation.checks.samples import asked, written

# --- empty ---


@pytest.mark.parametrize("text", ["", " \n", "...", "**", "—"])
def test_an_answer_without_any_content_is_empty(text: str):
    assert empty(written(text), asked()) in ("no text", "nothing but punctuation")


@pytest.mark.parametrize("text", ["4", "ja", "茶", "🙂", "+"])
def test_a_short_answer_is_not_empty(text: str):
    assert empty(written(text), asked()) is None


def test_punctuation_passes_where_the_original_is_punctuation():
    assert empty(written("?"), asked("Which mark ends a question?", "?")) is None


def test_an_empty_original_gives_nothing_to_rewrite():
    assert empty(written("Tea is a drink."), asked(reference=" ")) == "the original answer is empty"


# --- truncated ---


def test_an_answer_that_was_cut_off_is_truncated():
    assert truncated(Answer("Tea is", "length", 96), asked()) == "cut off after 96 tokens"


def test_an_announcement_with_nothing_behind_it_is_truncated():
    assert truncated(written("Tea, coffee.\n\nThe answer is:"), asked()) == "ends with a colon"
    assert truncated(written("\u8336\N{FULLWIDTH COLON}"), asked()) == "ends with a colon"
    assert truncated(written("if tea:"), asked("Complete: if", "if tea:")) is None


def test_an_answer_that_ended_itself_is_not_truncated():
    assert truncated(written("Tea is"), asked()) is None


# --- length_ratio ---


def words(count: int) -> str:
    return " ".join(f"w{place}" for place in range(count))


@pytest.mark.parametrize(("num_words", "reason"), [(24, "24 words, the original 100"), (25, None), (400, None)])
def test_an_answer_has_a_quarter_to_four_times_the_words_of_the_original(num_words: int, reason: str | None):
    assert length_ratio(written(words(num_words)), asked(reference=words(100))) == reason


def test_an_answer_that_is_five_times_as_long_is_rejected():
    assert length_ratio(written(words(500)), asked(reference=words(100))) == "500 words, the original 100"


def test_a_one_word_original_may_be_answered_in_a_sentence():
    assert length_ratio(written("It is Nairobi, the capital of Kenya."), asked(reference="Nairobi")) is None
    assert length_ratio(written("It is Nairobi, the capital."), asked(reference="Nairobi"), slack=2) is not None


def test_each_chinese_character_is_a_word():
    reference, short = "\N{CJK UNIFIED IDEOGRAPH-8336}" * 60, "\N{CJK UNIFIED IDEOGRAPH-8336}" * 10
    assert length_ratio(written(short), asked(reference=reference)) == "10 words, the original 60"


def test_a_least_ratio_above_the_greatest_is_refused_when_the_checks_are_resolved():
    with pytest.raises(ConfigError, match=r"length_ratio has min: 5\.0, not below max: 4\.0"):
        resolve_checks([{"length_ratio": {"min": 5}}])
