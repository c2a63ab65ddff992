"""What the answers that a model writes itself say of it: endings that repeat, refusals, tool calls, pass@k.

The checks of the self-distilled dataset judge them. Answers are judged anew for each report, since that takes no model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from axolotl_sdft.distillation.checks.function_calls import function_call
from axolotl_sdft.distillation.checks.loops import repetition
from axolotl_sdft.distillation.checks.refusals import refusal
from axolotl_sdft.distillation.generation.selection import rejection_by_calls, without_thinking
from axolotl_sdft.distillation.interfaces import AnswerCheck
from axolotl_sdft.evaluation.measures.answer_accuracy import answered_rightly
from axolotl_sdft.inference.call_markup import call_marks
from axolotl_sdft.inference.function_calls import is_calls_alone
from axolotl_sdft.inference.interfaces import Answer, Target


@dataclass(frozen=True)
class JudgedAnswers:
    """What is said of each answer of one model; empty where nothing was answered, or nothing can be said."""

    right: Sequence[bool] = ()
    """Of each held-out prompt, whether the greedy answer passes the checks of ``exact_match``."""

    tool_calls: Sequence[bool] = ()
    """Of each held-out prompt whose reference makes calls, whether the answer makes the same."""

    pass_at: dict[int, Sequence[float]] = field(default_factory=dict)
    """By k: of each held-out prompt, the chance that one of k sampled answers is right."""

    repetition: dict[str, Sequence[bool]] = field(default_factory=dict)
    """By prompts, ``general`` or ``held_out``: of each answer that was given, whether it runs in circles."""

    refusals: Sequence[bool] = ()
    """Of each general prompt that was answered, whether the answer refuses."""


def general_target(prompt: str) -> Target:
    """Return a general prompt as what checks are asked about: there is no original answer."""
    return Target(({"role": "user", "content": prompt},), "")


def repeats_itself(answer: Answer, target: Target) -> bool:
    """Whether an answer, its thinking part included, runs in circles where neither prompt nor reference does."""
    return repetition(answer, target) is not None


def refuses(answer: Answer, target: Target) -> bool:
    """Whether an answer refuses where the reference does not."""
    return refusal(without_thinking(answer), target) is not None


def makes_calls(reference: str) -> bool:
    """Whether a reference calls tools: by the markup that agents parse, or by being calls and nothing else.

    A call within prose, such as ``print(x)`` in an explanation of a program, is talked about and not made.
    """
    return bool(call_marks(reference)) or is_calls_alone(reference)


def makes_the_same_calls(answer: Answer, target: Target) -> bool:
    """Whether an answer makes the calls of the reference, by value, in the markup of the reference."""
    if answer.error is not None:
        return False
    alone = without_thinking(answer)
    return function_call(alone, target) is None and rejection_by_calls(alone, target) is None


def pass_at_k(num_answers: int, num_right: int, k: int) -> float:
    """Return the chance that one of k answers is right, by the unbiased estimator over all sampled ones.

    ``1 - C(n - c, k) / C(n, k)`` for n answers of which c are right (arXiv 2107.03374, equation 1).

    Raises:
        ValueError: k is larger than the number of answers.
    """
    if not 1 <= k <= num_answers:
        raise ValueError(f"pass@{k} of {num_answers} answers can't be told; sample at least {k}")
    return 1.0 - math.comb(num_answers - num_right, k) / math.comb(num_answers, k)


def pass_rates(
    answers: Sequence[Sequence[Answer]],
    targets: Sequence[Target],
    checks: Sequence[tuple[str, AnswerCheck]],
    pass_at: Sequence[int],
) -> dict[int, Sequence[float]]:
    """Return by k the pass@k of each prompt, given its sampled answers."""
    counts = [
        sum(answered_rightly(of_prompt, [target] * len(of_prompt), checks))
        for of_prompt, target in zip(answers, targets, strict=True)
    ]
    return {
        k: [pass_at_k(len(of_prompt), right, k) for of_prompt, right in zip(answers, counts, strict=True)]
        for k in pass_at
    }


def judged_form(answers: Sequence[Answer], targets: Sequence[Target]) -> tuple[list[bool], list[bool]]:
    """Return which answers run in circles, and which refuse; those that failed are left out."""
    given = [(answer, target) for answer, target in zip(answers, targets, strict=True) if answer.error is None]
    return [repeats_itself(*pair) for pair in given], [refuses(*pair) for pair in given]


def judged_calls(answers: Sequence[Answer], targets: Sequence[Target]) -> list[bool]:
    """Return whether the answers make the calls of their references, of the targets whose reference makes any."""
    return [
        makes_the_same_calls(answer, target)
        for answer, target in zip(answers, targets, strict=True)
        if makes_calls(target.reference)
    ]
