"""One chunk of tokens of the distillation term: in full precision, with its gradient.

Shapes: N tokens, C tokens of a chunk, R rows of the batch, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.training.losses.divergences import divergence_and_gradient
from axolotl_sdft.training.losses.fused_divergence import ChunkTerms, FullVocabularyKL
from axolotl_sdft.training.losses.schedules import influence
from axolotl_sdft.training.teachers.previous_prediction import FormerChunk, FormerPrediction, identity


class Chunks:
    """The sums over all chunks so far, and how one is computed.

    Args:
        finish: Makes logits of what the output head gives.
        config: The settings.
        labels_N: The right tokens; only needed with ``teacher_correct_only``.
        former: The former prediction.
        like: Tells the device, and whether to compute in double precision.
    """

    def __init__(
        self,
        finish: Callable[[Tensor], Tensor],
        config: DynSDPBConfig,
        labels_N: Tensor | None,
        former: FormerPrediction,
        like: Tensor,
    ) -> None:
        self._finish, self._config, self._labels_N, self._former = finish, config, labels_N, former
        self._precise = torch.float64 if like.dtype == torch.float64 or former.is_double else torch.float32
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
        if self._finish is identity:
            return self._added(raw_CV, part)
        with torch.enable_grad():
            raw_CV = raw_CV.detach().requires_grad_()
            logits_CV = self._finish(raw_CV)
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
            teacher_CV = self._former.logits(part, self._device, self._precise)
            if teacher_CV is not None:
                return self._lean.terms(student_CV, teacher_CV, labels_C)
        chunk = self._former.chunk(part, self._config, self._device, self._precise)
        return any_divergence(student_CV, chunk, self._config, labels_C)


def any_divergence(
    student_CV: Tensor, former: FormerChunk, config: DynSDPBConfig, labels_C: Tensor | None
) -> ChunkTerms:
    """Return the terms of a chunk for any of the divergences, over the vocabulary or over buckets of it."""
    alpha_C, temperature_C = influence(former.uncertainty, config), former.temperature
    if config.teacher_correct_only and labels_C is not None:
        alpha_C = alpha_C * (former.top == labels_C)
    log_probs_CV = (student_CV / temperature_C[:, None]).log_softmax(-1)
    divergence_C, gradient_CV = divergence_and_gradient(
        config.divergence, former.log_probs, log_probs_CV, former.token_ids
    )
    gradient_CV.mul_((alpha_C * temperature_C)[:, None])
    agreement_C = (student_CV.argmax(-1) == former.top).to(divergence_C.dtype)
    return ChunkTerms(divergence_C, alpha_C, temperature_C, former.uncertainty, agreement_C, gradient_CV)
