"""Rewriting templates: how the seed model is asked to give an answer in its own words (SDFT, arXiv 2402.13669).

Each is a function of a target that returns a chat. It keeps the earlier turns of the conversation as they are and
replaces the last user message by a request that holds the instruction and the original answer.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from axolotl_sdft.config import ExampleConfig
from axolotl_sdft.core.callables import callable_name
from axolotl_sdft.core.errors import ConfigError, PluginError, UnknownNameError
from axolotl_sdft.core.texts import shortened
from axolotl_sdft.distillation.interfaces import Template
from axolotl_sdft.distillation.templates.prompts import (
    BUILT_IN,
    YAML_KEY,
    jinja_template,
    template_sentences,
    with_answer_prefix,
    with_examples,
)
from axolotl_sdft.inference.interfaces import Message, Target
from axolotl_sdft.plugins.registry import TEMPLATES, registry
from axolotl_sdft.plugins.specifications import hookimpl

__all__ = ["BUILT_IN", "resolve_template", "template_sentences", "with_answer_prefix"]

_NO_NAME = re.compile(r"[\s{/.]")  # as in a request with {reference}, or in the name of a file
_DUMMY = Target(
    (
        {"role": "system", "content": "system"},
        {"role": "user", "content": "first question"},
        {"role": "assistant", "content": "first answer"},
        {"role": "user", "content": "question"},
    ),
    "answer",
)


@hookimpl
def sdft_register_templates(register: Callable[[str, Template], None]) -> None:
    """Register the built-in templates."""
    for name, template in BUILT_IN.items():
        register(name, template)


def resolve_template(template: str | Template, examples: Sequence[ExampleConfig] = ()) -> Template:
    """Return the template that a text stands for: Jinja where it holds ``{{`` or ``{%``, else a registered name.

    A function that is given in place of a text stands for itself.

    A Jinja text becomes the last user message. It knows ``instruction``, ``reference`` and ``messages``, the earlier
    turns. Examples come before the conversation, as turns of the same template.

    Raises:
        ConfigError: The Jinja text is broken, uses another variable, never shows the reference, or can't be rendered
            for an example; or the text is a request or a file's name, and no Jinja text.
        UnknownNameError: No template is registered under the name.
        PluginError: The function can't be called with a target. It raises the same where it returns no chat.
    """
    if not isinstance(template, str) or ("{{" not in template and "{%" not in template):
        return with_examples(_registered(template), examples)
    jinja = jinja_template(template)
    jinja(_DUMMY)  # what can't be rendered shows now, not hours later
    return with_examples(jinja, examples)


def _registered(template: str | Template) -> Template:
    try:
        registered: Template = registry().resolve(TEMPLATES, template, YAML_KEY)
    except UnknownNameError:
        if isinstance(template, str) and _NO_NAME.search(template.strip()):
            raise ConfigError(
                f"{YAML_KEY} is {shortened(template)!r}, which is neither the name of a template nor a Jinja text; "
                "write the request itself, with {{ instruction }} and {{ reference }} where they are to stand"
            ) from None
        raise
    is_built_in = registered in BUILT_IN.values()
    return registered if is_built_in else _returning_chats(callable_name(template), registered)


def _returning_chats(name: str, template: Template) -> Template:
    """Return a template of somebody else's that refuses to hand on what is no chat, as a text alone."""

    def template_with_chats(target: Target) -> list[Message]:
        told = template(target)
        messages = [] if isinstance(told, str | Mapping) or not isinstance(told, Iterable) else list(told)
        if not messages or not all(map(_is_message, messages)):
            raise PluginError(
                f"{YAML_KEY}: the template {name} returned {shortened(repr(told))} for the instruction "
                f"{shortened(target.instruction)!r}; it must return a list of messages, each a mapping of role and "
                "content to texts"
            )
        return messages

    return template_with_chats


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))
