"""The forward divergence over the whole vocabulary: what the default settings compute, so it is computed leanly.

With former logits ``t``, present logits ``s``, their maxima, and ``a = (t - max t) / tau``, ``b = (s - max s) / tau``:

    ``KL(p_t^tau || p_s^tau)  =  sum e^a (a - b) / sum e^a  -  ln sum e^a  +  ln sum e^b``

and its gradient with respect to ``s / tau`` is ``e^b / sum e^b - e^a / sum e^a``. That equals what
:mod:`axolotl_sdft.training.losses.divergences` gives for ``forward_kl`` (a test holds the two together), in fewer
passes over the logits: no normalised log-probabilities are written. The working memory is used again for each chunk,
since fresh memory of this size costs a CPU more than the arithmetic.

Shapes: C tokens of a chunk, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.training.losses.schedules import Confidence, influence, temperature


@dataclass(frozen=True)
class ChunkTerms:
    """What is known of each token of a chunk, [C]."""

    divergence: Tensor
    """In nats, at the temperature."""

    alpha: Tensor
    temperature: Tensor
    uncertainty: Tensor

    agreement: Tensor
    """1 where the likeliest token is the same before and now, else 0."""

    gradient: Tensor
    """Of ``alpha * temperature^2 * divergence`` with respect to the present logits, [C, V]; read it before the next
    chunk is computed."""


class FullVocabularyKL:
    """Computes chunk after chunk, the first of them the largest."""

    def __init__(self, config: DynSDPBConfig) -> None:
        self._config = config
        self._memory_3CV: Tensor | None = None

    def terms(self, student_CV: Tensor, teacher_CV: Tensor, labels_C: Tensor | None) -> ChunkTerms:
        """Return the terms of a chunk; neither of the logits is written to.

        Args:
            student_CV: Present logits, in full precision.
            teacher_CV: Former logits, over at least two tokens of a vocabulary.
            labels_C: The right tokens; only needed with ``teacher_correct_only``.
        """
        # Where both are impossible the difference of two infinities would be no number.
        lowest = torch.finfo(student_CV.dtype).min / 100  # so that it can be divided by the lowest temperature
        largest_C2, tokens_C2 = teacher_CV.topk(2, dim=-1)
        before_CV, weight_CV, now_CV = self._working_memory(student_CV)
        torch.sub(teacher_CV, largest_C2[:, :1], out=before_CV).clamp_min_(lowest)
        torch.exp(before_CV, out=weight_CV)

        confidence = _confidence(largest_C2, tokens_C2, before_CV, weight_CV, now_CV)
        alpha_C = influence(confidence.uncertainty, self._config)
        if labels_C is not None and self._config.teacher_correct_only:
            alpha_C = alpha_C * (confidence.top == labels_C)
        temperature_C = temperature(confidence.discrimination, self._config)
        temperature_C1 = temperature_C[:, None]

        torch.exp(before_CV.div_(temperature_C1), out=weight_CV)
        weight_total_C = weight_CV.sum(-1)
        torch.div(student_CV, temperature_C1, out=now_CV)
        now_largest_C, now_top_C = now_CV.max(-1)
        now_CV.sub_(now_largest_C[:, None]).clamp_min_(lowest)
        expected_C = before_CV.sub_(now_CV).mul_(weight_CV).sum(-1) / weight_total_C
        now_total_C = now_CV.exp_().sum(-1)
        # Rounding can put the divergence of nearly equal predictions a little below zero.
        divergence_C = (expected_C - weight_total_C.log() + now_total_C.log()).clamp_min_(0.0)

        scale_C = alpha_C * temperature_C
        gradient_CV = now_CV.mul_((scale_C / now_total_C)[:, None])
        gradient_CV.addcmul_(weight_CV, (scale_C / weight_total_C)[:, None], value=-1)
        agreement_C = (now_top_C == confidence.top).to(divergence_C.dtype)
        return ChunkTerms(divergence_C, alpha_C, temperature_C, confidence.uncertainty, agreement_C, gradient_CV)

    def _working_memory(self, logits_CV: Tensor) -> tuple[Tensor, ...]:
        if self._memory_3CV is None:
            # In one piece: a CPU's allocator gives a large piece back to the system, and hoards small ones.
            self._memory_3CV = logits_CV.new_empty((3, *logits_CV.shape))
        return self._memory_3CV[:, : len(logits_CV)].unbind()


def _confidence(
    largest_C2: Tensor, tokens_C2: Tensor, before_CV: Tensor, weight_CV: Tensor, scratch_CV: Tensor
) -> Confidence:
    """Return what :func:`~axolotl_sdft.training.losses.schedules.confidence_of` does, from ``a`` and ``e^a``."""
    total_C = weight_CV.sum(-1)
    entropy_C = total_C.log() - torch.mul(weight_CV, before_CV, out=scratch_CV).sum(-1) / total_C
    uncertainty_C = (entropy_C / math.log(weight_CV.shape[1])).clamp_(0.0, 1.0)
    return Confidence(uncertainty_C, weight_gap(largest_C2) / total_C, tokens_C2[:, 0])


def weight_gap(largest_C2: Tensor) -> Tensor:
    """Return by how much the likeliest token outweighs the next one, where the likeliest weighs 1."""
    return -(largest_C2[:, 1] - largest_C2[:, 0]).expm1()
