"""The ``numeric_answer`` check: the answer states another result than the original."""

from axolotl_sdft.core.texts import shortened
from axolotl_sdft.distillation.checks.final_number import stated_results
from axolotl_sdft.distillation.checks.math_worker import import_math_verify
from axolotl_sdft.distillation.checks.options import prepared_by
from axolotl_sdft.distillation.checks.results import deadline_in, same_result
from axolotl_sdft.inference.interfaces import Answer, Target

_SECONDS = 2.0  # for all comparisons of an answer; one that takes longer is rejected


@prepared_by(import_math_verify)
def numeric_answer(answer: Answer, target: Target) -> str | None:
    """Reject an answer with another result than the original, with two different results, or with none.

    Results are compared as a whole: all numbers of a pair, a range or a time, the sign, words such as million, bounds
    such as "at least", the letter of a multiple choice. Units count where both texts name one. Where the original holds
    no number there is nothing to compare with, and the answer is rejected as well.
    """
    stated = stated_results(target.reference, target.instruction)
    if not stated:
        return "the reference holds no number"
    expected = stated[-1]
    results = stated_results(answer.text, target.instruction)
    if not results:
        return f"no number, reference {shortened(expected.source)}"
    deadline = deadline_in(_SECONDS)
    for result in reversed(results):
        if not same_result(result, expected, deadline):
            is_last = result is results[-1]
            named = shortened(result.source, 40)
            named = named if is_last else f"{named} and {shortened(results[-1].source, 40)}"
            return f"answer {named}, reference {shortened(expected.source, 40)}"
    return None
