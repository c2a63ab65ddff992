"""How the seed model is asked to rewrite an answer."""

import re
from collections.abc import Iterator

import pytest

from axolotl_sdft.config import ExampleConfig
from axolotl_sdft.core.errors import ConfigError, PluginError, UnknownNameError
from axolotl_sdft.distillation.templates import BUILT_IN, resolve_template, template_sentences
from axolotl_sdft.inference.interfaces import Message, Target

EARLIER: tuple[Message, ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
)
SHOWING = sorted(set(BUILT_IN) - {"unaided"})
"""Those that show the original answer."""
TARGET = Target((*EARLIER, {"role": "user", "content": "What is 6 * 7?"}), "It is 42.")


@pytest.mark.parametrize("name", SHOWING)
def test_a_built_in_template_keeps_the_earlier_turns_and_asks_with_instruction_and_reference(name: str):
    *earlier, request = resolve_template(name)(TARGET)
    assert earlier == list(EARLIER)
    assert request["role"] == "user"
    assert "What is 6 * 7?" in request["content"]
    assert "It is 42." in request["content"]


@pytest.mark.parametrize(
    ("reference", "end"),
    [
        ("dig(depth=2)", "Answer with this call and nothing else: no explanation, no quotes around it."),
        ("Call dig(depth=2) to dig.", "Answer with this call, and say in one short sentence what it does."),
    ],
)
def test_a_call_alone_is_asked_for_alone(reference: str, end: str):
    request = resolve_template("function_calls")(Target(({"role": "user", "content": "Dig."},), reference))[-1]
    assert request["content"].startswith(f"Dig.\n\nThe right call is `{reference}`.")
    assert request["content"].endswith(end)


def test_the_unaided_template_asks_the_question_as_it_stands():
    assert resolve_template("unaided")(TARGET) == list(TARGET.context)


@pytest.mark.parametrize("name", SHOWING)
def test_a_built_in_template_takes_braces_in_a_row_as_they_are(name: str):
    target = Target(({"role": "user", "content": "What does {{ x }} do?"},), "It prints {reference} and {% raw %}.")
    content = resolve_template(name)(target)[-1]["content"]
    assert target.instruction in content
    assert target.reference in content


def test_a_jinja_text_becomes_the_last_user_message():
    template = resolve_template("Q: {{ instruction }}\nA: {{ reference }}\nAfter {{ messages | length }} turns.")
    assert template(TARGET) == [
        *EARLIER,
        {"role": "user", "content": "Q: What is 6 * 7?\nA: It is 42.\nAfter 3 turns."},
    ]


def test_a_jinja_text_can_go_through_the_earlier_turns():
    template = resolve_template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ reference }}")
    assert template(TARGET)[-1]["content"] == "system: Be brief.\nuser: Hello\nassistant: Hi\nIt is 42."


def test_a_broken_jinja_text_is_refused_when_it_is_resolved():
    with pytest.raises(ConfigError, match=r"self_distillation\.template is not a valid Jinja text: .*'{{ reference'"):
        resolve_template("{{ reference")


def test_an_unknown_variable_is_refused_with_the_known_ones_named():
    with pytest.raises(ConfigError, match=r"uses 'answer', .*known: instruction, messages, reference"):
        resolve_template("{{ reference }} {% if false %}{{ answer }}{% endif %}")


def test_a_text_that_never_shows_the_reference_is_refused():
    with pytest.raises(ConfigError, match=r"never uses \{\{ reference \}\}"):
        resolve_template("{{ instruction }} (no reference)")


def test_a_text_that_fails_while_rendering_is_refused_when_it_is_resolved():
    with pytest.raises(ConfigError, match=r"self_distillation\.template can't be rendered .*no attribute 'text'"):
        resolve_template("{{ reference }} {{ messages[0].text }}")


def test_a_text_that_renders_to_nothing_is_refused():
    with pytest.raises(ConfigError, match="renders to an empty text"):
        resolve_template("{% if reference == 'never' %}x{% endif %}")


def test_a_text_can_not_reach_into_the_interpreter():
    with pytest.raises(ConfigError, match="SecurityError"):
        resolve_template("{{ reference.__class__.__mro__ }}")


def test_an_unknown_name_is_refused_with_the_known_ones_named():
    with pytest.raises(UnknownNameError, match=r"self_distillation\.template is 'refrence'.*known: .*mathematics"):
        resolve_template("refrence")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Rewrite: {reference}", "'Rewrite: {reference}'"),
        ("Rewrite the answer in your own words.\n", "'Rewrite the answer in your own words.'"),
        ("prompts/mine.jinja", "'prompts/mine.jinja'"),
    ],
)
def test_a_request_that_is_no_jinja_text_is_refused_with_how_to_write_one(text: str, shown: str):
    message = f"self_distillation.template is {shown}, which is neither the name of a template nor a Jinja text"
    with pytest.raises(ConfigError, match=rf"^{re.escape(message)}.*{re.escape('{{ instruction }}')}"):
        resolve_template(text)


@pytest.mark.parametrize(
    "told", ["Rewrite: It is 42.", None, [], {"role": "user", "content": "Hi"}, [{"role": "user", "content": None}]]
)
def test_a_function_that_returns_no_chat_is_named_with_what_it_returned(told: object):
    def mine(target: Target) -> object:
        return told

    template = resolve_template(mine)
    with pytest.raises(
        PluginError, match=r"template: the template mine returned .* for the instruction 'What is 6 \* 7"
    ):
        template(TARGET)


def test_a_function_may_yield_its_messages():
    def mine(target: Target) -> Iterator[Message]:
        yield {"role": "user", "content": target.reference}

    assert resolve_template(mine)(TARGET) == [{"role": "user", "content": "It is 42."}]


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_template_says_what_it_asks_and_when_to_pick_it(name: str):
    what, _, when = (BUILT_IN[name].__doc__ or "").partition("\n\n")
    assert what.split()[0] in ("Ask", "Show")
    assert when.strip()


def test_a_call_on_several_lines_is_shown_without_backticks():
    question = ({"role": "user", "content": "Water it."},)
    assert "`water()`" in BUILT_IN["function_calls"](Target(question, "water()"))[-1]["content"]
    assert (
        "\n\nThe right call is \nwater()\ndig()\n"
        in (BUILT_IN["function_calls"](Target(question, "water()\ndig()"))[-1]["content"])
    )


# --- examples ---

EXAMPLES = (
    ExampleConfig(instruction="What is 1 + 1?", reference="2", answer="That makes 2."),
    ExampleConfig(instruction="What is 2 + 2?", reference="4", answer="That makes 4."),
)


def test_examples_are_earlier_turns_of_the_same_template_behind_the_system_message():
    template = resolve_template("{{ instruction }} ({{ reference }})", EXAMPLES)
    assert template(TARGET) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 + 1? (2)"},
        {"role": "assistant", "content": "That makes 2."},
        {"role": "user", "content": "What is 2 + 2? (4)"},
        {"role": "assistant", "content": "That makes 4."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "What is 6 * 7? (It is 42.)"},
    ]


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_users_and_assistants_take_turns_with_examples_as_well(name: str):
    messages = resolve_template(name, EXAMPLES)(Target(({"role": "user", "content": "Hello"},), "Hi"))
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2 + ["user"]


def test_a_jinja_text_that_fails_for_an_example_is_refused_when_it_is_resolved():
    text = "{{ messages[0].content }} {{ reference }}"  # an example has no earlier turns
    resolve_template(text)
    with pytest.raises(ConfigError, match=r"can't be rendered for the instruction 'What is 1 \+ 1\?'"):
        resolve_template(text, EXAMPLES)


# --- wording ---


def test_the_wording_of_a_template_is_its_sentences_of_more_than_five_words_without_those_of_the_row():
    template = resolve_template(
        "Answer this with great care, please:\n{{ instruction }}\nLike: {{ reference }}. Be brief."
    )
    assert template_sentences(template) == ("answer this with great care, please",)


@pytest.mark.parametrize(
    ("text", "wording"),
    [
        (  # Here is a reliable answer: ... Now answer the question above in your own words. Be brief.
            "以下是可供参考的可靠答案\N{FULLWIDTH COLON}{{ reference }}\n请用你自己的话回答上面的问题。请简短。",
            ("以下是可供参考的可靠答案", "请用你自己的话回答上面的问题"),
        ),
        ("ตอบคำถามข้างต้นด้วยคำพูดของคุณเอง {{ reference }}\nสั้นๆ", ("ตอบคำถามข้างต้นด้วยคำพูดของคุณเอง",)),
    ],
)
def test_the_wording_is_told_in_scripts_without_spaces_as_well(text: str, wording: tuple[str, ...]):
    assert template_sentences(resolve_template(text)) == wording


def test_the_wording_includes_the_examples():
    example = ExampleConfig(instruction="Why?", reference="So.", answer="Because it has always been like that.")
    assert template_sentences(resolve_template("{{ reference }}", [example])) == (
        "because it has always been like that",
    )
