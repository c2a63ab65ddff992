"""Worked examples that are shown to the seed model before each request."""

from collections.abc import Sequence
from itertools import takewhile

from axolotl_sdft.config import ExampleConfig
from axolotl_sdft.distillation.interfaces import Template
from axolotl_sdft.inference.interfaces import Message, Target


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


def _turns(template: Template, example: ExampleConfig) -> list[Message]:
    request = template(Target(({"role": "user", "content": example.instruction},), example.reference))
    # The conversation brings the system message; a second one in its middle is refused by most chat templates.
    return [*request[len(_system_messages(request)) :], {"role": "assistant", "content": example.answer}]


def _system_messages(messages: Sequence[Message]) -> list[Message]:
    return list(takewhile(lambda message: message["role"] == "system", messages))
