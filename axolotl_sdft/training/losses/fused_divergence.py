"""A chunk of tokens of a distillation term, with its gradient, and the lean form of the forward divergence.

With teacher logits ``t``, student logits ``s``, ``a = (t - max t) / tau`` and ``b = (s - max s) / tau``:

    ``KL(p_t^tau || p_s^tau)  =  sum e^a (a - b) / sum e^a  -  ln sum e^a  +  ln sum e^b``

and its gradient with respect to ``s / tau`` is ``e^b / sum e^b - e^a / sum e^a``. That equals what
:mod:`axolotl_sdft.training.losses.divergences` gives for ``forward_kl`` (a test holds the two together), in fewer
passes over the logits: no normalised log-probabilities are written. The working memory is used again for each chunk,
since fresh memory of this size costs a CPU more than the arithmetic.

Shapes: C tokens of a chunk, V vocabulary.

Shapes: N tokens, C tokens of a chunk, R rows of the batch, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.training.losses.divergences import (
    Confidence,
    divergence_and_gradient,
    influence,
    temperature,
    uncertainty_of,
)
from axolotl_sdft.training.teachers.previous_prediction import TeacherChunk, TeacherPrediction, identity


@dataclass(frozen=True)
class ChunkTerms:
    """What is known of each token of a chunk, [C]."""

    divergence: Tensor
    """In nats, at the temperature."""

    alpha: Tensor
    temperature: Tensor
    uncertainty: Tensor

    agreement: Tensor
    """1 where the most likely token is the same before and now, else 0."""

    gradient: Tensor
    """Of ``alpha * temperature^2 * divergence`` with respect to the student logits, [C, V]; read it before the next
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
            teacher_CV: Previous logits, over at least two tokens of a vocabulary.
            labels_C: The right tokens; only needed with ``teacher_correct_only``.
        """
        # Where both are impossible the difference of two infinities would not be a number.
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
    """Return what :func:`~axolotl_sdft.training.losses.divergences.confidence_of` does, from ``a`` and ``e^a``."""
    total_C = weight_CV.sum(-1)
    entropy_C = total_C.log() - torch.mul(weight_CV, before_CV, out=scratch_CV).sum(-1) / total_C
    return Confidence(uncertainty_of(entropy_C), weight_gap(largest_C2) / total_C, tokens_C2[:, 0])


def weight_gap(largest_C2: Tensor) -> Tensor:
    """Return by how much the most likely token outweighs the next one, where the most likely one weighs 1."""
    return -(largest_C2[:, 1] - largest_C2[:, 0]).expm1()


class ChunkAccumulator:
    """The sums over all chunks so far, and how one is computed.

    Args:
        logit_transform: Makes logits of what the output head gives.
        config: The settings.
        labels_N: The right tokens; only needed with ``teacher_correct_only``.
        teacher: The prediction that is distilled.
        like: Tells the device, and whether to compute in double precision.
    """

    def __init__(
        self,
        logit_transform: Callable[[Tensor], Tensor],
        config: DynSDPBConfig,
        labels_N: Tensor | None,
        teacher: TeacherPrediction,
        like: Tensor,
    ) -> None:
        self._logit_transform, self._config, self._labels_N, self._teacher = (
            logit_transform,
            config,
            labels_N,
            teacher,
        )
        self._precise = torch.float64 if like.dtype == torch.float64 or teacher.is_double else torch.float32
        self._device = like.device
        self._lean = FullVocabularyKL(config) if config.divergence == "forward_kl" else None
        self._gathered_CV: Tensor | None = None
        self.sums = torch.zeros(6, dtype=self._precise, device=like.device)
        """Of the weighted divergence, the divergence, alpha, the temperature, the uncertainty and the agreement."""

    def gathered(self, flat_RV: Tensor, rows_C: Tensor) -> Tensor:
        """Return some rows, in memory that the next call uses again."""
        if self._gathered_CV is None:
            self._gathered_CV = flat_RV.new_empty((len(rows_C), flat_RV.shape[1]))
        return torch.index_select(flat_RV, 0, rows_C, out=self._gathered_CV[: len(rows_C)])

    def add(self, raw_CV: Tensor, part: slice) -> Tensor:
        """Add a chunk, and return its gradient with respect to ``raw_CV``, in memory that the next chunk uses again.

        Args:
            raw_CV: What the output head gave.
            part: Which tokens it is of.
        """
        raw_CV = raw_CV.to(self._precise)
        if self._logit_transform is identity:
            return self._added(raw_CV, part)
        with torch.enable_grad():
            raw_CV = raw_CV.detach().requires_grad_()
            logits_CV = self._logit_transform(raw_CV)
        (gradient_CV,) = torch.autograd.grad(logits_CV, raw_CV, self._added(logits_CV.detach(), part))
        return gradient_CV

    def _added(self, student_CV: Tensor, part: slice) -> Tensor:
        terms = self._terms(student_CV, part)
        weighted_C = terms.alpha * terms.temperature.square() * terms.divergence
        figures = (terms.divergence, terms.alpha, terms.temperature, terms.uncertainty, terms.agreement)
        self.sums += torch.stack([figure_C.sum() for figure_C in (weighted_C, *figures)])
        return terms.gradient

    def _terms(self, student_CV: Tensor, part: slice) -> ChunkTerms:
        labels_C = None if self._labels_N is None else self._labels_N[part]
        if self._lean is not None and student_CV.shape[1] > 1:
            teacher_CV = self._teacher.logits(part, self._device, self._precise)
            if teacher_CV is not None:
                return self._lean.terms(student_CV, teacher_CV, labels_C)
        chunk = self._teacher.chunk(part, self._config, self._device, self._precise)
        return any_divergence(student_CV, chunk, self._config, labels_C)


def any_divergence(
    student_CV: Tensor, teacher: TeacherChunk, config: DynSDPBConfig, labels_C: Tensor | None
) -> ChunkTerms:
    """Return the terms of a chunk for any of the divergences, over the vocabulary or over buckets of it."""
    alpha_C, temperature_C = influence(teacher.uncertainty, config), teacher.temperature
    if config.teacher_correct_only and labels_C is not None:
        alpha_C = alpha_C * (teacher.top == labels_C)
    log_probs_CV = (student_CV / temperature_C[:, None]).log_softmax(-1)
    divergence_C, gradient_CV = divergence_and_gradient(
        config.divergence, teacher.log_probs, log_probs_CV, teacher.token_ids
    )
    gradient_CV.mul_((alpha_C * temperature_C)[:, None])
    agreement_C = (student_CV.argmax(-1) == teacher.top).to(divergence_C.dtype)
    return ChunkTerms(divergence_C, alpha_C, temperature_C, teacher.uncertainty, agreement_C, gradient_CV)
