"""Answer checks: those that ship built in, and the order in which an answer meets them.

A check is a function of an answer and its target, and of options that users may set. What stands in the conversation or
in the original answer already is never held against the rewritten one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from axolotl_sdft.core.callables import callable_name
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.core.texts import one_line
from axolotl_sdft.distillation.checks.arithmetic import arithmetic
from axolotl_sdft.distillation.checks.fenced_code import code
from axolotl_sdft.distillation.checks.final_answer import numeric_answer
from axolotl_sdft.distillation.checks.form import (
    empty,
    exact_match,
    language,
    length_ratio,
    normalized_match,
    truncated,
)
from axolotl_sdft.distillation.checks.function_calls import function_call
from axolotl_sdft.distillation.checks.leaks import leak
from axolotl_sdft.distillation.checks.loops import repetition
from axolotl_sdft.distillation.checks.options import YAML_KEY, prepared_by, scored_check, with_options
from axolotl_sdft.distillation.checks.refusals import refusal
from axolotl_sdft.distillation.interfaces import AnswerCheck, Template
from axolotl_sdft.distillation.templates import BUILT_IN as BUILT_IN_TEMPLATES
from axolotl_sdft.distillation.templates import template_sentences
from axolotl_sdft.inference.interfaces import Answer, Target
from axolotl_sdft.plugins.registry import CHECKS, registry
from axolotl_sdft.plugins.specifications import hookimpl

BUILT_IN: dict[str, Callable[..., str | None]] = {
    check.__name__: check
    for check in (
        *(empty, truncated, leak, repetition, refusal, language, length_ratio),
        *(numeric_answer, arithmetic, function_call, code, exact_match, normalized_match),
    )
}

__all__ = ["BUILT_IN", "first_rejection", "prepared_by", "resolve_checks", "scored_check", *BUILT_IN]


@hookimpl
def sdft_register_checks(register: Callable[[str, AnswerCheck], None]) -> None:
    """Register the built-in checks."""
    for name, check in BUILT_IN.items():
        register(name, check)


def resolve_checks(
    checks: Iterable[str | Mapping[str, Mapping[str, Any]] | AnswerCheck], templates: Sequence[Template] | None = None
) -> list[tuple[str, AnswerCheck]]:
    """Return names and functions of checks, in the order given, with their options set.

    Args:
        checks: Names, a name with its options such as ``{"length_ratio": {"max": 2.0}}``, or functions.
        templates: The rewriting templates, whose wording must not come back in an answer. None: all built-in ones.

    Raises:
        UnknownNameError: A name is not registered; the message lists those that are.
        ConfigError: An option is unknown or not allowed, or a function has the name of a registered check.
        MissingExtraError: A check needs a package that is not installed.
    """
    worded = BUILT_IN_TEMPLATES.values() if templates is None else templates
    sentences = tuple(sorted({sentence for each in worded for sentence in template_sentences(each)}))
    resolved = []
    for entry in checks:
        [(given, options)] = entry.items() if isinstance(entry, Mapping) else [(entry, {})]
        check, name = registry().resolve(CHECKS, given, YAML_KEY), callable_name(given)
        if given is check and name in registry().names(CHECKS):
            raise ConfigError(f"{YAML_KEY} holds a function {name}, but a registered check has that name; rename yours")
        resolved.append((name, with_options(name, check, options, sentences)))
    return resolved


def first_rejection(
    answer: Answer, target: Target, checks: Iterable[tuple[str, AnswerCheck]]
) -> tuple[str, str] | None:
    """Return the name of the first check that rejects an answer, with its reason, or None when all pass."""
    for name, check in checks:
        reason = check(answer, target)
        if reason is not None:
            return name, one_line(reason)
    return None
