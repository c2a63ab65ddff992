"""Distillation from the unpruned seed model for any trainer that descends from ``transformers.Trainer``.

The loss is ``(1 - alpha) * L + alpha * temperature^2 * D(seed, student)`` with the parent's loss ``L`` and a divergence
``D`` of :mod:`axolotl_sdft.training.losses.divergences`, averaged over tokens as the parent averages its own. What a
mixture of experts adds for its routers is no part of ``L`` here, and stays whole. The teacher runs first, without
gradient, on the batch that the parent is given; of what it predicts, only the hidden states of the distilled tokens are
kept while the student runs.

Shapes: B rows, T positions, N distilled tokens.
"""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from axolotl_sdft.config import DynSDPBConfig, LogitDistillationConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.core.runtime import rank
from axolotl_sdft.training.batching import IGNORED_LABEL
from axolotl_sdft.training.losses.dynsdpb import DynSDPBTerms, distil
from axolotl_sdft.training.losses.labels import LabelLayout, NextToken
from axolotl_sdft.training.mixin import DynSDPBMixin
from axolotl_sdft.training.student import RunningFigures, StudentMixin, StudentPass
from axolotl_sdft.training.support import errors_of, parent_of, refuse_parallelism, refuse_vain_distillation
from axolotl_sdft.training.teachers.prediction import Predictions
from axolotl_sdft.training.teachers.seed_model import SeedTeacher, TeacherPlan, plan_teacher
from axolotl_sdft.training.teachers.shared_layers import base_model_of, has_fresh_lora

log = logging.getLogger(__name__)

_BLOCK = "logit_distillation"
_ROUTER_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")


class LogitDistillationMixin(StudentMixin):
    """Goes before a trainer among the bases: ``class MyTrainer(LogitDistillationMixin, Trainer)``.

    With DynSDPB in one trainer, :class:`~axolotl_sdft.DynSDPBMixin` goes first; the seed model then teaches the
    repeated rows too. ``alpha: 0`` is the parent trainer to the bit, and loads no teacher.

    Logged beside the parent's figures, as means per token since the last log: ``logit_distillation/ce`` (the parent's
    loss), ``logit_distillation/kl`` (the divergence in nats, without alpha and temperature squared) and
    ``logit_distillation/agreement`` (share of tokens whose most likely token is the seed model's).

    Args:
        logit_distillation: The settings; when unset, those of a ``LogitDistillationSFTConfig`` given as ``args``, else
            the defaults.
        seed_model: Where the seed model is, a folder or a Hub id; when unset, what the settings name, else what is
            recorded with the pruned checkpoint that the model was loaded from. A model without such a record gets it
            as a teacher of its own. All other arguments are the parent's.

    Raises:
        SdftError: The student can't have the teacher that the settings ask for, or the seed model is gone.
    """

    _block = _BLOCK

    def __init__(
        self,
        *args: Any,
        logit_distillation: LogitDistillationConfig | None = None,
        seed_model: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        self._logit_given, self._logit_seed_model = logit_distillation, seed_model
        self._logit_plan: TeacherPlan | None = None
        self._logit_teacher: SeedTeacher | None = None
        self._logit_reader: Predictions | None = None
        self._logit_is_on = False
        self._logit_has_gradient = False
        self._logit_window_tokens: Any = None
        self._logit_figures = RunningFigures(_BLOCK, ("kl", "agreement"))
        _require_order(type(self))
        super().__init__(*args, **kwargs)
        if self._logit_settings_are_known():
            self._logit_prepare()

    @cached_property
    def logit_distillation_config(self) -> LogitDistillationConfig:
        """The settings, read when they are first needed, and again as each run begins."""
        return self._logit_settings()

    def _logit_settings(self) -> LogitDistillationConfig:
        in_args = getattr(self.args, "logit_distillation_config", None)
        return self._logit_given or in_args or LogitDistillationConfig()

    def _logit_settings_are_known(self) -> bool:
        return True

    def _logit_prepare(self) -> None:
        """Find out which teacher there will be; loads nothing."""
        if self._logit_plan is not None or self.logit_distillation_config.alpha == 0:
            return
        with errors_of(_BLOCK):
            refuse_parallelism(self.args, self.accelerator)
        self._logit_refuse_sharding()
        model = self.accelerator.unwrap_model(self.model)
        is_custom = type(base_model_of(model)).__module__.startswith("transformers_modules")
        self._logit_plan = plan_teacher(
            model, self.logit_distillation_config, self._logit_named_seed(), trust_remote_code=is_custom
        )
        form = "shares the student's own layers" if self._logit_plan.is_shared else "is a model of its own"
        log.info("logit_distillation: the teacher %s (%s)", form, self._logit_plan.reason)

    def _logit_named_seed(self) -> str | Path | None:
        """Return where the seed model is said to be; None where only the student's record can tell."""
        return self._logit_seed_model or self.logit_distillation_config.seed_model

    def _logit_complete(self, teacher: torch.nn.Module) -> torch.nn.Module:
        """Return the teacher as this trainer can run it."""
        return teacher

    def _logit_refuse_sharding(self) -> None:
        deepspeed = getattr(self.accelerator.state, "deepspeed_plugin", None)
        sharding = "FSDP" if self.is_fsdp_enabled else "DeepSpeed ZeRO stage 3" if _zero_stage(deepspeed) == 3 else None
        if sharding is not None:
            raise ConfigError(
                f"logit_distillation needs whole layers on each rank, but {sharding} spreads them over the ranks; "
                "train with DDP (QLoRA saves memory, too), or remove the logit_distillation block"
            )

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the parent does; the teacher lives no longer than one run."""
        self._logit_begin()
        try:
            return super()._inner_training_loop(*args, **kwargs)
        finally:
            self._logit_is_on = self._logit_has_gradient = False
            self._logit_teacher = self._logit_reader = None
            self._logit_figures.clear()

    def _hp_search_setup(self, trial: Any) -> None:
        """Put what a trial of a search proposes into ``args``, as the parent does, and begin with it."""
        super()._hp_search_setup(trial)
        if trial is not None:
            self._logit_begin()

    def _logit_begin(self) -> None:
        settings = self._logit_settings()
        if settings != self.logit_distillation_config:
            self.logit_distillation_config, self._logit_plan = settings, None
        self._logit_prepare()
        if settings.alpha == 0:
            log.info("logit_distillation.alpha is 0: no teacher is loaded, and training is as without the block")
        self._logit_is_on = settings.alpha > 0
        if settings.alpha == 1 and self._logit_plan is not None:
            self._logit_warn_without_difference(self._logit_plan)

    def _logit_warn_without_difference(self, plan: TeacherPlan) -> None:
        if rank() == 0 and plan.origin is None and has_fresh_lora(self.accelerator.unwrap_model(self.model)):
            log.warning(
                "logit_distillation.alpha is 1, but the model was not pruned and its adapter is new, so it says what "
                "its teacher says: all that training follows are rounding errors, and noise such as dropout. Set alpha "
                "below 1 for the labels to teach"
            )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Return the micro-batches of one optimizer step, as the parent does, and count the tokens distilled in it."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._logit_window_tokens = None
        if self._logit_is_on and num_items is not None and self.logit_distillation_config.tokens == "all":
            whole = [self._logit_distilled(inputs) for inputs in [*batches, *self._repeated_inputs(len(batches))]]
            # The parent's own way of counting: it knows about ranks.
            self._logit_window_tokens = self._get_num_items_in_batch(whole, device)
        return batches, num_items

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the parent's loss and the distillation term, each with its share.

        In evaluation, and outside a training loop, it is the parent's loss.

        Raises:
            ConfigError: The student or the teacher shows no logits for the tokens, the student is not a causal language
                model, or the term would have no gradient though the loss has one.
        """
        if not (model.training and self._logit_is_on):
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        with errors_of(_BLOCK):
            num_labels = int(self._logit_layout(inputs).mask(inputs).sum())
            mask_BT = self._logit_layout(inputs).mask(self._logit_distilled(inputs, self._filled_places))
            prediction = self._logit_get_teacher().predict(inputs, mask_BT)
            done = self._student_pass(
                super().compute_loss,
                model,
                dict(inputs),  # trainers take labels out of what they are given
                mask_BT,
                self._logit_get_reader(),
                return_outputs=return_outputs,
                num_items=num_items_in_batch,
            )
            self._logit_check_gradient(done)
            router_loss = self._logit_router_loss(done, num_items_in_batch)
            ce_sum = self._loss_sum(done.loss - router_loss, num_labels, num_items_in_batch)
            self._logit_figures.add_cross_entropy(ce_sum, num_labels)
            rows_N = mask_BT.flatten().nonzero().squeeze(1).to(done.loss.device)
            alpha = self.logit_distillation_config.alpha
            loss = (1.0 - alpha) * done.loss + alpha * router_loss
            if len(rows_N):
                student = done.seen.student_prediction(rows_N, is_constant=False)
                terms = distil(student, prediction, self._logit_comparison("logits"))
                self._logit_figures.add_distillation(terms)
                loss = loss + self._logit_term(terms, num_items_in_batch).to(loss)
        return (loss, done.outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the parent does; training logs also hold the figures of the distillation."""
        if "loss" in logs:
            logs = {**logs, **self._logit_figures.take(self.args.device, self._sum_over_ranks)}
        super().log(logs, *args, **kwargs)

    @property
    def _distils_now(self) -> bool:
        return self._logit_is_on or super()._distils_now

    def _logit_term(self, terms: DynSDPBTerms, num_items: Any) -> Tensor:
        """Return alpha times the term, averaged the way the parent averages its own loss."""
        total = self.logit_distillation_config.alpha * terms.kl_sum
        if self._is_window_mean(num_items):
            count = num_items if self._logit_window_tokens is None else self._logit_window_tokens
            return total * self._rank_scale(num_items) / count
        return total * self._mean_scale(num_items) / terms.num_tokens

    def _logit_router_loss(self, done: StudentPass, num_items: Any) -> Tensor:
        """Return what a mixture of experts adds to the parent's loss to use its experts evenly, whatever the labels."""
        outputs, nothing = done.outputs, torch.zeros_like(done.loss)
        router_loss = outputs.get("aux_loss") if isinstance(outputs, dict) else None
        if not self._is_models_own_loss or not torch.is_tensor(router_loss):
            return nothing
        base = base_model_of(self.accelerator.unwrap_model(self.model))
        places = (base, base.config, base.config.get_text_config())
        coefficients = (getattr(place, name, None) for place in places for name in _ROUTER_COEFFICIENTS)
        coefficient = next((value for value in coefficients if value is not None), 0.0)
        scale = self._rank_scale(num_items) if self.model_accepts_loss_kwargs else 1
        return nothing + scale * coefficient * router_loss.to(done.loss)

    def _logit_comparison(self, storage: Any) -> DynSDPBConfig:
        """Return how predictions are compared, in the terms of the divergence that is shared with DynSDPB."""
        config = self.logit_distillation_config
        return DynSDPBConfig(
            alpha=1.0,
            temperature=config.temperature,
            dynamic_alpha=False,
            dynamic_temperature=False,
            divergence=config.divergence,
            teacher_storage=storage,
            chunk_tokens=config.chunk_tokens,
        )

    def _logit_layout(self, inputs: dict[str, Any]) -> LabelLayout:
        layout = self._label_layout(inputs)
        if not isinstance(layout, NextToken):
            name = type(self.accelerator.unwrap_model(self.model)).__name__
            raise ConfigError(
                f"logit_distillation: {name} is not a causal language model, and the head of another kind has learnt "
                "nothing yet that it could teach; remove the logit_distillation block"
            )
        return layout

    def _logit_distilled(self, inputs: dict[str, Any], filled_BT: Tensor | None = None) -> dict[str, Any]:
        """Return a batch whose labels are the tokens that are distilled; none where it was filled up."""
        if self.logit_distillation_config.tokens == "answers":
            return inputs
        labels_BT = all_tokens(inputs, self._logit_pad_token())
        if filled_BT is not None:
            labels_BT = labels_BT.masked_fill(filled_BT.to(labels_BT.device), IGNORED_LABEL)
        return {"labels": labels_BT}

    def _logit_pad_token(self) -> int | None:
        pad_id = getattr(self.processing_class, "pad_token_id", None)
        return pad_id if isinstance(pad_id, int) else None

    def _logit_get_teacher(self) -> SeedTeacher:
        if self._logit_teacher is None:
            assert self._logit_plan is not None
            # Loaded as late as this, the student is on its device and in its final precision.
            model = self._logit_complete(self._logit_plan.load(self.accelerator.unwrap_model(self.model)))
            self._logit_teacher = SeedTeacher(model, self._logit_comparison("auto"), self.accelerator.autocast)
        return self._logit_teacher

    def _logit_get_reader(self) -> Predictions:
        if self._logit_reader is None:
            self._logit_reader = self._student_reader(self._logit_comparison("logits"))
        return self._logit_reader

    def _logit_check_gradient(self, done: StudentPass) -> None:
        if not self._logit_has_gradient:
            alpha = self.logit_distillation_config.alpha
            refuse_vain_distillation(self, parent_of(self, LogitDistillationMixin), done.loss, done.seen.source, alpha)
            self._logit_has_gradient = True


def all_tokens(inputs: dict[str, Any], pad_token_id: int | None = None) -> Tensor:
    """Return labels for all tokens of a batch that something predicts, [B, T]; -100 at padding.

    The first token of a text is left out, too: what comes before it is of another sample of a packed row, or padding.

    Args:
        inputs: The batch.
        pad_token_id: Fills the end of packed rows, which come without an attention mask.

    Raises:
        ConfigError: There are no token ids.
    """
    ids_BT = inputs.get("input_ids")
    if not torch.is_tensor(ids_BT):
        raise ConfigError("logit_distillation.tokens is all, but the batch holds no input_ids; set it to answers")
    is_token_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    is_token_BT[:, 0] = False  # old versions of transformers would count it
    mask = inputs.get("attention_mask")
    if torch.is_tensor(mask) and mask.dim() == 2:
        is_token_BT &= mask != 0
        is_token_BT[:, 1:] &= mask[:, :-1] != 0
    elif pad_token_id is not None:
        is_token_BT &= ~_trailing(ids_BT == pad_token_id)
        labels = inputs.get("labels")
        if torch.is_tensor(labels):  # where the end of a text is the token that fills rows
            is_token_BT |= labels != IGNORED_LABEL
    positions = inputs.get("position_ids")
    if torch.is_tensor(positions):
        positions_BT = positions if positions.dim() == 2 else positions[0]
        is_token_BT &= positions_BT != 0
    return ids_BT.masked_fill(~is_token_BT, IGNORED_LABEL)


def _trailing(is_so_BT: Tensor) -> Tensor:
    """Return where it is so from there to the end of the row."""
    return is_so_BT.flip(1).long().cumprod(1).flip(1).bool()


def _require_order(trainer: type) -> None:
    bases = trainer.__mro__
    if DynSDPBMixin in bases and bases.index(DynSDPBMixin) > bases.index(LogitDistillationMixin):
        raise ConfigError(
            f"{trainer.__name__} has LogitDistillationMixin before DynSDPBMixin among its bases, but the seed model is "
            "to teach the joined batches; swap the two"
        )


def _zero_stage(deepspeed: Any) -> int:
    stage = getattr(deepspeed, "zero_stage", 0)
    return stage if isinstance(stage, int) else 0
