"""Built-in answer checks, and the order in which an answer meets them.

Every check is a pure function of an answer and its target. What stands in the conversation or in the original answer
already is never held against the rewritten one.
"""

import unicodedata
from collections.abc import Callable, Iterable

from axolotl_sdft.distillation.final_number import are_equal, final_expression
from axolotl_sdft.distillation.interfaces import Answer, AnswerCheck, Target
from axolotl_sdft.distillation.leak import leak
from axolotl_sdft.distillation.repetition import repetition
from axolotl_sdft.distillation.texts import shortened
from axolotl_sdft.hookspecs import hookimpl
from axolotl_sdft.plugins import CHECKS, registry


def empty(answer: Answer, target: Target) -> str | None:
    """Reject an answer of nothing but punctuation, and one whose original is empty."""
    if not target.reference.strip():
        return "the original answer is empty"
    if not answer.text.strip():
        return "no text"
    if _is_punctuation(answer.text) and not _is_punctuation(target.reference):
        return "nothing but punctuation"
    return None


def truncated(answer: Answer, target: Target) -> str | None:
    """Reject an answer that was cut off by ``max_new_tokens``, and one that announces something and ends there."""
    if answer.finish_reason == "length":
        return f"cut off after {answer.num_tokens} tokens"
    breaks_off = answer.text.rstrip(" *\n").endswith(":") and not target.reference.rstrip().endswith(":")
    return "ends with a colon" if breaks_off else None


def numeric_answer(answer: Answer, target: Target) -> str | None:
    """Reject an answer that ends in another number, or in none, or whose original holds none to compare with."""
    expected = final_expression(target.reference)
    if expected is None:
        return "the reference holds no number"
    found = final_expression(answer.text)
    if found is None:
        return f"no number, reference {shortened(expected)}"
    return None if are_equal(found, expected) else f"answer {shortened(found)}, reference {shortened(expected)}"


def _is_punctuation(text: str) -> bool:
    return all(unicodedata.category(character)[0] in "PZC" for character in text)


@hookimpl
def sdft_register_checks(register: Callable[[str, AnswerCheck], None]) -> None:
    """Register the built-in checks."""
    for check in (empty, truncated, leak, repetition, numeric_answer):
        register(check.__name__, check)


def resolve_checks(names: Iterable[str]) -> list[tuple[str, AnswerCheck]]:
    """Return names and functions of checks, in the order given.

    Raises:
        UnknownNameError: A name is not registered; the message lists those that are.
    """
    return [(name, registry().resolve(CHECKS, name, "self_distillation.checks")) for name in names]


def first_rejection(
    answer: Answer, target: Target, checks: Iterable[tuple[str, AnswerCheck]]
) -> tuple[str, str] | None:
    """Return the name of the first check that rejects an answer, with its reason, or None when all pass."""
    for name, check in checks:
        reason = check(answer, target)
        if reason is not None:
            return name, reason
    return None
