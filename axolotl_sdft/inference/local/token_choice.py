"""Chooses the next token of each row, in a way that does not depend on which other rows are beside it.

Shapes: B rows, V vocabulary, K likeliest tokens of it, T tokens of the longest row.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from axolotl_sdft.inference.local.sequences import Row

Choice: TypeAlias = tuple[int, float]
"""A token and its log-probability under the model, in nats; 0 where nothing is sampled."""

_LIKELIEST = 1024  # tokens that nearly always hold top_p of the probability, so that the vocabulary need not be sorted


class TokenChooser:
    """Takes the likeliest token of a row, or samples one where its temperature is above 0.

    Args:
        top_p: Share of the probability that is sampled from, the likeliest tokens first.
        repetition_penalty: What the score of a token that is in the row already is divided by, or multiplied where it
            is negative; 1 leaves it.
    """

    def __init__(self, top_p: float = 1.0, repetition_penalty: float = 1.0) -> None:
        self._top_p, self._repetition_penalty = top_p, repetition_penalty

    def __call__(self, logits_BV: Tensor, rows: Sequence[Row]) -> list[Choice]:
        """Return one choice per row. Each sampled row draws one number from its own source of chance."""
        scores_BV = logits_BV
        if self._repetition_penalty != 1.0:
            scores_BV = _penalized(logits_BV.float(), rows, self._repetition_penalty)
        chosen_B = scores_BV.max(-1).indices  # several times faster than argmax in bfloat16 on a CPU
        if not any(row.temperature > 0 for row in rows):
            return [(token, 0.0) for token in chosen_B.tolist()]
        sampled_B = self._sampled(scores_BV.float(), rows)
        is_sampled_B = torch.tensor([row.temperature > 0 for row in rows], device=chosen_B.device)
        chosen_B = torch.where(is_sampled_B, sampled_B, chosen_B)
        raw_BV = logits_BV.float()
        logprob_B = raw_BV.gather(1, chosen_B[:, None])[:, 0] - raw_BV.logsumexp(-1)
        return list(zip(chosen_B.tolist(), torch.where(is_sampled_B, logprob_B, 0.0).tolist(), strict=True))

    def _sampled(self, scores_BV: Tensor, rows: Sequence[Row]) -> Tensor:
        temperature_B = torch.tensor([row.temperature or 1.0 for row in rows], device=scores_BV.device)
        # In (0, 1]: a token of probability 0 ends no interval of this kind, so it is never drawn.
        drawn_B = torch.tensor(
            [1.0 - row.random.random() if row.random else 1.0 for row in rows], dtype=torch.float64
        ).to(scores_BV.device, _cumulating_dtype(scores_BV))
        probability_BV = (scores_BV / temperature_B[:, None]).softmax(-1)
        if self._top_p == 1.0:
            return _inverse_distribution(probability_BV, drawn_B)
        likeliest_BK, token_BK = _nucleus(probability_BV, self._top_p)
        return token_BK.gather(1, _inverse_distribution(likeliest_BK, drawn_B)[:, None])[:, 0]


def _nucleus(probability_BV: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return the likeliest tokens' probabilities, 0 for those beyond ``top_p``, and the tokens, both [B, K]."""
    num_tokens = min(_LIKELIEST, probability_BV.shape[1])
    value_BK, token_BK = probability_BV.topk(num_tokens)
    if bool((value_BK.sum(-1) < top_p).any()):
        value_BK, token_BK = probability_BV.sort(descending=True)
    mass_before_BK = value_BK.cumsum(-1) - value_BK
    return value_BK.masked_fill(mass_before_BK >= top_p, 0.0), token_BK


def _inverse_distribution(weight_BK: Tensor, drawn_B: Tensor) -> Tensor:
    """Return the place, [B], where the cumulated weights first reach the share of their sum that was drawn."""
    cumulated_BK = weight_BK.cumsum(-1, dtype=_cumulating_dtype(weight_BK))
    return torch.searchsorted(cumulated_BK, (drawn_B * cumulated_BK[:, -1])[:, None])[:, 0]


def _cumulating_dtype(values: Tensor) -> torch.dtype:
    return torch.float32 if values.device.type == "mps" else torch.float64  # Apple's GPUs lack the latter


def _penalized(scores_BV: Tensor, rows: Sequence[Row], penalty: float) -> Tensor:
    longest = max(len(row.ids) for row in rows)
    # Filled up with a token that the row has anyway.
    seen_BT = torch.tensor([row.ids + row.ids[-1:] * (longest - len(row.ids)) for row in rows], device=scores_BV.device)
    seen_score_BT = scores_BV.gather(1, seen_BT)
    lowered_BT = torch.where(seen_score_BT < 0, seen_score_BT * penalty, seen_score_BT / penalty)
    return scores_BV.scatter(1, seen_BT, lowered_BT)
