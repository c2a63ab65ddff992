"""The divergences of the present prediction ``p`` from the former one ``q``, over the vocabulary or over buckets of it.

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

import torch
from torch import Tensor

# Of what these are given, the former log-probabilities may be overwritten: memory is what limits the chunk size.


def _forward_kl(former_CB: Tensor, present_CB: Tensor) -> tuple[Tensor, Tensor]:
    prob_former_CB = former_CB.exp()
    divergence_C = former_CB.sub_(present_CB).mul_(prob_former_CB).sum(-1)
    return divergence_C, prob_former_CB.neg_()


def _reverse_kl(former_CB: Tensor, present_CB: Tensor) -> tuple[Tensor, Tensor]:
    slope_CB = former_CB.sub_(present_CB).neg_().mul_(present_CB.exp())
    return slope_CB.sum(-1), slope_CB


def _jsd(former_CB: Tensor, present_CB: Tensor) -> tuple[Tensor, Tensor]:
    mixture_CB = torch.logaddexp(former_CB, present_CB).sub_(math.log(2.0))
    slope_CB = present_CB.exp().mul_(present_CB - mixture_CB).mul_(0.5)
    prob_former_CB = former_CB.exp()
    former_C = former_CB.sub_(mixture_CB).mul_(prob_former_CB).sum(-1)
    return 0.5 * former_C + slope_CB.sum(-1), slope_CB


_DIVERGENCES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
}


def divergence_and_gradient(
    name: str, log_former_CB: Tensor, log_present_CV: Tensor, token_ids_CK: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the divergence of each token in nats, [C], and its gradient with respect to the scaled logits, [C, V].

    Both log-probabilities are overwritten.

    Args:
        name: One of the divergences above.
        log_former_CB: Log-probabilities of the former prediction, one for each bucket.
        log_present_CV: Those of the present prediction, one for each token of the vocabulary.
        token_ids_CK: The tokens with a bucket of their own; one last bucket holds the rest. None: each has its own.
    """
    # Where both are impossible the difference of two infinities would be no number.
    lowest = torch.finfo(log_present_CV.dtype).min / 4
    log_former_CB.clamp_min_(lowest)
    log_buckets_CB = _bucketed(log_present_CV, token_ids_CK).clamp_min_(lowest)
    divergence_C, slope_CB = _DIVERGENCES[name](log_former_CB, log_buckets_CB)
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
