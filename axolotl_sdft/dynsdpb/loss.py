"""The distillation term of DynSDPB (arXiv 2411.16991), as a sum over tokens with an explicit count.

With former logits ``t`` and present logits ``s`` of a token, ``p^tau = softmax(logits / tau)``, alpha and tau from
:mod:`axolotl_sdft.dynsdpb.schedules` and ``D`` from :mod:`axolotl_sdft.dynsdpb.divergences`:

    ``sum over tokens of  alpha * tau^2 * D(p_t^tau, p_s^tau)``

With the forward divergence and constant alpha and tau that is the last-mini-batch term of DLB (arXiv 2203.16172)
before it is averaged. Its gradient with respect to ``s`` is ``alpha * tau`` times that of ``D`` with respect to
``s / tau``; for the forward divergence ``alpha * tau * (p_s^tau - p_t^tau)``. All that comes from the former
prediction is a constant, alpha and tau included.

Both are computed chunk by chunk: full precision is paid for one chunk of tokens at a time, and the gradient is kept
in the number format of the present logits.

Shapes: R rows of logits, N tokens among them, C tokens of a chunk, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.dynsdpb.divergences import divergence_and_gradient
from axolotl_sdft.dynsdpb.former import FormerChunk, FormerLogits, FormerPrediction, identity
from axolotl_sdft.dynsdpb.schedules import influence
from axolotl_sdft.errors import ConfigError


@dataclass(frozen=True)
class DynSDPBTerms:
    """Sums over tokens, undivided: only the trainer knows the counts over accumulation steps and ranks."""

    kl_sum: Tensor
    """Sum of ``alpha * tau^2 * D``, the term to minimise; a scalar that can be differentiated."""

    num_tokens: int
    """Tokens in the sums, also those whose influence is zero."""

    divergence_sum: Tensor
    """Sum of the plain ``D``, in nats, without alpha and tau^2; for logging, as are all below."""

    alpha_sum: Tensor
    """Sum of the influences; with ``only_correct``, a former prediction that was wrong has none."""

    temperature_sum: Tensor
    """Sum of the temperatures."""

    uncertainty_sum: Tensor
    """Sum of the former prediction's uncertainty."""

    agreement_sum: Tensor
    """How many tokens have the same token on top before and now."""


@dataclass(frozen=True)
class PresentPrediction:
    """Where the present logits of the tokens are found.

    Args:
        raw: [..., V], what the model makes logits of.
        rows: The tokens' rows, [N], once the leading dimensions are flattened; None for all rows.
        finish: Makes logits of it.
        feeds_loss: The parent's loss is computed from ``raw``. Its gradient then passes here anyway, and that of the
            distillation is added to it as it passes, instead of being held as a second one of full size.
    """

    raw: Tensor
    rows: Tensor | None = None
    finish: Callable[[Tensor], Tensor] = identity
    feeds_loss: bool = False


def dynsdpb_loss(
    student_logits_NV: Tensor, teacher_logits_NV: Tensor, config: DynSDPBConfig, labels_N: Tensor | None = None
) -> DynSDPBTerms:
    """Return the divergence of the present prediction from the former one, summed over tokens.

    Only the present (student) logits receive a gradient.

    Args:
        student_logits_NV: What the model predicts now, [tokens, vocabulary].
        teacher_logits_NV: What it predicted for the same tokens one iteration before.
        config: Influence, temperature, divergence and the number of tokens computed at a time.
        labels_N: The tokens that are right; only needed with ``only_correct``.

    Raises:
        ConfigError: The two are not of one shape [N, V], or the labels are missing.
    """
    if student_logits_NV.dim() != 2 or student_logits_NV.shape != teacher_logits_NV.shape:
        raise ConfigError(
            f"dynsdpb: present logits of shape {tuple(student_logits_NV.shape)} meet former logits of shape "
            f"{tuple(teacher_logits_NV.shape)}; both must be [tokens, vocabulary] of the same tokens"
        )
    former = FormerLogits(teacher_logits_NV.detach())
    return distil(PresentPrediction(student_logits_NV), former, config, labels_N)


def distil(
    present: PresentPrediction, former: FormerPrediction, config: DynSDPBConfig, labels_N: Tensor | None = None
) -> DynSDPBTerms:
    """Return the divergence of the present prediction from a former one in any form, summed over tokens.

    Raises:
        ConfigError: ``only_correct`` is set and the labels are missing.
    """
    if config.only_correct and labels_N is None:
        raise ConfigError("dynsdpb.only_correct needs the labels of the tokens; pass labels_N, or set it to false")
    work = _Work(present, config, labels_N)
    sums = _Distillation.apply(present.raw, former, work)
    if work.is_late and present.raw.requires_grad:
        present.raw.register_hook(work.add_gradient)
    return DynSDPBTerms(sums[0], former.num_tokens, *sums[1:])


class _Work:
    """Sums the divergence, and computes its gradient on the way, while a chunk is in full precision anyway."""

    def __init__(self, present: PresentPrediction, config: DynSDPBConfig, labels_N: Tensor | None) -> None:
        # The graph holds on to this object, so neither the logits nor the former prediction may hang on it.
        self.rows_N, self.finish, self.is_late = present.rows, present.finish, present.feeds_loss
        self.config, self.labels_N = config, labels_N
        self.gradient_NV: Tensor | None = None
        self.factor: Tensor | None = None

    def run(self, flat_RV: Tensor, former: FormerPrediction, needs_gradient: bool) -> Tensor:
        """Return the six sums, [6]."""
        is_double = flat_RV.dtype == torch.float64 or former.is_double
        precise = torch.float64 if is_double else torch.float32
        if needs_gradient:
            self.gradient_NV = _spare_or_new(former.spare(), (former.num_tokens, flat_RV.shape[1]), flat_RV)
        sums = torch.zeros(6, dtype=precise, device=flat_RV.device)
        for part in _parts(former.num_tokens, self.config):
            chunk = former.chunk(part, self.config, flat_RV.device, precise)
            raw_CV = flat_RV[part] if self.rows_N is None else flat_RV[self.rows_N[part]]
            is_right_C = None if self.labels_N is None else chunk.top == self.labels_N[part]
            chunk_sums, gradient_CV = _chunk_terms(raw_CV.to(precise), self.finish, chunk, self.config, is_right_C)
            sums += chunk_sums
            if self.gradient_NV is not None:
                self.gradient_NV[part] = gradient_CV
        return sums

    def full_gradient(self, gradient_NV: Tensor, shape: torch.Size, factor: Tensor) -> Tensor:
        """Return the gradient of the whole ``raw``, of which some rows took part."""
        gradient_NV = gradient_NV * factor.to(gradient_NV.dtype)
        if self.rows_N is None:
            return gradient_NV.view(shape)
        full = gradient_NV.new_zeros(shape)
        full.flatten(0, -2).index_copy_(0, self.rows_N, gradient_NV)
        return full

    def add_gradient(self, gradient: Tensor | None) -> Tensor:
        """Return the gradient that the parent's loss gave to ``raw``, with the distillation's added."""
        if gradient is None or self.gradient_NV is None or self.factor is None:
            raise ConfigError(
                "dynsdpb: the training loss does not depend on what came out of the output head, or was differentiated "
                "twice; compute it from the model's logits, once for each step"
            )
        total = gradient.clone(memory_format=torch.contiguous_format)
        total_RV = total.flatten(0, -2)
        rows_N = torch.arange(len(total_RV), device=total.device) if self.rows_N is None else self.rows_N
        for part in _parts(len(rows_N), self.config):
            # The factor, a loss scale among others, may be out of range for the number format of the gradient.
            scaled_CV = self.gradient_NV[part].to(self.factor.dtype) * self.factor
            total_RV.index_add_(0, rows_N[part], scaled_CV.to(total.dtype))
        self.gradient_NV = None
        return total


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, raw: Tensor, former: FormerPrediction, work: _Work) -> tuple[Tensor, ...]:
        total, *figures = work.run(raw.flatten(0, -2), former, ctx.needs_input_grad[0]).unbind()
        ctx.work, ctx.shape = work, raw.shape
        ctx.save_for_backward(None if work.is_late else work.gradient_NV)
        ctx.mark_non_differentiable(*figures)
        return total, *figures

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, *_: Tensor) -> tuple[Tensor | None, None, None]:
        work: _Work = ctx.work
        if work.is_late:
            # ``raw`` waits for the gradients of all that was computed from it, this one too; its hook adds it.
            work.factor = factor
            return None, None, None
        (gradient_NV,) = ctx.saved_tensors
        return work.full_gradient(gradient_NV, ctx.shape, factor), None, None


def _parts(num_tokens: int, config: DynSDPBConfig) -> list[slice]:
    return [slice(start, start + config.chunk_tokens) for start in range(0, num_tokens, config.chunk_tokens)]


def _spare_or_new(spare_NV: Tensor | None, shape: tuple[int, int], like: Tensor) -> Tensor:
    wanted = (shape, like.dtype, like.device)
    if spare_NV is not None and (spare_NV.shape, spare_NV.dtype, spare_NV.device) == wanted:
        return spare_NV
    return like.new_empty(shape)


def _chunk_terms(
    raw_CV: Tensor,
    finish: Callable[[Tensor], Tensor],
    former: FormerChunk,
    config: DynSDPBConfig,
    is_right_C: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the six sums over a chunk, [6], and the gradient of the first with respect to ``raw_CV``."""
    student_CV = finish(raw_CV)
    alpha_C, temperature_C = influence(former.uncertainty, config), former.temperature
    if config.only_correct and is_right_C is not None:
        alpha_C = alpha_C * is_right_C
    log_probs_CV = (student_CV / temperature_C[:, None]).log_softmax(-1)
    divergence_C, gradient_CV = divergence_and_gradient(
        config.divergence, former.log_probs, log_probs_CV, former.token_ids
    )
    gradient_CV.mul_((alpha_C * temperature_C)[:, None])
    if finish is not identity:
        gradient_CV = _through(finish, raw_CV, gradient_CV)
    weighted_C = alpha_C * temperature_C.square() * divergence_C
    agreement_C = (student_CV.argmax(-1) == former.top).to(weighted_C.dtype)
    figures = (weighted_C, divergence_C, alpha_C, temperature_C, former.uncertainty, agreement_C)
    return torch.stack([figure_C.sum() for figure_C in figures]), gradient_CV


def _through(finish: Callable[[Tensor], Tensor], raw_CV: Tensor, gradient_CV: Tensor) -> Tensor:
    """Return the gradient with respect to what logits are made of."""
    with torch.enable_grad():
        leaf_CV = raw_CV.detach().requires_grad_()
        (gradient_CV,) = torch.autograd.grad(finish(leaf_CV), leaf_CV, gradient_CV)
    return gradient_CV
