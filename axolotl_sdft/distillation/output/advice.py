"""What to do about a dataset that was rewritten badly: few accepted answers, or a distribution gap that grew."""

from collections.abc import Mapping
from typing import Any

_LOW_ACCEPTANCE = 0.5
_FEWEST_ANSWERS = 20  # of fewer a share says little

WAY_OUT = {
    "truncated": "raise generation.max_new_tokens, or choose a template that asks for less",
    "leak": "choose another template, or show worked examples (examples)",
    "repetition": "set generation.temperature, such as 0.7, or max_attempts above 1",
    "refusal": "choose a template that shows the reference; a seed model that declines most prompts is not suited",
    "empty": "look at a few rows with axolotl self-distill --dry-run 5",
    "language": "choose a template of your own in the language of the rows",
    "length_ratio": "choose another template, or wider bounds",
    "numeric_answer": "set template: mathematics, or a list of templates, and max_attempts above 1",
    "arithmetic": "set max_attempts above 1",
    "function_call": "set template: function_calls, and max_attempts above 1",
    "code": "set template: code, and max_attempts above 1",
    "exact_match": "set max_attempts above 1, or normalized_match",
    "normalized_match": "set max_attempts above 1",
    "failed": "start again to have them tried again",
}
"""By the name of the check that rejected an answer, or ``failed``; keys are those of ``self_distillation``."""


def advice_for(summary: Mapping[str, Any]) -> list[str]:
    """Return sentences about what went badly, each with a way out; none where it went well.

    Args:
        summary: ``summary.json`` with its counts and the gap.
    """
    return [*_about_acceptance(summary), *_about_the_gap(summary.get("gap"))]


def _about_acceptance(summary: Mapping[str, Any]) -> list[str]:
    turns, acceptance = summary["turns"], summary["acceptance"]
    if turns < _FEWEST_ANSWERS or acceptance >= _LOW_ACCEPTANCE:
        return []
    reasons = [
        f"{name} {count}" + (f" ({WAY_OUT[name]})" if name in WAY_OUT else "")
        for name, count in summary["rejections"].items()
    ]
    return [
        f"only {acceptance:.0%} of the answers were accepted, so most of the training is on original answers; rejected "
        f"by {'; '.join(reasons)}"
    ]


def _about_the_gap(gap: Mapping[str, Any] | None) -> list[str]:
    if gap is None or gap["answers"] < _FEWEST_ANSWERS:
        return []
    before, after = gap["nats_per_token_before"], gap["nats_per_token_after"]
    if after <= before:
        return []
    return [
        f"the distribution gap grew from {before:.2f} to {after:.2f} nats per token: rewritten answers surprise the "
        "seed model more than the original ones. Sampled answers do (lower generation.temperature or top_p), and those "
        "of a template that the model hardly understands (choose another, or show worked examples)"
    ]
