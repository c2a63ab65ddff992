"""The ``numeric_answer`` check: the answer ends in another number than the original."""

from axolotl_sdft.distillation.checks.final_number import (
    are_equal,
    final_expression,
    import_math_verify,
    stated_results,
)
from axolotl_sdft.distillation.checks.options import prepared_by
from axolotl_sdft.distillation.interfaces import Answer, Target
from axolotl_sdft.distillation.texts import shortened


@prepared_by(import_math_verify)
def numeric_answer(answer: Answer, target: Target) -> str | None:
    """Reject an answer that ends in another number, names two different results, or none.

    Where the original holds no number there is nothing to compare with, and the answer is rejected as well.
    """
    expected = final_expression(target.reference)
    if expected is None:
        return "the reference holds no number"
    found = final_expression(answer.text)
    if found is None:
        return f"no number, reference {shortened(expected)}"
    results = stated_results(answer.text) or [found]
    for result in reversed(results):
        if not are_equal(result, expected):
            is_last = result is results[-1]
            named = shortened(result) if is_last else f"{shortened(result)} and {shortened(results[-1])}"
            return f"answer {named}, reference {shortened(expected)}"
    return None
