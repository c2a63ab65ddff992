"""Rewriting templates: how the seed model is asked to give an answer in its own words (SDFT, arXiv 2402.13669).

Each keeps the earlier turns of the conversation as they are and replaces the last user message by a request that holds
the instruction and the original answer. The wordings were chosen by what a model of 135M parameters makes of them:
asked for more than the original says, it invents facts; asked for the final number of a solution, it skips the steps.
"""

from collections.abc import Callable

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2 import Template as JinjaTemplate
from jinja2.sandbox import SandboxedEnvironment

from axolotl_sdft.distillation.interfaces import Message, Target, Template
from axolotl_sdft.distillation.texts import shortened
from axolotl_sdft.errors import ConfigError
from axolotl_sdft.hookspecs import hookimpl
from axolotl_sdft.plugins import TEMPLATES, registry

_YAML_KEY = "self_distillation.template"
_VARIABLES = ("instruction", "messages", "reference")
_DUMMY = Target(
    (
        {"role": "system", "content": "system"},
        {"role": "user", "content": "first question"},
        {"role": "assistant", "content": "first answer"},
        {"role": "user", "content": "question"},
    ),
    "answer",
)


def reference(target: Target) -> list[Message]:
    """Ask for the original answer in other words, with all its facts and nothing else. The default."""
    return _request(
        target,
        f"{target.instruction}\n\nHere is a reliable answer to use as a guide:\n{target.reference}\n\nNow answer the "
        "question above in your own words, keeping all the facts. Write only the answer.",
    )


def notes(target: Target) -> list[Message]:
    """Ask for a response of the model's own that is built from the original answer.

    Departs further from it and says more. For models that can be trusted with facts.
    """
    return _request(
        target,
        f"Notes:\n{target.reference}\n\nUse the facts in the notes to respond to the following. Start directly with "
        f"the response and do not mention the notes.\n\n{target.instruction}",
    )


def mathematics(target: Target) -> list[Message]:
    """Ask for a worked solution with the same calculations. Goes with the ``numeric_answer`` check."""
    return _request(
        target,
        f"{target.instruction}\n\nHere is a reliable solution to use as a guide:\n{target.reference}\n\nNow give the "
        "solution in your own words, with the same calculations in the same order. Begin with the first step.",
    )


BUILT_IN: dict[str, Template] = {"reference": reference, "notes": notes, "mathematics": mathematics}


@hookimpl
def sdft_register_templates(register: Callable[[str, Template], None]) -> None:
    """Register the built-in templates."""
    for name, template in BUILT_IN.items():
        register(name, template)


def resolve_template(template: str) -> Template:
    """Return the template that a text stands for: Jinja where it holds ``{{`` or ``{%``, else a registered name.

    A Jinja text becomes the last user message. It knows ``instruction``, ``reference`` and ``messages``, the earlier
    turns.

    Raises:
        ConfigError: The Jinja text is broken, uses another variable, or never shows the reference.
        UnknownNameError: No template is registered under the name.
    """
    if "{{" in template or "{%" in template:
        return _jinja_template(template)
    return registry().resolve(TEMPLATES, template, _YAML_KEY)


def _jinja_template(text: str) -> Template:
    environment = SandboxedEnvironment(undefined=StrictUndefined)
    try:
        used = meta.find_undeclared_variables(environment.parse(text))
        compiled = environment.from_string(text)
    except TemplateError as err:
        raise ConfigError(f"{_YAML_KEY} is no valid Jinja text: {err}; it reads: {shortened(text)!r}") from err
    unknown = sorted(used.difference(_VARIABLES))
    if unknown:
        raise ConfigError(f"{_YAML_KEY} uses {unknown[0]!r}, which is not known; known: {', '.join(_VARIABLES)}")
    if "reference" not in used:
        raise ConfigError(f"{_YAML_KEY} never uses {{{{ reference }}}}; the seed model would not see the answer")

    def template(target: Target) -> list[Message]:
        return _request(target, _render(compiled, target))

    template(_DUMMY)  # what can't be rendered shows now, not hours later
    return template


def _render(compiled: JinjaTemplate, target: Target) -> str:
    try:
        text = compiled.render(
            instruction=target.instruction, reference=target.reference, messages=list(target.context[:-1])
        )
    except Exception as err:  # a template may call anything that its variables offer
        raise ConfigError(
            f"{_YAML_KEY} can't be rendered for the instruction {shortened(target.instruction)!r}: "
            f"{type(err).__name__}: {err}; known variables: {', '.join(_VARIABLES)}"
        ) from err
    if not text.strip():
        raise ConfigError(
            f"{_YAML_KEY} renders to an empty text for the instruction {shortened(target.instruction)!r}; "
            "let it show {{ instruction }} and {{ reference }}"
        )
    return text


def _request(target: Target, content: str) -> list[Message]:
    return [*target.context[:-1], {"role": "user", "content": content}]
