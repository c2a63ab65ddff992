"""A smaller model as draft of the seed model in speculative decoding (arXiv 2211.17192; arXiv 2410.09982 for pruned
drafts).

The draft proposes ``k`` tokens, one forward pass each. The seed model checks all of them in one pass, keeps those up to
the first that it would have chosen otherwise, and adds one of its own. Greedy answers are those of the seed model
alone.

Shapes: T tokens, V vocabulary.
"""

import copy
import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from axolotl_sdft.config.evaluation import DraftingConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.core.terminal import progress
from axolotl_sdft.evaluation.figures import DraftFigures
from axolotl_sdft.evaluation.measures.likelihood import require_shared_vocabulary
from axolotl_sdft.evaluation.measures.speed import generate_greedily
from axolotl_sdft.inference.forwarding import input_device
from axolotl_sdft.inference.loading import context_length

LOG = logging.getLogger(__name__)

Loaded = tuple[Any, Any]
"""A model in evaluation mode and its tokenizer, as ``loading.load_model`` returns them."""

_WARM_UP_TOKENS = 8


def measure_drafting(
    seed: Loaded, draft: Loaded, prompts_ids: Sequence[Sequence[int]], config: DraftingConfig
) -> DraftFigures:
    """Return how the draft serves the seed model, answering each prompt greedily with and without it, in turn.

    ``acceptance`` is the share of all proposed tokens, those after a rejected one included: as the draft's cost, so its
    use. ``tokens_per_second_alone`` is the median over the prompts; with the draft it is that times the median of each
    prompt's own ratio, so that a machine that is slow for a while changes neither much.

    Args:
        seed: The model that answers.
        draft: The model that proposes.
        prompts_ids: Prompts, encoded by the seed model's tokenizer and chat template, at least one.
        config: The ``recovery_report.drafting`` block. ``num_prompts`` is up to the caller.

    Raises:
        CheckpointError: The tokenizers differ.
        ConfigError: This kind of model can't draft, or be drafted for, or a prompt is too long.
    """
    check_draft(seed, draft)
    _check_lengths([seed[0], draft[0]], prompts_ids, config)
    runs = []
    with (
        _prepared(seed[0], draft[0], config.num_draft_tokens),
        progress("Drafting", len(prompts_ids), "prompts", LOG) as shown,
    ):
        _both_ways(seed[0], draft[0], prompts_ids[0], min(_WARM_UP_TOKENS, config.max_new_tokens), draft_first=True)
        for number, prompt_ids in enumerate(prompts_ids):
            runs.append(_both_ways(seed[0], draft[0], prompt_ids, config.max_new_tokens, draft_first=number % 2 == 1))
            shown.advance()
    return _figures(runs)


def check_draft(seed: Loaded, draft: Loaded) -> None:
    """Refuse a draft that can't propose tokens to the seed model. Rows that only pad an embedding may differ in number.

    Raises:
        CheckpointError: The tokenizers differ.
        ConfigError: This kind of model can't draft, or be drafted for.
    """
    for role, (model, _) in (("the seed model", seed), ("the draft", draft)):
        if getattr(model, "_is_stateful", False):
            raise ConfigError(
                f"recovery_report.drafting is set, but {role} ({type(model).__name__}) keeps a state that can't go "
                "back to a rejected token; remove drafting"
            )
    require_shared_vocabulary(draft[1], seed[1], "the draft")


def expected_speedup(acceptance: float, num_draft_tokens: int, cost_ratio: float) -> float:
    """Return how many times as fast the seed model answers with a draft as alone (arXiv 2211.17192, theorem 3.8).

    Each pass of the seed model yields ``(1 - a^(k+1)) / (1 - a)`` tokens (equation 1 there), and costs as much as ``1 +
    k c`` passes of the seed model alone. The formula takes checking ``k + 1`` tokens to cost as much as making one.
    This holds where reading the weights takes the time, as on a GPU with few sequences; on a CPU it is optimistic.

    Args:
        acceptance: ``a``, the chance that a token is accepted where all before it were. The share of all proposed
            tokens, ``DraftFigures.acceptance``, is lower: it counts those after a rejected one, too.
        num_draft_tokens: ``k``, the tokens that the draft proposes at a time.
        cost_ratio: ``c``, the time of the draft's forward pass divided by that of the seed model's.

    Raises:
        ValueError: ``acceptance`` is not in [0, 1], or ``cost_ratio`` or ``num_draft_tokens`` is negative.
    """
    if not 0 <= acceptance <= 1 or cost_ratio < 0 or num_draft_tokens < 0:
        raise ValueError(f"no speed-up follows from {acceptance=}, {num_draft_tokens=}, {cost_ratio=}")
    tokens_per_step = sum(acceptance**accepted for accepted in range(num_draft_tokens + 1))
    return tokens_per_step / (1 + num_draft_tokens * cost_ratio)


def highest_cost_ratio(tokens_per_step: float, num_draft_tokens: int) -> float:
    """Return the cost of a draft's pass, as a share of the seed model's, above which the draft slows the seed model
    down.

    ``tokens_per_step`` tokens for ``1 + k c`` passes break even at ``c = (tokens_per_step - 1) / k``: about the share
    of the proposed tokens that is accepted. As optimistic as :func:`expected_speedup`.
    """
    return (tokens_per_step - 1) / num_draft_tokens


@dataclass
class _Counts:
    """What happened in one drafted answer."""

    steps: int = 0
    proposed: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class _Run:
    """One prompt, answered both ways."""

    counts: _Counts
    new_tokens: int
    seconds: float
    new_tokens_alone: int
    seconds_alone: float
    is_same: bool

    @property
    def rate_alone(self) -> float:
        return self.new_tokens_alone / self.seconds_alone

    @property
    def ratio(self) -> float:
        return self.new_tokens / self.seconds / self.rate_alone


class _Observer(BaseStreamer):
    """Counts proposed and accepted tokens while open: sees what the draft generates, and what the seed model makes of
    it.

    ``generate`` hands the prompt to a streamer first, then the tokens of each step of the seed model.
    """

    def __init__(self, draft: Any) -> None:
        self.counts = _Counts()
        self._generate = draft.generate
        self._proposal: list[int] = []
        self._is_prompt = True

    def propose(self, **settings: Any) -> Any:
        """Let the draft generate, and remember what."""
        output = self._generate(**settings)
        self._proposal = output.sequences[0, settings["input_ids"].shape[1] :].tolist()
        return output

    def put(self, value: Tensor) -> None:
        """Take in a step of the seed model."""
        if self._is_prompt:
            self._is_prompt = False
            return
        matches = [kept == proposed for kept, proposed in zip(value.flatten().tolist(), self._proposal, strict=False)]
        self.counts.steps += 1
        self.counts.proposed += len(self._proposal)
        self.counts.accepted += next((place for place, match in enumerate(matches) if not match), len(matches))
        self._proposal = []  # at the very end of an answer the seed model takes a step without one

    def end(self) -> None:
        """Nothing is left to do at the end of an answer."""


class _CommonVocabulary(LogitsProcessor):
    """Forbids numbers that only one of two models has: they pad its embedding."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self._size :] = float("-inf")
        return scores


@contextmanager
def _prepared(seed: Any, draft: Any, num_draft_tokens: int) -> Iterator[None]:
    """Let the draft propose so many tokens each time while open, whatever it has been told before."""
    kept = draft.generation_config
    text_config = draft.config.get_text_config()
    kept_size = text_config.vocab_size
    draft.generation_config = copy.deepcopy(kept)
    draft.generation_config.num_assistant_tokens = num_draft_tokens
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    # generate takes another size for another tokenizer; that it is the same one has been checked
    text_config.vocab_size = seed.config.get_text_config().vocab_size
    try:
        yield
    finally:
        draft.generation_config = kept
        text_config.vocab_size = kept_size


def _both_ways(seed: Any, draft: Any, prompt_ids: Sequence[int], max_new_tokens: int, draft_first: bool) -> _Run:
    """Answer a prompt with and without the draft. Which comes first must not matter, so callers let it alternate."""
    prompt_1T = torch.tensor([list(prompt_ids)], device=input_device(seed))
    observer = _Observer(draft)
    processors = LogitsProcessorList([_CommonVocabulary(min(_num_logits(seed), _num_logits(draft)))])

    def answer(is_drafted: bool) -> tuple[list[int], float]:
        extra = {"assistant_model": draft, "streamer": observer} if is_drafted else {}
        started = time.perf_counter()
        answered_1T = generate_greedily(seed, prompt_1T, max_new_tokens, logits_processor=processors, **extra)
        new_ids = answered_1T[0, prompt_1T.shape[1] :].tolist()  # waits for the device
        return new_ids, time.perf_counter() - started

    draft.generate = observer.propose
    try:
        answers = {is_drafted: answer(is_drafted) for is_drafted in (draft_first, not draft_first)}
    finally:
        del draft.generate
    (drafted, seconds), (alone, seconds_alone) = answers[True], answers[False]
    return _Run(observer.counts, len(drafted), seconds, len(alone), seconds_alone, drafted == alone)


def _num_logits(model: Any) -> int:
    return int(model.get_output_embeddings().weight.shape[0])


def _check_lengths(models: Sequence[Any], prompts_ids: Sequence[Sequence[int]], config: DraftingConfig) -> None:
    num_tokens = max(map(len, prompts_ids)) + config.max_new_tokens
    longest = min((length for model in models if (length := context_length(model)) is not None), default=num_tokens)
    if num_tokens > longest:
        raise ConfigError(
            f"recovery_report.drafting.max_new_tokens is {config.max_new_tokens}, which with the longest prompt makes "
            f"{num_tokens} tokens, but seed model and draft take at most {longest}; lower it, or shorten the prompts"
        )


def _figures(runs: Sequence[_Run]) -> DraftFigures:
    proposed = sum(run.counts.proposed for run in runs)
    alone = statistics.median(run.rate_alone for run in runs)
    return DraftFigures(
        acceptance=sum(run.counts.accepted for run in runs) / proposed if proposed else 0.0,
        tokens_per_step=sum(run.new_tokens for run in runs) / sum(run.counts.steps for run in runs),
        tokens_per_second=alone * statistics.median(run.ratio for run in runs),
        tokens_per_second_alone=alone,
        same_answers=statistics.fmean(run.is_same for run in runs),
        prompts=len(runs),
    )
