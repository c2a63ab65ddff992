"""DynSDPB training (arXiv 2411.16991) for any trainer that descends from ``transformers.Trainer``.

In each optimizer step the mini-batch of the step before is seen again beside the new one. The parent trainer computes
its own loss on both, exactly as if they had come as one batch; on the repeated half the distillation term is added.
With ``alpha: 0`` this is plain training on the joined batches.

Shapes: B rows, T positions, N label tokens, V vocabulary.
"""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.training.batching import filled_places
from axolotl_sdft.training.losses.dynsdpb import StudentPrediction, distil
from axolotl_sdft.training.noise import DriftMeter, warn_without_noise
from axolotl_sdft.training.student import RunningFigures, StudentMixin
from axolotl_sdft.training.support import parent_of, refuse_parallelism, refuse_vain_distillation
from axolotl_sdft.training.teachers.prediction import ForwardOutputs, Predictions
from axolotl_sdft.training.teachers.previous_prediction import TeacherPrediction
from axolotl_sdft.training.teachers.replay_buffer import MicroBatch, PreviousMiniBatch, load_memory, save_memory

log = logging.getLogger(__name__)


class DynSDPBMixin(StudentMixin):
    """Goes before a trainer among the bases: ``class MyTrainer(DynSDPBMixin, Trainer)``.

    The batch size keeps its meaning: new samples per step. Each sample goes through the model twice, in two
    successive steps, except those of the last. The first step of a run repeats nothing. What it remembers is saved with
    each checkpoint that holds the optimizer, one file for each rank, and a resumed run goes on with it.

    Logged beside the parent's figures, as means per token since the last log: ``dynsdpb/ce`` (the parent's loss),
    ``dynsdpb/kl`` (divergence from the previous prediction, without influence and temperature squared),
    ``dynsdpb/alpha``, ``dynsdpb/temperature``, ``dynsdpb/uncertainty`` (of the previous prediction) and
    ``dynsdpb/agreement`` (share of tokens whose most likely token is the same as before).

    Where dropout is active, every ``drift_steps`` steps, at temperature 1: ``dynsdpb/drift`` (divergence that the last
    optimizer step made, without noise) and ``dynsdpb/noise`` (divergence of a noisy prediction from that of the same
    weights without noise).

    Args:
        dynsdpb: Influence and temperature; when unset, those of a ``DynSDPBSFTConfig`` given as ``args``, else the
            defaults. All other arguments are the parent's.
    """

    def __init__(self, *args: Any, dynsdpb: DynSDPBConfig | None = None, **kwargs: Any) -> None:
        self._dynsdpb_given = dynsdpb
        self._dynsdpb_memory = PreviousMiniBatch()
        self._dynsdpb_predictions: Predictions | None = None
        self._dynsdpb_figures = RunningFigures()
        self._dynsdpb_window_tokens: Tensor | int = 0
        self._dynsdpb_has_gradient = False
        self._dynsdpb_drift: DriftMeter | None = None
        super().__init__(*args, **kwargs)

    @cached_property
    def dynsdpb_config(self) -> DynSDPBConfig:
        """The settings, read when they are first needed, and again as each run begins."""
        return self._dynsdpb_settings()

    def _dynsdpb_settings(self) -> DynSDPBConfig:
        return self._dynsdpb_given or getattr(self.args, "dynsdpb_config", None) or DynSDPBConfig()

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the parent does; what is remembered lives no longer than one run, and as long as its checkpoints."""
        self._dynsdpb_forget()
        self._dynsdpb_begin()
        checkpoint = kwargs.get("resume_from_checkpoint", args[2] if len(args) > 2 else None)
        if checkpoint:
            self._dynsdpb_resume(Path(checkpoint))
        try:
            return super()._inner_training_loop(*args, **kwargs)
        finally:
            self._dynsdpb_forget()

    def _hp_search_setup(self, trial: Any) -> None:
        """Put what a trial of a search proposes into ``args``, as the parent does, and begin with it."""
        super()._hp_search_setup(trial)
        if trial is not None:
            self._dynsdpb_begin()

    def _dynsdpb_begin(self) -> None:
        self.dynsdpb_config = self._dynsdpb_settings()
        self._dynsdpb_drift = self._dynsdpb_drift_meter()

    def _dynsdpb_drift_meter(self) -> DriftMeter | None:
        config = self.dynsdpb_config
        model = self.accelerator.unwrap_model(self.model)
        has_noise = config.alpha == 0 or warn_without_noise(model, self.args.neftune_noise_alpha)
        return DriftMeter(config.drift_steps) if has_noise and config.drift_steps and self._can_watch else None

    def _dynsdpb_resume(self, checkpoint: Path) -> None:
        """Remember what was saved with the checkpoint, on all ranks or on none: they count tokens together."""
        place = (checkpoint, self.args.process_index, self.args.world_size, self.args.device)
        window = load_memory(*place, cpu_offload=self.dynsdpb_config.cpu_offload)
        if self.args.world_size > 1:
            lengths = self.accelerator.gather(torch.tensor([len(window)], device=self.args.device)).tolist()
            if window and 0 in lengths:
                log.warning("dynsdpb: %s lacks the memory of other ranks; the first step repeats nothing", checkpoint)
                window = []
        self._dynsdpb_memory.restore(window)

    def _dynsdpb_forget(self) -> None:
        self._dynsdpb_memory.clear()
        self._dynsdpb_figures.clear()
        self._dynsdpb_predictions = None
        self._found_layout = self._found_own_mean = None
        self._filled_places = None
        self._dynsdpb_has_gradient = False

    def _save_rng_state(self, output_dir: str) -> None:
        """Save what the parent does for the next run to go on as this one would have, and the memory with it."""
        super()._save_rng_state(output_dir)
        save_memory(self._dynsdpb_memory.window, Path(output_dir), self.args.process_index, self.args.world_size)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Return the micro-batches of one optimizer step, as the parent does, and turn to the next iteration.

        The number of label tokens by which the parent divides its loss grows by those that will be repeated.
        """
        refuse_parallelism(self.args, self.accelerator)
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        repeated = self._dynsdpb_memory.begin_window(len(batches))
        self._dynsdpb_window_tokens = sum(micro_batch.num_tokens for micro_batch in repeated)
        if repeated and num_items is not None:
            # The parent's own way of counting: it knows about ranks, and about labels that are predicted by nothing.
            inputs = [micro_batch.inputs for micro_batch in repeated]
            self._dynsdpb_window_tokens = self._get_num_items_in_batch(inputs, device)
            num_items = num_items + self._dynsdpb_window_tokens
        return batches, num_items

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the parent's loss on the previous and the new micro-batch together, plus the distillation term.

        In evaluation, and outside a training loop, it is the parent's loss on ``inputs``. The outputs, when asked
        for, are those of the joined batch, previous rows first.

        Raises:
            ConfigError: The model shows no logits for the labels, its labels can't be distilled, its inputs can't be
                joined, or the term would have no gradient though the loss has one.
        """
        if not (model.training and self._dynsdpb_memory.is_open):
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        layout = self._label_layout(inputs)
        previous = self._dynsdpb_memory.take()
        joined = self._dynsdpb_join(previous, inputs)
        mask_BT = layout.mask(joined)
        predictions = self._dynsdpb_reader()
        done = self._student_pass(
            super().compute_loss,
            model,
            joined,
            mask_BT,
            predictions,
            return_outputs=return_outputs,
            num_items=num_items_in_batch,
        )
        loss, outputs, seen = done.loss, done.outputs, done.seen
        self._dynsdpb_check_gradient(loss, seen)
        rows_N = mask_BT.flatten().nonzero().squeeze(1).to(loss.device)
        loss_sum = self._loss_sum(loss, len(rows_N), num_items_in_batch)
        self._dynsdpb_figures.add_cross_entropy(loss_sum, len(rows_N))
        num_previous = previous.num_tokens if previous else 0
        if previous is not None and num_previous:
            student = seen.student_prediction(rows_N[:num_previous], is_constant=self.dynsdpb_config.alpha == 0)
            term = self._dynsdpb_term(student, previous, predictions.recall(previous.kept), num_items_in_batch)
            loss = loss + term.to(loss)
        if self._dynsdpb_drift is not None and not self._dynsdpb_memory.window:
            parts = seen.raw_parts(rows_N[num_previous:], self.dynsdpb_config.chunk_tokens)
            noisy = (seen.logit_transform(raw_CV) for raw_CV in parts)
            self._dynsdpb_drift.measure(self.state.global_step, model, inputs, layout, noisy)
        kept = predictions.keep(seen, rows_N[num_previous:])
        self._dynsdpb_memory.remember(inputs, kept, cpu_offload=self.dynsdpb_config.cpu_offload)
        return (loss, outputs) if return_outputs else loss

    @property
    def _distils_now(self) -> bool:
        return self._dynsdpb_memory.is_open or super()._distils_now

    def _repeated_inputs(self, num_micro_batches: int) -> list[dict[str, Any]]:
        return [micro_batch.inputs for micro_batch in self._dynsdpb_memory.window[:num_micro_batches]]

    def _dynsdpb_check_gradient(self, loss: Tensor, seen: ForwardOutputs) -> None:
        alpha = self.dynsdpb_config.alpha
        if alpha and not self._dynsdpb_has_gradient:
            refuse_vain_distillation(self, parent_of(self, DynSDPBMixin), loss, seen.source, alpha)
            self._dynsdpb_has_gradient = True

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the parent does; training logs also hold the figures of DynSDPB."""
        if "loss" in logs:
            for figures in (self._dynsdpb_figures, self._dynsdpb_drift):
                if figures is not None:
                    logs = {**logs, **figures.take(self.args.device, self._sum_over_ranks)}
        super().log(logs, *args, **kwargs)

    def _dynsdpb_join(self, previous: MicroBatch | None, inputs: dict[str, Any]) -> dict[str, Any]:
        if previous is None:
            self._filled_places = None
            return dict(inputs)  # trainers take labels out of what they are given, but these will be needed again
        model_config = getattr(self.accelerator.unwrap_model(self.model), "config", None)
        one_row = self._dynsdpb_joins_end_to_end or "flash" in str(getattr(model_config, "_attn_implementation", ""))
        pad_ids = (getattr(source, "pad_token_id", None) for source in (self.processing_class, model_config))
        # Which token fills the rows makes no difference, so any token of the vocabulary will do.
        pad_token_id = next((pad_id for pad_id in pad_ids if isinstance(pad_id, int) and pad_id >= 0), 0)
        joined = self._label_layout(inputs).join(previous.inputs, inputs, pad_token_id, one_row=one_row)
        self._filled_places = filled_places(previous.inputs, inputs, joined)
        return joined

    @property
    def _dynsdpb_joins_end_to_end(self) -> bool:
        """Whether packed rows stay one row, whatever the attention needs."""
        return False

    def _dynsdpb_reader(self) -> Predictions:
        if self._dynsdpb_predictions is None:
            self._dynsdpb_predictions = self._student_reader(self.dynsdpb_config)
        return self._dynsdpb_predictions

    def _dynsdpb_term(
        self, student: StudentPrediction, previous: MicroBatch, prediction: TeacherPrediction | None, num_items: Any
    ) -> Tensor:
        """Return the distillation term, divided the way the parent divides its own loss."""
        if prediction is None:
            log.warning("dynsdpb: what the checkpoint remembers can't be read here; its last step is not distilled")
            return torch.zeros(())
        labels_N = None
        if self.dynsdpb_config.teacher_correct_only:
            labels_N = self._label_layout(previous.inputs).trained(previous.inputs).to(student.raw.device)
        terms = distil(student, prediction, self.dynsdpb_config, labels_N)
        self._dynsdpb_figures.add_distillation(terms)
        if self._is_window_mean(num_items):
            return terms.kl_sum * self._rank_scale(num_items) / self._dynsdpb_window_tokens
        return terms.kl_sum * self._mean_scale(num_items) / terms.num_tokens
