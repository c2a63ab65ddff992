"""The distillation term of DynSDPB (arXiv 2411.16991), as a sum over tokens with an explicit count.

With teacher logits ``t`` (those of the previous prediction) and student logits ``s`` of a token,
``p^tau = softmax(logits / tau)``, and alpha, tau and ``D`` from :mod:`axolotl_sdft.training.losses.divergences`:

    ``sum over tokens of  alpha * tau^2 * D(p_t^tau, p_s^tau)``

With the forward divergence and constant alpha and tau that is the last-mini-batch term of DLB (arXiv 2203.16172)
before it is averaged. Its gradient with respect to ``s`` is ``alpha * tau`` times that of ``D`` with respect to
``s / tau``; for the forward divergence ``alpha * tau * (p_s^tau - p_t^tau)``. All that comes from the previous
prediction is a constant, alpha and tau included.

Both are computed chunk by chunk: full precision is paid for one chunk of tokens at a time, and the gradient is kept
in the dtype of its input: the student logits, or the hidden states if the loss is computed without logits. Then logits
exist for one block of tokens at a time only.

Shapes: R rows of the batch, N tokens among them, M tokens of a block, C tokens of a chunk, V vocabulary, H hidden, X
either of the two.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.training.losses.fused_divergence import ChunkAccumulator
from axolotl_sdft.training.losses.head import OutputHead
from axolotl_sdft.training.teachers.previous_prediction import TeacherLogits, TeacherPrediction, block_tokens, identity


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
    """Sum of the influences; with ``teacher_correct_only``, a previous prediction that was wrong has none."""

    temperature_sum: Tensor
    """Sum of the temperatures."""

    uncertainty_sum: Tensor
    """Sum of the previous prediction's uncertainty."""

    agreement_sum: Tensor
    """How many tokens have the same token on top before and now."""


@dataclass(frozen=True)
class StudentPrediction:
    """Where the student logits of the tokens are found.

    Args:
        raw: [..., V], what the model makes logits of; with ``head``, [..., H], what goes into that.
        rows: The tokens' rows, [N], once the leading dimensions are flattened; None for all rows.
        logit_transform: Makes logits of what the head gives.
        feeds_loss: The parent's loss is computed from ``raw``. Its gradient then passes here anyway, and that of the
            distillation is added to the tokens' rows of it, instead of two of full size being made.
        head: Is run here, because the model didn't; its own parameters get their gradient too.
    """

    raw: Tensor
    rows: Tensor | None = None
    logit_transform: Callable[[Tensor], Tensor] = identity
    feeds_loss: bool = False
    head: OutputHead | None = None


def dynsdpb_loss(
    student_logits_NV: Tensor, teacher_logits_NV: Tensor, config: DynSDPBConfig, labels_N: Tensor | None = None
) -> DynSDPBTerms:
    """Return the divergence of the student's prediction from the previous one, summed over tokens.

    Only the student logits receive a gradient.

    Args:
        student_logits_NV: What the model predicts now, [tokens, vocabulary].
        teacher_logits_NV: What it predicted for the same tokens one iteration before.
        config: Influence, temperature, divergence and the number of tokens computed at a time.
        labels_N: The tokens that are right; only needed with ``teacher_correct_only``.

    Raises:
        ConfigError: The two are not of one shape [N, V], or the labels are missing.
    """
    if student_logits_NV.dim() != 2 or student_logits_NV.shape != teacher_logits_NV.shape:
        raise ConfigError(
            f"dynsdpb: student logits of shape {tuple(student_logits_NV.shape)} meet teacher logits of shape "
            f"{tuple(teacher_logits_NV.shape)}; both must be [tokens, vocabulary] of the same tokens"
        )
    teacher = TeacherLogits(teacher_logits_NV.detach())
    return distil(StudentPrediction(student_logits_NV), teacher, config, labels_N)


def distil(
    student: StudentPrediction, teacher: TeacherPrediction, config: DynSDPBConfig, labels_N: Tensor | None = None
) -> DynSDPBTerms:
    """Return the divergence of the student's prediction from a previous one in any form, summed over tokens.

    Raises:
        ConfigError: ``teacher_correct_only`` is set and the labels are missing.
    """
    if config.teacher_correct_only and labels_N is None:
        raise ConfigError(
            "dynsdpb.teacher_correct_only needs the labels of the tokens; pass labels_N, or set it to false"
        )
    work = _FusedDivergence(student, config, labels_N)
    sums = _Distillation.apply(student.raw, teacher, work, *work.head_parameters)
    if work.is_late and student.raw.requires_grad:
        student.raw.register_hook(work.added)
    return DynSDPBTerms(sums[0], teacher.num_tokens, *sums[1:])


class _FusedDivergence:
    """Sums the divergence, and computes its gradient on the way, while a chunk is in full precision anyway."""

    def __init__(self, student: StudentPrediction, config: DynSDPBConfig, labels_N: Tensor | None) -> None:
        # The graph holds on to this object, so neither the logits nor the previous prediction may hang on it.
        self.rows_N, self.logit_transform, self.is_late = student.rows, student.logit_transform, student.feeds_loss
        self.head, self.config, self.labels_N = student.head, config, labels_N
        self.gradient_NX: Tensor | None = None
        """Of the tokens' rows of ``raw``."""
        self.head_gradients: list[Tensor] = []
        self.factor: Tensor | None = None

    @property
    def head_parameters(self) -> tuple[Tensor, ...]:
        return self.head.parameters if self.head is not None else ()

    def run(self, flat_RX: Tensor, teacher: TeacherPrediction, needs_gradient: bool) -> Tensor:
        """Return the six sums, [6]."""
        if self.rows_N is None:
            self.rows_N = torch.arange(len(flat_RX), device=flat_RX.device)
        if needs_gradient:
            self.gradient_NX = teacher.gradient_memory(flat_RX)
            self.head_gradients = [torch.zeros_like(weight) for weight in self.head_parameters]
        chunks = ChunkAccumulator(self.logit_transform, self.config, self.labels_N, teacher, flat_RX)
        chunk_tokens = self.config.chunk_tokens
        for block in parts(teacher.num_tokens, chunk_tokens if self.head is None else block_tokens(chunk_tokens)):
            if self.head is None:
                gradient_MX = chunks.add(chunks.gathered(flat_RX, self.rows_N[block]), block)
            else:
                hidden_MH = flat_RX[self.rows_N[block]]
                gradient_MX = self._through_head(self.head, hidden_MH, chunks, block, needs_gradient)
            if self.gradient_NX is not None:
                self.gradient_NX[block] = gradient_MX
        return chunks.sums

    def _through_head(
        self, head: OutputHead, hidden_MH: Tensor, chunks: ChunkAccumulator, block: slice, needs_gradient: bool
    ) -> Tensor:
        """Run the head on a block, work through it chunk by chunk, and return the gradient of the hidden states."""
        hidden_MH = hidden_MH.detach().requires_grad_(needs_gradient)
        with torch.enable_grad() if needs_gradient else nullcontext():
            raw_MV = head(hidden_MH)
        gradient_MV = torch.empty_like(raw_MV)
        for part in parts(len(raw_MV), self.config.chunk_tokens):
            place = slice(block.start + part.start, block.start + part.stop)
            gradient_MV[part] = chunks.add(raw_MV.detach()[part], place)
        if not needs_gradient:
            return hidden_MH
        gradient_MH, *of_head = torch.autograd.grad(raw_MV, (hidden_MH, *self.head_parameters), gradient_MV)
        for total, gradient in zip(self.head_gradients, of_head, strict=True):
            total += gradient
        return gradient_MH

    def alone(self, gradient_NX: Tensor, factor: Tensor, shape: torch.Size) -> Tensor:
        """Return the gradient of the whole ``raw`` from the distillation alone."""
        return self._with(gradient_NX, factor, gradient_NX.new_zeros(shape))

    def added(self, gradient: Tensor | None) -> Tensor:
        """Return the gradient that the parent's loss gave to ``raw`` together with that of the distillation."""
        if gradient is None or self.gradient_NX is None or self.factor is None:
            raise ConfigError(
                "dynsdpb: the training loss does not depend on what came out of the output head, or was differentiated "
                "twice; compute it from the model's logits, once for each step"
            )
        gradient_NX, self.gradient_NX = self.gradient_NX, None
        # Autograd may go on using what it gives to a hook.
        return self._with(gradient_NX, self.factor, gradient.clone(memory_format=torch.contiguous_format))

    def _with(self, gradient_NX: Tensor, factor: Tensor, total: Tensor) -> Tensor:
        """Add the distillation's gradient to the tokens' rows of one of ``raw``, in place, and return that."""
        assert self.rows_N is not None
        total_RX = total.view(-1, total.shape[-1])
        for part in parts(len(gradient_NX), self.config.chunk_tokens):
            # The factor, a loss scale among others, may be out of range for the dtype of the gradient.
            scaled_CX = (gradient_NX[part].to(factor.dtype) * factor).to(total.dtype)
            total_RX.index_add_(0, self.rows_N[part], scaled_CX)
        return total


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, raw: Tensor, teacher: TeacherPrediction, work: _FusedDivergence, *_head_parameters: Tensor
    ) -> tuple[Tensor, ...]:
        total, *figures = work.run(raw.flatten(0, -2), teacher, any(ctx.needs_input_grad)).unbind()
        ctx.work, ctx.shape = work, raw.shape
        if not work.is_late:
            # The graph lets go of what it saved as soon as it has been used.
            ctx.save_for_backward(work.gradient_NX, *work.head_gradients)
            work.gradient_NX, work.head_gradients = None, []
        ctx.mark_non_differentiable(*figures)
        return total, *figures

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        work: _FusedDivergence = ctx.work
        if work.is_late:
            # ``raw`` waits for the gradients of all that was computed from it, this one too; its hook adds it.
            work.factor = factor
            return None, None, None
        gradient_NX, *of_head = ctx.saved_tensors
        scaled = (gradient * factor.to(gradient.dtype) for gradient in of_head)
        return work.alone(gradient_NX, factor, ctx.shape), None, None, *scaled


def parts(num_tokens: int, size: int) -> Iterator[slice]:
    """Give slices of at most ``size`` that together are all tokens."""
    return (slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size))
