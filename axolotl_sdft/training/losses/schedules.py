"""How much a former prediction counts, and how far it is softened, token by token.

DynSDPB (arXiv 2411.16991) lets the influence of the distillation follow the *uncertainty* of the former prediction,
and its temperature follow the *discrimination*. The forms below are this project's own:

* uncertainty ``u = H(p) / ln V``: entropy relative to the uniform distribution; influence ``alpha * (1 - u)``
* discrimination ``d``: gap between the two largest probabilities; temperature
  ``temperature_min + (temperature - temperature_min) * (1 - d)``

An unsure teacher, as in the first iterations, so counts for little; a teacher that is certain is not flattened, while
one that wavers between tokens is softened, so that the ranking among them is learnt. With ``dynamic_alpha: false``
and ``dynamic_temperature: false`` both are constants, which is the static method, DLB (arXiv 2203.16172).

Shapes: N tokens, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from axolotl_sdft.config import DynSDPBConfig


@dataclass(frozen=True)
class Confidence:
    """How sure a prediction was of each token, at temperature 1; [N] each."""

    uncertainty: Tensor
    """Entropy as a share of the largest possible one, in [0, 1]. A vocabulary of one token leaves no doubt: 0."""

    discrimination: Tensor
    """Gap between the two largest probabilities, in [0, 1]. A vocabulary of one token has no rival: 1."""

    top: Tensor
    """The likeliest token."""


def confidence_of(log_probs_NV: Tensor) -> Confidence:
    """Return how sure each of these distributions is."""
    num_tokens, vocab_size = log_probs_NV.shape
    if vocab_size == 1:
        zeros_N = log_probs_NV.new_zeros(num_tokens)
        return Confidence(zeros_N, zeros_N + 1.0, zeros_N.long())
    # What is impossible adds nothing, but 0 * -inf is no number, so these are left out of the sum.
    entropy_N = -log_probs_NV.exp().mul_(log_probs_NV).nansum(-1)
    largest_N2, tokens_N2 = log_probs_NV.topk(2, dim=-1)
    probs_N2 = largest_N2.exp()
    # Rounding can push the entropy a little out of its range.
    uncertainty_N = (entropy_N / math.log(vocab_size)).clamp(0.0, 1.0)
    return Confidence(uncertainty_N, probs_N2[:, 0] - probs_N2[:, 1], tokens_N2[:, 0])


def influence(uncertainty_N: Tensor, config: DynSDPBConfig) -> Tensor:
    """Return alpha of each token, [N]."""
    if not config.dynamic_alpha:
        return torch.full_like(uncertainty_N, config.alpha)
    return config.alpha * (1.0 - uncertainty_N)


def temperature(discrimination_N: Tensor, config: DynSDPBConfig) -> Tensor:
    """Return the temperature of each token, [N]."""
    if not config.dynamic_temperature:
        return torch.full_like(discrimination_N, config.temperature)
    span = config.temperature - config.temperature_min
    return config.temperature_min + span * (1.0 - discrimination_N)
