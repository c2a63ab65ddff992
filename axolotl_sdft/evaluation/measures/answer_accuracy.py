"""Measures how many held-out prompts a model answers rightly, by the checks of the self-distilled dataset."""

from collections.abc import Mapping, Sequence
from typing import Any

from axolotl_sdft.config import ExactMatchConfig
from axolotl_sdft.core.errors import SdftError
from axolotl_sdft.distillation.checks import resolve_checks
from axolotl_sdft.distillation.checks.options import YAML_KEY
from axolotl_sdft.distillation.generation.selection import rejection_of
from axolotl_sdft.distillation.interfaces import AnswerCheck
from axolotl_sdft.evaluation.measures.bootstrap import Resampler
from axolotl_sdft.evaluation.metrics import Figure
from axolotl_sdft.inference.interfaces import Target


def exact_match(
    model: Any,
    tokenizer: Any,
    targets: Sequence[Target],
    config: ExactMatchConfig,
    resampler: Resampler,
    template_arguments: Mapping[str, Any] | None = None,
) -> tuple[Figure, list[bool]]:
    """Return the share of the prompts that a model answers rightly, and of each whether it does.

    The model answers greedily, asked with the conversation of the target alone. An answer is right where all checks
    pass it; one that was cut off at ``max_new_tokens`` is wrong only where a check says so. ``num_samples`` does not
    count here: all targets are answered.

    Args:
        model: In evaluation mode; it is left as it was.
        tokenizer: Its chat template wraps the conversations. Given the seed's for each model, all are asked the same.
        targets: The conversations with the right answers; at least one.
        config: The checks, and how long an answer may become.
        resampler: Makes the interval.
        template_arguments: What the chat template is given besides.

    Raises:
        ConfigError: The tokenizer has no chat template, or an option of a check is wrong.
        UnknownNameError: A check is not registered.
    """
    from axolotl_sdft.evaluation.measures.answering import greedy_answers

    checks = right_answer_checks(config)
    chats = [target.context for target in targets]
    written = greedy_answers(model, tokenizer, chats, config.max_new_tokens, "exact match", template_arguments)
    passed = [
        rejection_of(answer, target, checks) is None for (_, answer), target in zip(written, targets, strict=True)
    ]
    return resampler.ratio(passed, [1] * len(passed)), passed


def right_answer_checks(config: ExactMatchConfig) -> list[tuple[str, AnswerCheck]]:
    """Return names and functions of the checks, in order. Loads no model, so that a wrong name is refused early.

    Raises:
        UnknownNameError: A name is not registered; the message lists those that are.
        ConfigError: An option is unknown or not allowed.
        MissingExtraError: A check needs a package that is not installed.
    """
    try:
        return resolve_checks(config.checks)
    except SdftError as err:
        raise type(err)(str(err).replace(YAML_KEY, "recovery_report.exact_match.checks")) from err
