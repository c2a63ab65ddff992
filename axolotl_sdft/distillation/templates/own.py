"""What users add to templates: worked examples, and templates of their own as Jinja texts."""

from collections.abc import Sequence
from itertools import takewhile

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2 import Template as JinjaTemplate
from jinja2.sandbox import SandboxedEnvironment

from axolotl_sdft.config import ExampleConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.core.texts import shortened
from axolotl_sdft.distillation.interfaces import Template
from axolotl_sdft.distillation.templates.built_in import request
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
        raise ConfigError(f"{YAML_KEY} is no valid Jinja text: {err}; it reads: {shortened(text)!r}") from err
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
