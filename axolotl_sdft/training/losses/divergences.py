"""The divergences of a student from a teacher, how much each token counts, and how far its teacher is softened.

DynSDPB (arXiv 2411.16991) lets the influence of the distillation follow the *uncertainty* of the previous prediction,
and its temperature follow the *discrimination*. The forms below are this project's own:

* uncertainty ``u = 1 - e^-H(p)``, where ``e^H`` is the number of tokens that the prediction wavers between; influence
  ``alpha * (1 - u)``, whatever the size of the vocabulary
* discrimination ``d``: gap between the two largest probabilities; temperature
  ``temperature_min + (temperature - temperature_min) * (1 - d)``

An uncertain teacher, as in the first iterations, therefore gets little weight; a certain one is not flattened, while
one that wavers between tokens is softened, so that the ranking among them is learnt. With ``dynamic_alpha: false``
and ``dynamic_temperature: false`` both are constants, which is the static method, DLB (arXiv 2203.16172).

Shapes: N tokens, V vocabulary.

==============  ======================================================================
``forward_kl``  ``KL(q || p) = sum q (ln q - ln p)``
``reverse_kl``  ``KL(p || q) = sum p (ln p - ln q)``
``jsd``         ``1/2 KL(q || m) + 1/2 KL(p || m)`` with ``m = (p + q) / 2``, at most ln 2
==============  ======================================================================

Each is ``D`` with its slope ``w_b = dD / d ln p_b``. For ``p = softmax(z)``, and a bucket ``b(v)`` that holds token v:

    ``dD / dz_v  =  w_b(v) * p_v / p_b(v)  -  p_v * sum of w``

Where every token is a bucket of its own that is ``w_v - p_v * sum of w``; for the forward divergence, ``p - q``.

Shapes: C tokens, B buckets, V vocabulary, K tokens with a bucket of their own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from axolotl_sdft.config import DynSDPBConfig


@dataclass(frozen=True)
class Confidence:
    """How sure a prediction was of each token, at temperature 1; [N] each."""

    uncertainty: Tensor
    """``1 - e^-H`` of the entropy H in nats, in [0, 1): 0 where it is certain, 0.5 between two equal tokens."""

    discrimination: Tensor
    """Gap between the two largest probabilities, in [0, 1]. A vocabulary of one token has no rival: 1."""

    top: Tensor
    """The most likely token."""


def confidence_of(log_probs_NV: Tensor) -> Confidence:
    """Return how sure each of these distributions is."""
    num_tokens, vocab_size = log_probs_NV.shape
    if vocab_size == 1:
        zeros_N = log_probs_NV.new_zeros(num_tokens)
        return Confidence(zeros_N, zeros_N + 1.0, zeros_N.long())
    # What is impossible adds nothing, but 0 * -inf is not a number, so these are left out of the sum.
    entropy_N = -log_probs_NV.exp().mul_(log_probs_NV).nansum(-1)
    largest_N2, tokens_N2 = log_probs_NV.topk(2, dim=-1)
    probs_N2 = largest_N2.exp()
    uncertainty_N = uncertainty_of(entropy_N)
    return Confidence(uncertainty_N, probs_N2[:, 0] - probs_N2[:, 1], tokens_N2[:, 0])


def uncertainty_of(entropy_N: Tensor) -> Tensor:
    """Return ``1 - e^-H`` of entropies in nats, [N]. Rounding can push an entropy a little below 0."""
    return -entropy_N.clamp(min=0.0).neg().expm1()


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


# Of what these are given, the previous log-probabilities may be overwritten: memory is what limits the chunk size.


def _forward_kl(previous_CB: Tensor, present_CB: Tensor) -> tuple[Tensor, Tensor]:
    prob_previous_CB = previous_CB.exp()
    divergence_C = previous_CB.sub_(present_CB).mul_(prob_previous_CB).sum(-1)
    return divergence_C, prob_previous_CB.neg_()


def _reverse_kl(previous_CB: Tensor, present_CB: Tensor) -> tuple[Tensor, Tensor]:
    slope_CB = previous_CB.sub_(present_CB).neg_().mul_(present_CB.exp())
    return slope_CB.sum(-1), slope_CB


def _jsd(previous_CB: Tensor, present_CB: Tensor) -> tuple[Tensor, Tensor]:
    mixture_CB = torch.logaddexp(previous_CB, present_CB).sub_(math.log(2.0))
    slope_CB = present_CB.exp().mul_(present_CB - mixture_CB).mul_(0.5)
    prob_previous_CB = previous_CB.exp()
    previous_C = previous_CB.sub_(mixture_CB).mul_(prob_previous_CB).sum(-1)
    return 0.5 * previous_C + slope_CB.sum(-1), slope_CB


_DIVERGENCES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
}


def divergence_and_gradient(
    name: str, log_previous_CB: Tensor, log_present_CV: Tensor, token_ids_CK: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the divergence of each token in nats, [C], and its gradient with respect to the scaled logits, [C, V].

    Both log-probabilities are overwritten.

    Args:
        name: One of the divergences above.
        log_previous_CB: Log-probabilities of the previous prediction, one for each bucket.
        log_present_CV: Those of the student, one for each token of the vocabulary.
        token_ids_CK: The tokens with a bucket of their own; one last bucket holds the rest. None: each has its own.
    """
    # Where both are impossible the difference of two infinities would not be a number.
    lowest = torch.finfo(log_present_CV.dtype).min / 4
    log_previous_CB.clamp_min_(lowest)
    log_buckets_CB = _bucketed(log_present_CV, token_ids_CK).clamp_min_(lowest)
    divergence_C, slope_CB = _DIVERGENCES[name](log_previous_CB, log_buckets_CB)
    total_C1 = slope_CB.sum(-1, keepdim=True)
    if token_ids_CK is not None:
        tail_CV = slope_CB[:, -1:] * (log_present_CV - log_buckets_CB[:, -1:]).exp()
        slope_CB = tail_CV.scatter(1, token_ids_CK, slope_CB[:, :-1])
    # Rounding can put the divergence of nearly equal predictions a little below zero.
    return divergence_C.clamp_min(0.0), slope_CB.sub_(log_present_CV.exp_().mul_(total_C1))


def _bucketed(log_probs_CV: Tensor, token_ids_CK: Tensor | None) -> Tensor:
    if token_ids_CK is None:
        return log_probs_CV
    return torch.cat([log_probs_CV.gather(1, token_ids_CK), tail_log_prob(log_probs_CV, token_ids_CK)], dim=1)


def tail_log_prob(log_probs_CV: Tensor, token_ids_CK: Tensor) -> Tensor:
    """Return the log-probability of all tokens but these, [C, 1]; -inf where there are none.

    Summed up from below: 1 minus the others would be mere rounding where they hold nearly everything.
    """
    return log_probs_CV.scatter(1, token_ids_CK, -math.inf).logsumexp(-1, keepdim=True)
