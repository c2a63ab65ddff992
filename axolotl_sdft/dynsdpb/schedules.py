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

import torch
from torch import Tensor

from axolotl_sdft.config import DynSDPBConfig


def uncertainty(log_probs_NV: Tensor) -> Tensor:
    """Return the entropy of each distribution as a share of the largest possible one, in [0, 1].

    A vocabulary of one token leaves nothing to be unsure of: 0.
    """
    num_tokens, vocab_size = log_probs_NV.shape
    if vocab_size == 1:
        return log_probs_NV.new_zeros(num_tokens)
    entropy_N = torch.special.entr(log_probs_NV.exp()).sum(-1)
    # Rounding can push the uniform distribution a little above its own maximum.
    return (entropy_N / math.log(vocab_size)).clamp(0.0, 1.0)


def discrimination(log_probs_NV: Tensor) -> Tensor:
    """Return the gap between the two largest probabilities of each distribution, in [0, 1].

    A vocabulary of one token has no rival: 1.
    """
    num_tokens, vocab_size = log_probs_NV.shape
    if vocab_size == 1:
        return log_probs_NV.new_ones(num_tokens)
    largest_N2 = log_probs_NV.topk(2, dim=-1).values.exp()
    return largest_N2[:, 0] - largest_N2[:, 1]


def influence_and_temperature(former_logits_NV: Tensor, config: DynSDPBConfig) -> tuple[Tensor, Tensor]:
    """Return alpha and temperature of each token, [N] each, from the former prediction at temperature 1."""
    num_tokens = former_logits_NV.shape[0]
    alpha_N = former_logits_NV.new_full((num_tokens,), config.alpha)
    temperature_N = former_logits_NV.new_full((num_tokens,), config.temperature)
    if not (config.dynamic_alpha or config.dynamic_temperature):
        return alpha_N, temperature_N
    log_probs_NV = former_logits_NV.log_softmax(-1)
    if config.dynamic_alpha:
        alpha_N = alpha_N * (1.0 - uncertainty(log_probs_NV))
    if config.dynamic_temperature:
        span = config.temperature - config.temperature_min
        temperature_N = config.temperature_min + span * (1.0 - discrimination(log_probs_NV))
    return alpha_N, temperature_N
