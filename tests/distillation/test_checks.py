"""Which rewritten answers are rejected, and which similar ones pass."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axolotl_sdft.distillation.checks import (
    empty,
    first_rejection,
    leak,
    numeric_answer,
    repetition,
    resolve_checks,
    truncated,
)
from axolotl_sdft.distillation.interfaces import Answer, Target
from axolotl_sdft.distillation.templates import BUILT_IN
from axolotl_sdft.errors import UnknownNameError


def written(text: str) -> Answer:
    return Answer(text, "stop", len(text.split()))


def asked(instruction: str = "Tell me about tea.", reference: str = "Tea is a drink.") -> Target:
    return Target(({"role": "user", "content": instruction},), reference)


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
    assert truncated(written("if tea:"), asked("Complete: if", "if tea:")) is None


def test_an_answer_that_ended_itself_is_not_truncated():
    assert truncated(written("Tea is"), asked()) is None


# --- leak ---


@pytest.mark.parametrize(
    "text",
    [
        "Here's a response that uses the reference answer as a guide:\n\nTea is a drink.",
        "Here is a response based on the reference.\nTea is a drink.",
        "Here's a rewritten version of your answer:\n\nTea is a drink.",
        "Sure, as you asked: tea is a drink.",
        "Tea is a drink.\n\nI'm glad you found the instructions helpful.",
        "Following the instructions you gave, tea is a drink.",
        "According to the notes, tea is a drink.",
        "The notes say that tea is a drink.",
        "Notes: tea is a drink.",
        "The text above is true. Tea is a drink.",
        "Tea is a drink.\n\nI\u2019m ready to help. What\u2019s your request?",
        "Tea is a drink. The last line of the solution must be the same.",
        "Tea, in my own words, is a drink.",
        "I made the following changes: tea is a drink.",
    ],
)
def test_talk_about_the_request_is_a_leak(text: str):
    assert leak(written(text), asked()) is not None


@pytest.mark.parametrize(
    "text",
    [
        "Here are four ideas for a tea party:\n- Scones\n- Cake",
        "Here is a solution with the least effort: boil water.",
        "Note: tea is hot. The notes of jasmine are floral, and the notes are faint.",
        "Follow the instructions on the package.",
        "The reference temperature is 20 degrees. See the reference manual.",
        "Based on the data, tea is a drink. The text is from 1850.",
        "The original version of the song was slower; a revised version of the treaty followed.",
        "Explain it in your own words and review your notes before the exam.",
        "I am ready. The tea is ready.",
        "Dear John,\nI am glad you found the house. As agreed, tea is at five.",
    ],
)
def test_an_answer_that_only_sounds_similar_is_no_leak(text: str):
    assert leak(written(text), asked()) is None


def test_the_reason_names_the_words_that_leak():
    assert leak(written("It is like the reference answer says."), asked()) == "'reference answer' in the answer"


def test_words_that_stand_in_the_instruction_or_the_reference_are_no_leak():
    text = "A model answer and a reference answer differ in length."
    assert leak(written(text), asked("What is a Reference Answer?")) is None
    assert leak(written(text), asked(reference="A reference answer is longer.")) is None


def test_words_that_stand_in_an_earlier_turn_are_no_leak():
    target = Target(({"role": "user", "content": "The notes say: tea."}, *asked().context), "Tea.")
    assert leak(written("The notes say tea."), target) is None


def test_a_rewritten_version_is_what_some_instructions_ask_for():
    text = "Here is a rewritten version of your text:\nTea is a drink."
    assert leak(written(text), asked()) is not None
    assert leak(written(text), asked("Rewrite this text: tea is drink")) is None


def test_a_verdict_is_what_some_instructions_ask_for():
    text = "The statement is correct."
    assert leak(written(text), asked()) is not None
    assert leak(written(text), asked("Is this statement true? Tea is a drink.")) is None


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_an_answer_that_copies_the_request_is_a_leak(name: str):
    target = asked()
    request = BUILT_IN[name](target)[-1]["content"]
    assert leak(written(request.partition(target.reference)[2]), target) is not None


def test_an_answer_that_begins_with_the_instruction_is_a_leak():
    target = asked("Sort these drinks:\ntea and beer and milk", "beer, milk, tea")
    assert leak(written("tea and beer and milk\nbeer, milk, tea"), target) == "begins with the instruction"
    assert leak(written("beer, milk, tea"), target) is None
    assert leak(written("tea and beer and milk"), asked("tea and beer and milk", "tea and beer and milk, sir")) is None


@settings(deadline=None)
@given(st.text(max_size=200))
def test_what_the_reference_says_is_never_a_leak(text: str):
    assert leak(written(text), asked(reference=text)) is None


# --- repetition ---


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


# --- numeric_answer ---


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


# --- the checks of a run ---


def test_the_first_check_that_rejects_gives_its_name_and_reason():
    checks = resolve_checks(["empty", "truncated", "leak"])
    cut_leak = Answer("Like the reference answer", "length", 3)
    assert first_rejection(cut_leak, asked(), checks) == ("truncated", "cut off after 3 tokens")
    assert first_rejection(cut_leak, asked(), checks[::-1]) == ("leak", "'reference answer' in the answer")


def test_an_answer_that_passes_all_checks_is_not_rejected():
    checks = resolve_checks(["empty", "truncated", "leak", "repetition"])
    assert first_rejection(written("A drink made from leaves."), asked(), checks) is None


def test_an_unknown_check_is_refused_with_the_known_ones_named():
    with pytest.raises(UnknownNameError, match=r"self_distillation\.checks is 'leaks'.*known: .*numeric_answer"):
        resolve_checks(["empty", "leaks"])
