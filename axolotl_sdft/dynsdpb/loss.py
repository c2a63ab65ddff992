"""The distillation term of DynSDPB (arXiv 2411.16991), as a sum over tokens with an explicit count.

With former logits ``t`` and present logits ``s`` of a token, ``p^tau = softmax(logits / tau)``, and alpha and tau from
:mod:`axolotl_sdft.dynsdpb.schedules`:

    ``sum over tokens of  alpha * tau^2 * KL(p_t^tau || p_s^tau)``

which for constant alpha and tau is the last-mini-batch term of DLB (arXiv 2203.16172) before it is averaged. Its
gradient with respect to ``s`` is ``alpha * tau * (p_s^tau - p_t^tau)``. The former logits are a constant.

Both are computed chunk by chunk: full precision is paid for one chunk of tokens at a time, and the gradient is kept
in the number format of the present logits.

Shapes: N tokens, C tokens of a chunk, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.dynsdpb.schedules import influence_and_temperature
from axolotl_sdft.errors import ConfigError


@dataclass(frozen=True)
class DynSDPBTerms:
    """Sums over tokens, undivided: only the trainer knows the counts over accumulation steps and ranks."""

    kl_sum: Tensor
    """Sum of ``alpha * tau^2 * KL``, the term to minimise; a scalar that can be differentiated."""

    num_tokens: int
    """Tokens in the sums."""

    divergence_sum: Tensor
    """Sum of the plain ``KL``, in nats, without alpha and tau^2; for logging."""

    alpha_sum: Tensor
    """Sum of the influences; for logging."""

    temperature_sum: Tensor
    """Sum of the temperatures; for logging."""


def dynsdpb_loss(student_logits_NV: Tensor, teacher_logits_NV: Tensor, config: DynSDPBConfig) -> DynSDPBTerms:
    """Return the divergence of the present prediction from the former one, summed over tokens.

    Only the present (student) logits receive a gradient.

    Args:
        student_logits_NV: What the model predicts now, [tokens, vocabulary].
        teacher_logits_NV: What it predicted for the same tokens one iteration before.
        config: Influence, temperature and the number of tokens computed at a time.

    Raises:
        ConfigError: The two are not of one shape [N, V].
    """
    if student_logits_NV.dim() != 2 or student_logits_NV.shape != teacher_logits_NV.shape:
        raise ConfigError(
            f"dynsdpb: present logits of shape {tuple(student_logits_NV.shape)} meet former logits of shape "
            f"{tuple(teacher_logits_NV.shape)}; both must be [tokens, vocabulary] of the same tokens"
        )
    sums = _ChunkedDivergence.apply(student_logits_NV, teacher_logits_NV.detach(), config)
    kl_sum, divergence_sum, alpha_sum, temperature_sum = sums
    return DynSDPBTerms(kl_sum, student_logits_NV.shape[0], divergence_sum, alpha_sum, temperature_sum)


class _ChunkedDivergence(torch.autograd.Function):
    """Sums the divergence, and computes its gradient on the way, while a chunk is in full precision anyway."""

    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, teacher_NV: Tensor, config: DynSDPBConfig) -> tuple[Tensor, ...]:
        is_double = torch.float64 in (student_NV.dtype, teacher_NV.dtype)
        precise = torch.float64 if is_double else torch.float32
        sums = torch.zeros(4, dtype=precise, device=student_NV.device)
        gradient_NV = torch.empty_like(student_NV) if ctx.needs_input_grad[0] else None
        for start in range(0, student_NV.shape[0], config.chunk_tokens):
            chunk = slice(start, start + config.chunk_tokens)
            chunk_sums, gradient_CV = _chunk_terms(student_NV[chunk].to(precise), teacher_NV[chunk].to(precise), config)
            sums += chunk_sums
            if gradient_NV is not None:
                gradient_NV[chunk] = gradient_CV
        ctx.save_for_backward(gradient_NV)
        kl_sum, *figures = sums.unbind()
        ctx.mark_non_differentiable(*figures)
        return kl_sum, *figures

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_kl_sum: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV * grad_kl_sum.to(gradient_NV.dtype), None, None


def _chunk_terms(student_CV: Tensor, teacher_CV: Tensor, config: DynSDPBConfig) -> tuple[Tensor, Tensor]:
    """Return the four sums over a chunk, [4], and the gradient of the first with respect to the student."""
    alpha_C, temperature_C = influence_and_temperature(teacher_CV, config)
    log_student_CV = (student_CV / temperature_C[:, None]).log_softmax(-1)
    log_teacher_CV = (teacher_CV / temperature_C[:, None]).log_softmax(-1)
    prob_teacher_CV = log_teacher_CV.exp()
    # A token that the teacher rules out adds nothing, also where both logits are -inf and their difference is no
    # number.
    pointwise_CV = (prob_teacher_CV * (log_teacher_CV - log_student_CV)).masked_fill_(prob_teacher_CV == 0, 0.0)
    # Rounding can put the divergence of nearly equal predictions a little below zero.
    kl_C = pointwise_CV.sum(-1).clamp_min(0.0)
    gradient_CV = (alpha_C * temperature_C)[:, None] * (log_student_CV.exp() - prob_teacher_CV)
    weighted = (alpha_C * temperature_C.square() * kl_C).sum()
    return torch.stack([weighted, kl_C.sum(), alpha_C.sum(), temperature_C.sum()]), gradient_CV
