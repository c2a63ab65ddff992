"""Reads predictions off forward passes, keeps them for an iteration, and reads them back.

The leanest way that a model allows is found out at its first pass:

* The output head can be watched: gradients are added to what it gave, and its input or output is what is kept.
* The model returned no logits, since its loss is computed without any: the head is run here, on what the model's body
  gave, for a block of tokens at a time.
* Neither can be watched (sharded over ranks, compiled, or the logits can't be traced back to the head): the logits
  that the model returned are used and kept.

Shapes: B rows, T positions, N label tokens, H hidden, V vocabulary.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.training.batching import TOKEN_TYPES
from axolotl_sdft.training.losses.dynsdpb import StudentPrediction
from axolotl_sdft.training.losses.head import (
    HeadCall,
    HookRecord,
    LogitTransform,
    OutputHead,
    find_body,
    find_head,
    head_gives,
    infer_logit_transform,
    is_frozen,
    leaving_no_trace,
    logits_of,
    sampled,
    watched,
)
from axolotl_sdft.training.teachers.previous_prediction import (
    TeacherHiddenStates,
    TeacherLogits,
    TeacherPrediction,
    TeacherTopK,
    block_tokens,
    identity,
    keep_top_k,
)

log = logging.getLogger(__name__)

_PROBED_TOKENS = 16
_PROBED = ("input_ids", *TOKEN_TYPES)


@dataclass(frozen=True)
class ForwardOutputs:
    """What a forward pass predicted; of ``raw`` and ``hidden`` at least one is there."""

    raw: Tensor | None
    """What came out of the output head where it was watched, else the logits; [B, T, V]. None where the model's loss
    was computed without either."""

    logit_transform: LogitTransform
    """Makes logits of it."""

    hidden: Tensor | None
    """What went into the head, or would have gone, [B, T, H]; None where it was not watched."""

    head: OutputHead | None
    """Makes ``raw`` of ``hidden``; None where it can't be run apart from the model."""

    def student_prediction(self, rows_N: Tensor, *, is_constant: bool) -> StudentPrediction:
        """Return the prediction at these rows of the flattened batch, for the loss."""
        if self.raw is not None:
            raw = self.raw.detach() if is_constant else self.raw
            return StudentPrediction(raw, rows_N, self.logit_transform, feeds_loss=self.hidden is not None)
        assert self.hidden is not None
        assert self.head is not None
        if is_constant:
            return StudentPrediction(self.hidden.detach(), rows_N, self.logit_transform, head=self.head.as_constant())
        return StudentPrediction(self.hidden, rows_N, self.logit_transform, head=self.head)

    @property
    def source(self) -> Tensor | None:
        """What gradients of the distillation pass on to the model."""
        return self.raw if self.raw is not None else self.hidden

    def raw_parts(self, rows_N: Tensor, size: int) -> Iterator[Tensor]:
        """Give what the head gave for these rows as constants, [at most size, V] at a time; without rows once."""
        for start in range(0, max(1, len(rows_N)), size):
            rows = rows_N[start : start + size]
            if self.raw is not None:
                yield self.raw.detach().flatten(0, 1)[rows]
            elif self.hidden is not None and self.head is not None:
                with torch.no_grad():
                    yield self.head(self.hidden.detach().flatten(0, 1)[rows])


class Predictions:
    """How one model's predictions are read, kept and read back.

    Args:
        model: Without wrappers for several ranks.
        config: What is to be kept.
        can_watch: The head is a whole module on this rank, and called as one.
        context: Entered where the head is run again, such as autocast.

    Raises:
        ConfigError: Hidden states are asked for, but the head that makes logits of them is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        config: DynSDPBConfig,
        *,
        can_watch: bool = True,
        context: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._model, self._config, self._model_config = model, config, getattr(model, "config", None)
        head = find_head(model)
        if config.teacher_storage == "hidden_states" and head is not None and not is_frozen(head):
            raise ConfigError(
                "dynsdpb.teacher_storage is hidden_states, but the output head is trained, so one iteration later it "
                "would make other logits of them; freeze it (as LoRA does), or set teacher_storage: logits"
            )
        self._head = OutputHead(head, context) if head is not None and can_watch else None
        self._body = find_body(model) if self._head is not None else None
        self._logit_transform: LogitTransform | None = None
        self._is_inspected = False
        wants_hidden = config.teacher_storage in ("auto", "hidden_states")
        can_hidden = self._head is not None and is_frozen(self._head.module)
        otherwise = "top_k" if config.teacher_storage == "top_k" else "logits"
        self.form = "hidden_states" if wants_hidden and can_hidden else otherwise
        """What is kept: ``hidden_states``, ``logits`` or ``top_k``."""
        if config.teacher_storage == "hidden_states" and not can_hidden:
            self._warn("the output head can't be run outside of the model (sharded or compiled)")

    def watched(self, model: nn.Module | None = None) -> AbstractContextManager[HookRecord]:
        """Watch the output head, the body and the whole model, with its wrappers, while the block runs."""
        return watched(None if self._head is None else self._head.module, self._body, model)

    def read(
        self, seen: HookRecord, logits_BTV: Tensor | None, mask_BT: Tensor, inputs: Mapping[str, Any] | None = None
    ) -> ForwardOutputs:
        """Return what a pass predicted.

        Args:
            seen: What :meth:`watched` gave.
            logits_BTV: What the model returned; None where it computed its loss without logits.
            mask_BT: Where labels are predicted.
            inputs: The batch. Some of its tokens are run without labels, once, if the model returned no logits.

        Raises:
            ConfigError: There are no logits, and what the model's body gives does not make them either; or the loss has
                written over them.
        """
        if logits_BTV is None:
            return self._read_body(seen, mask_BT, inputs or {})
        if not self._is_inspected and mask_BT.any():
            rows_N = mask_BT.flatten().nonzero().squeeze(1).to(logits_BTV.device)
            self._inspect(seen.calls, logits_BTV, sampled(rows_N))
        if self._logit_transform is None or len(seen.calls) != 1:
            return ForwardOutputs(logits_BTV, identity, None, None)
        return ForwardOutputs(seen.calls[0].raw, self._logit_transform, seen.calls[0].hidden, self._head)

    def hidden_pass(self, seen: HookRecord) -> ForwardOutputs | None:
        """Return what a pass predicted of which logits were not made; None where its hidden states are unknown.

        Only after :meth:`read` has seen another pass of the same model, whose head was given what its body gave.
        """
        if self._logit_transform is None or self._head is None or seen.hidden is None:
            return None
        return ForwardOutputs(None, self._logit_transform, seen.hidden, self._head)

    @torch.no_grad()
    def _inspect(self, calls: list[HeadCall], logits_BTV: Tensor, rows_S: Tensor) -> None:
        self._is_inspected = True
        if not all(call.is_intact for call in calls):
            raise ConfigError(
                "dynsdpb: the loss writes over the logits that the model made, so nothing can be distilled from them; "
                "liger_cross_entropy does so where logits are in float32: set it to false, or train with bf16"
            )
        if len(calls) == 1 and _could_make(logits_BTV, calls[0].raw):
            logits_SV, raw_SV = (values.flatten(0, 1)[rows_S] for values in (logits_BTV, calls[0].raw))
            self._logit_transform = infer_logit_transform(logits_SV, raw_SV, self._model_config)
        if self._logit_transform is None:
            self._head = None
        if self.form == "hidden_states" and not self._hidden_states_suffice(calls, rows_S):
            self.form = "logits"
            self._warn("the model's logits could not be made again from what goes into its output head")

    def _hidden_states_suffice(self, calls: list[HeadCall], rows_S: Tensor) -> bool:
        if self._logit_transform is None or self._head is None:
            return False
        hidden_BTH, raw_BTV = calls[0].hidden, calls[0].raw
        if hidden_BTH.shape[:2] != raw_BTV.shape[:2]:
            return False
        return head_gives(self._head, hidden_BTH.flatten(0, 1)[rows_S], raw_BTV.flatten(0, 1)[rows_S])

    def _read_body(self, seen: HookRecord, mask_BT: Tensor, inputs: Mapping[str, Any]) -> ForwardOutputs:
        if not self._is_inspected:
            self._is_inspected = True
            self._logit_transform = self._finish_of_body(inputs)
        hidden_BTH = seen.hidden
        if self._logit_transform is None or hidden_BTH is None or hidden_BTH.shape[:2] != mask_BT.shape:
            reason = (
                "what its body gives can't be turned into them here"
                if self._head is not None
                else "its output head is sharded over ranks or compiled, so it can't be run apart from the model"
            )
            raise ConfigError(
                f"dynsdpb: the model computes its loss without logits, and {reason}; switch off what makes it do so, "
                "such as cut_cross_entropy, liger_fused_linear_cross_entropy, use_liger_kernel or loss_type "
                "chunked_nll (TRL from 1.15 on always does, unless it is given a compute_loss_func, which takes logits)"
            )
        return ForwardOutputs(None, self._logit_transform, hidden_BTH, self._head)

    @torch.no_grad()
    def _finish_of_body(self, inputs: Mapping[str, Any]) -> LogitTransform | None:
        """Return what makes logits of what the body gives, once it has gone through the head; None if that is not so.

        Without labels even these models compute logits, by which it can be told.
        """
        probe = {name: inputs[name][:1, :_PROBED_TOKENS] for name in _PROBED if torch.is_tensor(inputs.get(name))}
        if self._head is None or self._body is None or "input_ids" not in probe:
            return None
        with leaving_no_trace(self._model), self._head.context(), self.watched() as seen:
            logits_BTV = logits_of(self._model(**probe))
        if logits_BTV is None or len(seen.calls) != 1 or seen.hidden is None:
            return None
        (call,) = seen.calls
        if not torch.equal(call.hidden, seen.hidden) or call.raw.shape != logits_BTV.shape:
            return None
        return infer_logit_transform(logits_BTV.flatten(0, 1), call.raw.flatten(0, 1), self._model_config)

    def _warn(self, reason: str) -> None:
        log.warning("dynsdpb: logits are kept instead of hidden states, because %s; they take more memory", reason)

    def keep(self, seen: ForwardOutputs, rows_N: Tensor) -> dict[str, Tensor]:
        """Return what is to be remembered of these rows of the flattened batch, as constants."""
        if self.form == "hidden_states" and seen.hidden is not None:
            return {"hidden": seen.hidden.detach().flatten(0, 1)[rows_N]}
        if self.form == "top_k":
            return keep_top_k(self._chunks(seen, rows_N), self._config)
        if seen.raw is not None:
            return {"logits" if seen.hidden is None else "raw": seen.raw.detach().flatten(0, 1)[rows_N]}
        return {"raw": torch.cat(list(seen.raw_parts(rows_N, block_tokens(self._config.chunk_tokens))))}

    def _chunks(self, seen: ForwardOutputs, rows_N: Tensor) -> Iterator[Tensor]:
        for raw_CV in seen.raw_parts(rows_N, self._config.chunk_tokens):
            yield seen.logit_transform(raw_CV.to(torch.float64 if raw_CV.dtype == torch.float64 else torch.float32))

    def recall(self, kept: dict[str, Tensor]) -> TeacherPrediction | None:
        """Return what :meth:`keep` kept, to be read once, after the pass of its own iteration: it may be written over.

        None when it can't be read: it came from a checkpoint whose output head was watched, and this one can't be.
        """
        if "log_probs" in kept:
            return TeacherTopK(**kept)
        if "logits" in kept:
            return TeacherLogits(kept["logits"], is_read_once=True)
        if self._logit_transform is None or self._head is None:
            return None
        if "raw" in kept:
            return TeacherLogits(kept["raw"], self._logit_transform, is_read_once=True)
        return (
            TeacherHiddenStates(kept["hidden"], self._head, self._logit_transform)
            if self.form == "hidden_states"
            else None
        )


def _could_make(logits_BTV: Tensor, raw_BTV: Tensor) -> bool:
    """Whether gradients of the logits can pass what came out of the head."""
    return raw_BTV.shape == logits_BTV.shape and raw_BTV.requires_grad == logits_BTV.requires_grad
