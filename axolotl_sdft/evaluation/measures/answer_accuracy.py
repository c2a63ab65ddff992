"""Lets a model answer held-out prompts greedily, and counts what it answers rightly by the checks of the dataset."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_sdft.config import ExactMatchConfig, TransformersGeneration
from axolotl_sdft.core.errors import ConfigError, SdftError
from axolotl_sdft.core.terminal import progress
from axolotl_sdft.distillation.checks import resolve_checks
from axolotl_sdft.distillation.checks.options import YAML_KEY
from axolotl_sdft.distillation.generation.selection import rejection_of
from axolotl_sdft.distillation.interfaces import AnswerCheck
from axolotl_sdft.evaluation.figures import Estimate
from axolotl_sdft.evaluation.measures.bootstrap import Resampler
from axolotl_sdft.inference.interfaces import Answer, FinishReason, Message, Prompt, Target
from axolotl_sdft.inference.local.backend import TransformersBackend
from axolotl_sdft.inference.local.sequence_cache import use_plain_attention
from axolotl_sdft.inference.local.sequences import ActiveSequence

LOG = logging.getLogger(__name__)


def greedy_answers(
    model: Any,
    tokenizer: Any,
    chats: Sequence[Sequence[Message]],
    max_new_tokens: int,
    description: str,
    template_arguments: Mapping[str, Any] | None = None,
) -> list[tuple[ActiveSequence, Answer]]:
    """Return the greedy answer to each chat, in order, with the token ids that it is made of.

    The tokenizer's chat template wraps each chat, and nothing else is added. A chat that leaves no room for an answer,
    or that does not fit into memory alone, gets an answer whose ``finish_reason`` is ``error``. The model is left as it
    was.

    Args:
        model: In evaluation mode.
        tokenizer: With a chat template.
        chats: Each ends with the user's message.
        max_new_tokens: Longest answer, in tokens.
        description: What the progress calls it.
        template_arguments: What the chat template is given besides, such as ``{"enable_thinking": False}``.

    Raises:
        ConfigError: The tokenizer has no chat template.
    """
    require_template(tokenizer)
    prompts = [Prompt((number, 0), tuple(chat)) for number, chat in enumerate(chats)]
    answers: dict[tuple[int, int], Answer] = {}
    config = TransformersGeneration(
        max_new_tokens=max_new_tokens, temperature=0.0, chat_template_kwargs=dict(template_arguments or {})
    )
    with (
        _answering(model, tokenizer, config) as backend,
        progress(description, len(prompts), "answers", LOG) as shown,
    ):
        for batch, written in backend.generate(backend.batches(prompts)):
            answers.update(zip((prompt.key for prompt in batch), written, strict=True))
            shown.advance(len(batch))
    return [(backend.rows[prompt.key], answers[prompt.key]) for prompt in prompts]


@dataclass(frozen=True)
class Written:
    """A greedy answer with the very tokens that it is made of, as it is kept in a file."""

    ids: list[int]
    """Tokens of the prompt, then of the answer."""

    num_new: int
    """How many of them are the answer's."""

    text: str
    finish_reason: FinishReason
    error: str | None = None
    """Why there is no answer."""

    @property
    def answer(self) -> Answer:
        """The answer as checks take it."""
        return Answer(self.text, self.finish_reason, self.num_new, error=self.error)


def written_answers(
    model: Any,
    tokenizer: Any,
    chats: Sequence[Sequence[Message]],
    max_new_tokens: int,
    description: str,
    template_arguments: Mapping[str, Any] | None = None,
) -> list[Written]:
    """Return the greedy answer to each chat, in order, as :func:`greedy_answers` makes it.

    Raises:
        ConfigError: The tokenizer has no chat template.
    """
    written = greedy_answers(model, tokenizer, chats, max_new_tokens, description, template_arguments)
    return [Written(row.ids, len(row.new_ids), answer.text, answer.finish_reason, row.error) for row, answer in written]


def sampled_answers(
    model: Any,
    tokenizer: Any,
    chats: Sequence[Sequence[Message]],
    config: ExactMatchConfig,
    template_arguments: Mapping[str, Any] | None = None,
) -> list[list[Answer]]:
    """Return ``config.num_answers`` answers to each chat, sampled at ``config.temperature`` from fixed random seeds.

    Raises:
        ConfigError: The tokenizer has no chat template.
    """
    require_template(tokenizer)
    settings = TransformersGeneration(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        chat_template_kwargs=dict(template_arguments or {}),
    )
    answers: list[list[Answer]] = [[] for _ in chats]
    with (
        _answering(model, tokenizer, settings) as backend,
        progress("sampled answers", len(chats) * config.num_answers, "answers", LOG) as shown,
    ):
        for attempt in range(config.num_answers):
            prompts = [Prompt((number, 0), tuple(chat), attempt) for number, chat in enumerate(chats)]
            for batch, written in backend.generate(backend.batches(prompts)):
                for prompt, answer in zip(batch, written, strict=True):
                    answers[prompt.key[0]].append(answer)
                shown.advance(len(batch))
    return answers


def require_template(tokenizer: Any) -> None:
    """Refuse a tokenizer that can't wrap a chat.

    Raises:
        ConfigError: It has no chat template.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            f"recovery_report: the tokenizer in {tokenizer.name_or_path} has no chat template, so its model can't be "
            "asked anything; name one with chat_template: chatml or the like, or add it to its tokenizer_config.json"
        )


class _LoadedBackend(TransformersBackend):
    """The embedded backend with a model that is loaded already. It remembers the token ids of its answers."""

    def __init__(self, model: Any, tokenizer: Any, config: TransformersGeneration) -> None:
        super().__init__(Path(tokenizer.name_or_path), config)
        self._loaded_model, self._tokenizer = model, tokenizer
        self.rows: dict[tuple[int, int], ActiveSequence] = {}

    def _answer(self, row: ActiveSequence) -> Answer:
        self.rows[row.prompt.key] = row
        return super()._answer(row)


@contextmanager
def _answering(model: Any, tokenizer: Any, config: TransformersGeneration) -> Iterator[_LoadedBackend]:
    attention = getattr(model.config, "_attn_implementation", None)
    backend = _LoadedBackend(model, tokenizer, config)
    try:
        yield backend
    finally:
        if getattr(model.config, "_attn_implementation", None) != attention:
            use_plain_attention(model)
        backend.close()


def exact_match(
    model: Any,
    tokenizer: Any,
    targets: Sequence[Target],
    config: ExactMatchConfig,
    resampler: Resampler,
    template_arguments: Mapping[str, Any] | None = None,
) -> tuple[Estimate, list[bool]]:
    """Return the share of the prompts that a model answers rightly, and of each whether it does.

    The model answers greedily, asked with the conversation of the target alone. An answer is right where all checks
    pass it; one that was cut off at ``max_new_tokens`` is wrong only where a check says so. ``num_samples`` does not
    count here: all targets are answered.

    Args:
        model: In evaluation mode; it is left as it was.
        tokenizer: Its chat template wraps the conversations. Given the seed model's for each model, all are asked the
            same.
        targets: The conversations with the right answers; at least one.
        config: The checks, and how long an answer may become.
        resampler: Makes the interval.
        template_arguments: What the chat template is given besides.

    Raises:
        ConfigError: The tokenizer has no chat template, or an option of a check is wrong.
        UnknownNameError: A check is not registered.
    """
    checks = right_answer_checks(config)
    chats = [target.context for target in targets]
    written = greedy_answers(model, tokenizer, chats, config.max_new_tokens, "exact match", template_arguments)
    passed = answered_rightly([answer for _, answer in written], targets, checks)
    return resampler.ratio(passed, [1] * len(passed)), passed


def answered_rightly(
    answers: Sequence[Answer], targets: Sequence[Target], checks: Sequence[tuple[str, AnswerCheck]]
) -> list[bool]:
    """Return of each answer whether all checks pass it; one that failed is wrong."""
    pairs = zip(answers, targets, strict=True)
    return [answer.error is None and rejection_of(answer, target, checks) is None for answer, target in pairs]


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
