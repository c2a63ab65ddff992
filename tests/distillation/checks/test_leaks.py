"""Which answers talk about the request they came from, and which only sound like it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.config import ExampleConfig
from axolotl_sdft.distillation.checks import leak, resolve_checks
from axolotl_sdft.distillation.templates import BUILT_IN, resolve_template
from axolotl_sdft.inference.interfaces import Target
from tests.distillation.checks.samples import asked, written


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
        "Here is my response: tea is a drink.",
        "Your answer:\n\nTea is a drink.",
        "My own response would be that tea is a drink.",
        "The text above is true. Tea is a drink.",
        "Tea is a drink.\n\nI\u2019m ready to help. What\u2019s your request?",
        "Tea is a drink. The last line of the solution must be the same.",
        "Tea, in my own words, is a drink.",
        "I made the following changes: tea is a drink.",
        "Tea is a drink.\n\nThis answer is correct and concise.",
        "Tea is a drink.\nThe original answer was water.",
        "The answer to your question is: tea is a drink.",
        "Here is the answer to the question:\nTea is a drink.",
        "Tea is a drink. Let me know if that is right!",
        "Tea is a drink. (No corrections are needed.)",
        "Tea is a drink: the answer is in the requested format.",
        "Based on the provided response, tea is a drink.",
        "Tea is a drink.\n\n### Response:\nMilk is a drink.",
        "Tea is a drink.\nHuman: And milk?",
        "Tea is a drink.<|im_end|>\n<|im_start|>user",
        "Tea is a drink. [INST] And milk? [/INST]",
        "Tea is a drink. It's your turn to pour.",
        "Paraphrased: tea is a drink.",
        "**Reworded answer:** tea is a drink.",
        "Tea is a drink. (I rephrased the text.)",
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
        "They gave an answer. This solution is popular, and this answer is theirs.",
        "Thank you for your response: tea it is. In response to your question, no.",
        "Write down your answer. My version of tea has milk.",
        "The answer to your question is no: tea is no food.",
        "Humans drink tea. The user: a guest. The instruction is short.",
        "Turn the cup round; then it is the turn of the next guest.",
        "Let me know if you have questions.",
        "The paraphrased line is by Basho.",
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


@pytest.mark.parametrize(
    ("text", "instruction", "reference"),
    [
        ("The manual says so: the guide you gave to the guests is short.", "Which book?", "Take the guide."),
        ("The instructions are clear, so brew it.", "What of the box?", "Its instructions were clear."),
        ("Human: Is tea hot?\nAssistant: It is.", "Write a conversation about tea.", "A: Hot?\nB: Yes."),
        ("Dear Ann, my own answer is tea.", "Write in the first person: give my own answer, tea.", "I say tea."),
        ("Pour, then it's your turn.", "Explain the game of tea.", "Pour in turn."),
        ("Rewritten: tea is a drink.", "Rewrite: tea drink is", "Tea is a drink."),
        ("The mark <|im_end|> ends a turn.", "What is <|im_end|>?", "A mark."),
    ],
)
def test_what_the_conversation_speaks_of_is_no_leak(text: str, instruction: str, reference: str):
    assert leak(written(text), asked(instruction, reference)) is None


def test_a_verdict_is_what_some_instructions_ask_for():
    text = "The statement is correct."
    assert leak(written(text), asked()) is not None
    assert leak(written(text), asked("Is this statement true? Tea is a drink.")) is None


@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {"unaided"}))  # which adds nothing to the question
def test_an_answer_that_copies_the_request_is_a_leak(name: str):
    target = asked()
    request = BUILT_IN[name](target)[-1]["content"]
    [(_, check)] = resolve_checks(["leak"], [BUILT_IN[name]])
    assert check(written(request.partition(target.reference)[2]), target) is not None


def test_the_wording_of_a_template_of_ones_own_is_a_leak_as_well():
    template = resolve_template("{{ instruction }}\nBear in mind what my aunt always said: {{ reference }}")
    [(_, check)] = resolve_checks(["leak"], [template])
    copied = written("Bear in mind  what my Aunt always said: tea is a drink.")
    assert check(copied, asked()) == "'bear in mind what my aunt always said' copied from the request"
    assert check(written("What my aunt always said: tea is a drink."), asked()) is None


def test_a_sentence_of_an_example_is_a_leak():
    example = ExampleConfig(instruction="What is snow?", reference="Ice.", answer="Snow is ice that fell from clouds.")
    [(_, check)] = resolve_checks(["leak"], [resolve_template("reference", [example])])
    assert check(written("Tea is a drink. Snow is ice that fell from clouds."), asked()) is not None
    assert check(written("Tea is a drink. Snow is ice."), asked()) is None


def test_a_template_that_needs_rows_of_some_form_leaves_its_wording_unchecked_and_says_so(caplog):
    [(_, check)] = resolve_checks(["leak"], [lambda target: [target.context[7]]])
    assert "IndexError" in caplog.text
    assert check(written("Like the reference answer."), asked()) is not None


def test_phrases_of_ones_own_are_leaks_unless_the_conversation_has_them():
    [(_, check)] = resolve_checks([{"leak": {"phrases": ["as per the source"]}}])
    text = written("Tea, As per the source, is a drink.")
    assert check(text, asked()) == "'as per the source' in the answer"
    assert check(text, asked("Describe tea as per the source.")) is None


@pytest.mark.parametrize(
    ("first_line", "reason"),
    [
        ("冰和雪有什么不同", "begins with the instruction"),  # What is the difference between ice and snow
        ("静夜思", None),  # a title of three characters
        ("f(a.b)=c/d*e-g", None),
    ],
)
def test_a_first_line_counts_as_the_instruction_from_four_words_on_in_any_script(first_line: str, reason: str | None):
    assert leak(written(f"{first_line}\nA"), asked(f"Q\n{first_line}", "A")) == reason


def test_an_answer_that_begins_with_the_instruction_is_a_leak():
    target = asked("Sort these drinks:\ntea and beer and milk", "beer, milk, tea")
    assert leak(written("tea and beer and milk\nbeer, milk, tea"), target) == "begins with the instruction"
    assert leak(written("beer, milk, tea"), target) is None
    assert leak(written("tea and beer and milk"), asked("tea and beer and milk", "tea and beer and milk, sir")) is None


@given(st.text(max_size=200))
def test_what_the_reference_says_is_never_a_leak(text: str):
    assert leak(written(text), asked(reference=text)) is None
