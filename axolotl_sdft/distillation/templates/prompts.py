"""The templates: those that ship built in, worked examples before them, and users' own as Jinja texts.

The wordings were chosen by what a model of 135M parameters makes of them: asked for more than the original says, it
invents facts; asked for the final number of a solution, it skips the steps; shown a function, it defines one.
"""

import logging
import re
from collections.abc import Sequence
from itertools import takewhile

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2 import Template as JinjaTemplate
from jinja2.sandbox import SandboxedEnvironment

from axolotl_sdft.config import ExampleConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.core.texts import num_words, shortened
from axolotl_sdft.distillation.interfaces import Template
from axolotl_sdft.inference.function_calls import is_calls_alone
from axolotl_sdft.inference.interfaces import Message, Target

LOG = logging.getLogger(__name__)

_FEWEST_WORDS = 6  # shorter sentences may well be an answer's own
_SENTENCE_END = re.compile("[\n.:\u3002\uff01\uff1a\uff1f]+")  # the last ones are those of Chinese and Japanese


def template_sentences(template: Template) -> tuple[str, ...]:
    """Return the sentences of more than five words that a template says to every row, examples included.

    They are in lower case, on one line each, and without what may vary: an instruction, an original answer.
    """
    # A line break ends a sentence, so what stands before and after the row's own texts is never joined.
    blank = Target(({"role": "user", "content": "\n-\n"},), "\n-\n")
    try:
        texts = [message["content"] for message in template(blank)]
    except Exception as err:  # a plugin's template may insist on rows of some form
        LOG.warning(
            "the template can't be rendered for an empty row (%s: %s), so answers that copy its wording pass the leak "
            "check",
            *(type(err).__name__, err),
        )
        return ()
    sentences = {" ".join(part.lower().split()) for text in texts for part in _SENTENCE_END.split(_plain_quotes(text))}
    return tuple(sorted(sentence for sentence in sentences if num_words(sentence) >= _FEWEST_WORDS))


def _plain_quotes(text: str) -> str:
    return text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def reference(target: Target) -> list[Message]:
    """Ask for the original answer in other words, with all its facts and nothing else.

    The default: for instructions of all kinds, and for small models, which invent facts when left to themselves.
    """
    return request(
        target,
        f"{target.instruction}\n\nHere is a reliable answer to use as a guide:\n{target.reference}\n\nNow answer the "
        "question above in your own words, keeping all the facts. Write only the answer.",
    )


def notes(target: Target) -> list[Message]:
    """Ask for a response of the model's own that is built from the original answer.

    Departs further from the original and says more. For models that can be trusted with facts.
    """
    return request(
        target,
        f"Notes:\n{target.reference}\n\nUse the facts in the notes to respond to the following. Start directly with "
        f"the response and do not mention the notes.\n\n{target.instruction}",
    )


def mathematics(target: Target) -> list[Message]:
    """Ask for a worked solution with the same calculations.

    For word problems whose answers show their steps. Goes with the checks
    ``numeric_answer`` and ``arithmetic``.
    """
    return request(
        target,
        f"{target.instruction}\n\nHere is a reliable solution to use as a guide:\n{target.reference}\n\nNow give the "
        "solution in your own words, with the same calculations in the same order. Begin with the first step.",
    )


def function_calls(target: Target) -> list[Message]:
    """Ask for the same function calls with the same arguments, and at most a sentence about them.

    For tool use and API calls. Goes with the ``function_call`` check. Of an original that is calls and nothing else,
    nothing else is asked for, so that the model does not unlearn to call.
    """
    is_one_line = "\n" not in target.reference and "`" not in target.reference
    shown = f"`{target.reference}`" if is_one_line else f"\n{target.reference}\n"
    wanted = (
        "Answer with this call and nothing else: no explanation, no quotes around it."
        if is_calls_alone(target.reference)
        else "Answer with this call, and say in one short sentence what it does."
    )
    return request(target, f"{target.instruction}\n\nThe right call is {shown}. {wanted}")


def code(target: Target) -> list[Message]:
    """Ask for the same code with the same names, in the model's own surroundings.

    For answers that hold code between fences. Goes with the ``code`` check.
    """
    return request(
        target,
        f"{target.instruction}\n\nHere is a reliable answer to use as a guide:\n{target.reference}\n\nNow answer the "
        "question above with the same code, keeping all the names. Write only the answer.",
    )


def self_data(target: Target) -> list[Message]:
    """Show the task and the right answer under headings, and ask the model for its own answer to the task.

    In the manner of Self-Data Distillation (arXiv 2410.09982): for seed models that are pruned afterwards, where the
    training set should read like the seed model itself.
    """
    return request(
        target,
        f"Task:\n{target.instruction}\n\nCorrect answer:\n{target.reference}\n\nThe correct answer shows what is "
        "right. Give the answer that you yourself would give to the task: complete, correct, and in your own style.",
    )


def unaided(target: Target) -> list[Message]:
    """Ask the question as it stands; the original answer is not shown, and only the checks know it.

    For self-training on the model's own right answers: goes with ``max_attempts``, a temperature, ``on_reject: drop``
    and a check that tells right from wrong, such as ``numeric_answer``.
    """
    return list(target.context)


def request(target: Target, content: str) -> list[Message]:
    """Return the conversation before an answer with its last user message replaced by a request."""
    return [*target.context[:-1], {"role": "user", "content": content}]


BUILT_IN: dict[str, Template] = {
    template.__name__: template
    for template in (reference, notes, mathematics, function_calls, code, self_data, unaided)
}


def with_examples(template: Template, examples: Sequence[ExampleConfig]) -> Template:
    """Return a template that puts worked examples before the conversation, as turns that it asks for itself.

    They stand behind the system message, each as the request that the template makes of it and the answer to that.
    """
    if not examples:
        return template
    shown = [turn for example in examples for turn in _turns(template, example)]

    def template_with_examples(target: Target) -> list[Message]:
        messages = list(template(target))
        num_system = len(_system_messages(messages))
        return [*messages[:num_system], *shown, *messages[num_system:]]

    return template_with_examples


def with_answer_prefix(template: Template, prefix: str) -> Template:
    """Return a template whose chats end with the beginning of the answer, for the seed model to go on behind it."""
    if not prefix:
        return template

    def template_with_prefix(target: Target) -> list[Message]:
        return [*template(target), {"role": "assistant", "content": prefix}]

    return template_with_prefix


def _turns(template: Template, example: ExampleConfig) -> list[Message]:
    request = template(Target(({"role": "user", "content": example.instruction},), example.reference))
    # The conversation brings the system message; a second one in its middle is refused by most chat templates.
    return [*request[len(_system_messages(request)) :], {"role": "assistant", "content": example.answer}]


def _system_messages(messages: Sequence[Message]) -> list[Message]:
    return list(takewhile(lambda message: message["role"] == "system", messages))


YAML_KEY = "self_distillation.template"
_VARIABLES = ("instruction", "messages", "reference")


def jinja_template(text: str) -> Template:
    """Return the template that a Jinja text stands for: the text becomes the last user message.

    Raises:
        ConfigError: The text is broken, uses another variable, or never shows the reference.
    """
    environment = SandboxedEnvironment(undefined=StrictUndefined)
    try:
        used = meta.find_undeclared_variables(environment.parse(text))
        compiled = environment.from_string(text)
    except TemplateError as err:
        raise ConfigError(f"{YAML_KEY} is not a valid Jinja text: {err}; it reads: {shortened(text)!r}") from err
    unknown = sorted(used.difference(_VARIABLES))
    if unknown:
        raise ConfigError(f"{YAML_KEY} uses {unknown[0]!r}, which is not known; known: {', '.join(_VARIABLES)}")
    if "reference" not in used:
        raise ConfigError(f"{YAML_KEY} never uses {{{{ reference }}}}; the seed model would not see the answer")

    def template(target: Target) -> list[Message]:
        return request(target, _rendered(compiled, target))

    return template


def _rendered(compiled: JinjaTemplate, target: Target) -> str:
    try:
        text = compiled.render(
            instruction=target.instruction, reference=target.reference, messages=list(target.context[:-1])
        )
    except Exception as err:  # a template may call anything that its variables offer
        raise ConfigError(
            f"{YAML_KEY} can't be rendered for the instruction {shortened(target.instruction)!r}: "
            f"{type(err).__name__}: {err}; known variables: {', '.join(_VARIABLES)}"
        ) from err
    if not text.strip():
        raise ConfigError(
            f"{YAML_KEY} renders to an empty text for the instruction {shortened(target.instruction)!r}; "
            "let it show {{ instruction }} and {{ reference }}"
        )
    return text
