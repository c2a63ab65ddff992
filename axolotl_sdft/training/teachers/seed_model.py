"""The seed model as teacher: which of its two forms a student can have, and what it predicts for a batch.

Shapes: B rows, T positions, N distilled tokens.
"""

import inspect
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from axolotl_sdft.config import DynSDPBConfig, LogitDistillationConfig
from axolotl_sdft.core.errors import ConfigError, SdftError
from axolotl_sdft.training.losses.head import find_body, find_head, logits_of, watched
from axolotl_sdft.training.teachers.loading import load_own_teacher, plan_layers, quantization_of, seed_folder
from axolotl_sdft.training.teachers.origin import SeedOrigin, origin_of, seed_config
from axolotl_sdft.training.teachers.prediction import ForwardOutputs, Predictions
from axolotl_sdft.training.teachers.previous_prediction import TeacherPrediction
from axolotl_sdft.training.teachers.shared_layers import (
    base_model_of,
    build_shared_teacher,
    changed_reason,
    unshareable_reason,
)

LOG = logging.getLogger(__name__)

_NOT_INPUTS = ("labels", "shift_labels", "num_items_in_batch", "return_loss", "output_hidden_states", "use_cache")


@dataclass(frozen=True)
class TeacherPlan:
    """A teacher that a student can have, before anything of it is loaded."""

    origin: SeedOrigin | None
    """None where the student was not pruned."""

    is_shared: bool
    """Whether it takes the student's own layers."""

    reason: str
    """Why, for the log."""

    bits: int | None = None
    """To how many bits a teacher of its own is quantized."""

    trust_remote_code: bool = False

    def load(self, model: nn.Module) -> nn.Module:
        """Return the teacher, where the student is.

        Raises:
            SdftError: It can't be loaded, or the student is no longer as it was when this was planned.
        """
        if self.is_shared:
            return build_shared_teacher(model, self.origin, self.trust_remote_code)
        return load_own_teacher(base_model_of(model), self.origin, self.bits, self.trust_remote_code)


def plan_teacher(
    model: nn.Module,
    config: LogitDistillationConfig,
    seed_model: str | Path | None = None,
    trust_remote_code: bool = False,
) -> TeacherPlan:
    """Return the teacher that the settings and the student ask for, checked as far as no weights are needed.

    Args:
        model: The student, with or without adapters.
        config: The settings.
        seed_model: Where the seed model is; found by what is recorded with the pruned checkpoint when unset. Without
            such a record it becomes a teacher of its own.
        trust_remote_code: Run code that comes with the seed model.

    Raises:
        ConfigError: ``teacher: shared`` is set for a student whose own layers are trained, or its vocabulary is
            another one than that of the seed model.
        CheckpointError: The seed model is gone, is another one, or can't be told.
        MissingExtraError: A teacher of 4 or 8 bits needs bitsandbytes.
    """
    base = base_model_of(model)
    origin = origin_of(base, seed_model)
    seed_config(base, origin, trust_remote_code)  # checks the vocabulary
    is_shared, reason = _form(model, config, origin)
    if not is_shared:
        seed_folder(base, origin)
        quantization_of(base, config.bits)
    return TeacherPlan(origin, is_shared, reason, config.bits, trust_remote_code)


def _form(model: nn.Module, config: LogitDistillationConfig, origin: SeedOrigin | None) -> tuple[bool, str]:
    if config.teacher == "own":
        return False, "teacher is own"
    if config.bits is not None:
        return False, f"load_in_{config.bits}bit is true"
    reason = unshareable_reason(model)
    if reason is None and origin is not None and not origin.is_recorded:
        reason = f"nothing tells which of its layers are those of {origin.seed_dir}, which seed_model names"
    if reason is None and origin is not None and origin.needed:
        try:
            plan_layers(origin)
            reason = changed_reason(model, origin)
        except SdftError as err:
            reason = str(err)
    if reason is None:
        return True, "the student's own layers are frozen"
    if config.teacher == "shared":
        raise ConfigError(f"logit_distillation.teacher is shared, but {reason}; set it to own or auto")
    return False, reason


class SeedTeacher:
    """Predicts what the seed model would say, for the tokens that are distilled.

    Args:
        model: The seed model.
        config: How predictions are compared.
        context: Entered while it runs, such as autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        config: DynSDPBConfig,
        context: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.model = model
        self._context = context
        self._predictions = Predictions(model, config, context=context)
        self._is_lean = False
        """Whether hidden states are all that is needed of a pass, so that no logits have to be made."""
        self._can_leave_out_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.no_grad()
    def predict(self, inputs: Mapping[str, Any], mask_BT: Tensor) -> TeacherPrediction:
        """Return the prediction at the positions of a mask, in row-major order.

        Args:
            inputs: What the student is given; labels are left out.
            mask_BT: Which positions.

        Raises:
            ConfigError: The teacher gives no logits for these positions.
        """
        given = {name: value for name, value in inputs.items() if name not in _NOT_INPUTS}
        rows_N = mask_BT.flatten().nonzero().squeeze(1)
        if self._is_lean:
            given["logits_to_keep"] = 1
        head, body = find_head(self.model), find_body(self.model)
        with self._context(), watched(head, body) as seen:
            logits_BTV = logits_of(self.model(**given))
        if self._is_lean:
            seen_pass = self._predictions.hidden_pass(seen)
        else:
            seen_pass = self._read_whole(seen, logits_BTV, mask_BT)
        if seen_pass is None:
            raise ConfigError("logit_distillation: the teacher gave no hidden states for this batch")
        previous = self._predictions.recall(self._predictions.keep(seen_pass, rows_N))
        assert previous is not None  # what has just been kept can be read
        return previous

    def _read_whole(self, seen: Any, logits_BTV: Tensor | None, mask_BT: Tensor) -> ForwardOutputs:
        if logits_BTV is None or logits_BTV.shape[:2] != mask_BT.shape:
            shape = None if logits_BTV is None else tuple(logits_BTV.shape)
            raise ConfigError(
                f"logit_distillation: the teacher gave logits of shape {shape} for positions of shape "
                f"{tuple(mask_BT.shape)}; it must be a causal language model"
            )
        read = self._predictions.read(seen, logits_BTV, mask_BT)
        goes_through_head = len(seen.calls) == 1 and seen.hidden is not None
        if goes_through_head and self._predictions.form == "hidden_states" and mask_BT.any():
            self._is_lean = self._can_leave_out_logits and torch.equal(seen.calls[0].hidden, seen.hidden)
        return read
