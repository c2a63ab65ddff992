"""The rows that the embedded model writes on, and the choice of their next tokens.

Shapes: B rows, V vocabulary, K most likely tokens of it, T tokens of the longest row.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

import torch
from torch import Tensor

from axolotl_sdft.config import GenerationConfig
from axolotl_sdft.inference.interfaces import Prompt, attempt_temperature, sampling_seed


@dataclass(eq=False)
class ActiveSequence:
    """A prompt and what has been written after it so far."""

    prompt: Prompt
    ids: list[int]
    """Tokens of the prompt, then of the answer."""

    num_prompt: int
    most_ids: int
    """Prompt and answer together are cut off at this many tokens."""

    temperature: float = 0.0
    random: Random | None = None
    """This row's own source of chance, which no other row draws from; needed where ``temperature`` is above 0."""

    total_logprob: float = 0.0
    """Of the answer's tokens, in nats, the end of the turn among them; only where ``temperature`` is above 0."""

    is_done: bool = False
    error: str | None = None
    is_final: bool = False
    """Whether the row would fail in the same way again."""

    @property
    def new_ids(self) -> list[int]:
        """The answer so far."""
        return self.ids[self.num_prompt :]

    @property
    def mean_logprob(self) -> float | None:
        """Mean log-probability of the answer's tokens; None where nothing was sampled."""
        num_new = len(self.ids) - self.num_prompt
        return self.total_logprob / num_new if self.temperature > 0 and num_new else None

    def append(self, token: int, logprob: float, ends: Collection[int]) -> None:
        """Take the next token in; a row that is done stays as it is."""
        if self.is_done:
            return
        self.ids.append(token)
        self.total_logprob += logprob
        self.is_done = token in ends or len(self.ids) >= self.most_ids

    def fail(self, reason: str, *, is_final: bool = False) -> None:
        """Give this row up; ``is_final`` says that it would fail in the same way again."""
        self.error, self.is_done, self.is_final = reason, True, is_final


def new_sequence(
    prompt: Prompt, ids: list[int], config: GenerationConfig, context_length: int | None
) -> ActiveSequence:
    """Return the row of a prompt, with nothing written yet; one that leaves no room for an answer has failed already.

    Args:
        prompt: Its key and attempt decide how the answer is sampled.
        ids: The tokens of the prompt.
        config: How answers are sampled.
        context_length: Most tokens that the model takes; None where it has no limit.
    """
    temperature = attempt_temperature(config.temperature, prompt.attempt)
    random = Random(sampling_seed(config.seed, prompt.messages, prompt.attempt)) if temperature > 0 else None
    wanted = len(ids) + config.max_new_tokens
    most_ids = wanted if context_length is None else min(wanted, context_length)
    row = ActiveSequence(prompt, list(ids), len(ids), most_ids, temperature, random)
    if context_length is not None and len(ids) >= context_length:
        row.fail(f"the prompt has {len(ids)} tokens, of {context_length} that the model takes", is_final=True)
    return row


Choice: TypeAlias = tuple[int, float]
"""A token and its log-probability under the model, in nats; 0 where nothing is sampled."""

NOT_FINITE = (
    "the model predicts no numbers (NaN): its weights are broken, or overflow in their dtype; try dtype: bfloat16 or "
    "float32"
)

_MOST_LIKELY = (
    1024  # tokens that nearly always hold top_p of the probability, so that the vocabulary need not be sorted
)


class TokenChooser:
    """Takes the most likely token of a row, or samples one where its temperature is above 0.

    Args:
        top_p: Share of the probability that is sampled from, the most likely tokens first.
        repetition_penalty: What the score of a token that is in the row already is divided by, or multiplied where it
            is negative; 1 leaves it.
        top_k: Sampled from are so many most likely tokens, of whose probability ``top_p`` is a share; None: from all.
    """

    def __init__(self, top_p: float = 1.0, repetition_penalty: float = 1.0, *, top_k: int | None = None) -> None:
        self._top_p, self._repetition_penalty, self._top_k = top_p, repetition_penalty, top_k

    def __call__(self, logits_BV: Tensor, rows: Sequence[ActiveSequence]) -> list[Choice]:
        """Return one choice per row. Each sampled row draws one number from its own source of chance.

        A row whose prediction is not a number fails.
        """
        scores_BV = logits_BV
        if self._repetition_penalty != 1.0:
            scores_BV = _penalized(logits_BV.float(), rows, self._repetition_penalty)
        highest_B, chosen_B = scores_BV.max(-1)  # several times faster than argmax in bfloat16 on a CPU
        if not bool(highest_B.isfinite().all()):
            for row, is_finite in zip(rows, highest_B.isfinite().tolist(), strict=True):
                if not is_finite and not row.is_done:
                    row.fail(NOT_FINITE)
        if not any(row.temperature > 0 for row in rows):
            return [(token, 0.0) for token in chosen_B.tolist()]
        sampled_B = self._sampled(scores_BV.float(), rows)
        is_sampled_B = torch.tensor([row.temperature > 0 for row in rows], device=chosen_B.device)
        chosen_B = torch.where(is_sampled_B, sampled_B, chosen_B)
        raw_BV = logits_BV.float()
        logprob_B = raw_BV.gather(1, chosen_B[:, None])[:, 0] - raw_BV.logsumexp(-1)
        return list(zip(chosen_B.tolist(), torch.where(is_sampled_B, logprob_B, 0.0).tolist(), strict=True))

    def _sampled(self, scores_BV: Tensor, rows: Sequence[ActiveSequence]) -> Tensor:
        temperature_B = torch.tensor([row.temperature or 1.0 for row in rows], device=scores_BV.device)
        # In (0, 1]: a token of probability 0 ends no interval of this kind, so it is never drawn.
        drawn_B = torch.tensor(
            [1.0 - row.random.random() if row.random else 1.0 for row in rows], dtype=torch.float64
        ).to(scores_BV.device, _cumulating_dtype(scores_BV))
        probability_BV = (scores_BV / temperature_B[:, None]).softmax(-1)
        if self._top_p == 1.0 and self._top_k is None:
            return _inverse_distribution(probability_BV, drawn_B)
        nucleus_BK, token_BK = _nucleus(probability_BV, self._top_p, self._top_k)
        return token_BK.gather(1, _inverse_distribution(nucleus_BK, drawn_B)[:, None])[:, 0]


def _nucleus(probability_BV: Tensor, top_p: float, top_k: int | None) -> tuple[Tensor, Tensor]:
    """Return the most likely tokens' probabilities, 0 for those beyond ``top_p``, and the tokens, both [B, K]."""
    value_BK, token_BK = probability_BV.topk(min(top_k or _MOST_LIKELY, probability_BV.shape[1]))
    if top_k is not None:
        value_BK = value_BK / value_BK.sum(-1, keepdim=True)
    elif bool((value_BK.sum(-1) < top_p).any()):
        value_BK, token_BK = probability_BV.sort(descending=True)
    mass_before_BK = value_BK.cumsum(-1) - value_BK
    return value_BK.masked_fill(mass_before_BK >= top_p, 0.0), token_BK


def _inverse_distribution(weight_BK: Tensor, drawn_B: Tensor) -> Tensor:
    """Return the place, [B], where the cumulated weights first reach the share of their sum that was drawn."""
    cumulated_BK = weight_BK.cumsum(-1, dtype=_cumulating_dtype(weight_BK))
    place_B = torch.searchsorted(cumulated_BK, (drawn_B * cumulated_BK[:, -1])[:, None])[:, 0]
    return place_B.clamp(max=weight_BK.shape[1] - 1)  # beyond the last lies what is not a number


def _cumulating_dtype(values: Tensor) -> torch.dtype:
    return torch.float32 if values.device.type == "mps" else torch.float64  # Apple's GPUs lack the latter


def _penalized(scores_BV: Tensor, rows: Sequence[ActiveSequence], penalty: float) -> Tensor:
    longest = max(len(row.ids) for row in rows)
    # Filled up with a token that the row has anyway.
    seen_BT = torch.tensor([row.ids + row.ids[-1:] * (longest - len(row.ids)) for row in rows], device=scores_BV.device)
    seen_score_BT = scores_BV.gather(1, seen_BT)
    lowered_BT = torch.where(seen_score_BT < 0, seen_score_BT * penalty, seen_score_BT / penalty)
    return scores_BV.scatter(1, seen_BT, lowered_BT)
