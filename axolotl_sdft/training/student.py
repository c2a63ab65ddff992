"""What all distillations need of a trainer: the student's predictions in the parent's pass, averaging, running figures.

Shapes: B rows, T positions, V vocabulary.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.core.errors import first_line
from axolotl_sdft.training.batching import TOKEN_TYPES
from axolotl_sdft.training.losses.dynsdpb import DynSDPBTerms
from axolotl_sdft.training.losses.head import leaving_no_trace
from axolotl_sdft.training.losses.labels import LabelLayout, label_layout, returned_logits
from axolotl_sdft.training.support import errors_of, refuse_bypassed_loss, refuse_prompt_tuning
from axolotl_sdft.training.teachers.prediction import ForwardOutputs, Predictions

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from transformers import Trainer as _Parent
else:
    _Parent = object


@dataclass(frozen=True)
class StudentPass:
    """The parent's loss on a batch, and what the model predicted on the way."""

    loss: Tensor
    outputs: Any
    """What the model returned, as far as gradients can pass it; None where nothing was asked for or seen."""

    seen: ForwardOutputs


class StudentMixin(_Parent):
    """Goes before a trainer among the bases; it changes nothing by itself."""

    distillation_label_layout: LabelLayout | None = None
    """Where labels meet logits; set it in a subclass for a model whose class doesn't tell."""

    _block = "dynsdpb"
    """The YAML block that errors name."""

    _filled_places: Tensor | None = None
    """Where the batch at hand was filled up when it was joined, [B, T]; None where it was not joined."""

    _asks_for_outputs = True
    """Whether the parent is asked for the outputs of its pass, rather than watched alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._found_layout: LabelLayout | None = None
        self._found_own_mean: bool | None = None
        self._has_made_pass = False
        super().__init__(*args, **kwargs)
        with errors_of(self._block):
            refuse_prompt_tuning(self.model)

    @property
    def _distils_now(self) -> bool:
        """Whether each micro-batch that is trained goes through a pass of ours."""
        return False

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Train on a micro-batch as the parent does.

        Raises:
            ConfigError: A ``compute_loss`` in front of this one has left it out.
        """
        self._has_made_pass = False
        loss = super().training_step(*args, **kwargs)
        if self._distils_now and not self._has_made_pass:
            with errors_of(self._block):
                refuse_bypassed_loss(type(self))
        return loss

    def _label_layout(self, inputs: dict[str, Any]) -> LabelLayout:
        if self._found_layout is None:
            self._found_layout = self.distillation_label_layout or label_layout(
                self.accelerator.unwrap_model(self.model), inputs
            )
        return self._found_layout

    def _repeated_inputs(self, num_micro_batches: int) -> list[dict[str, Any]]:
        """Return the micro-batches of the step before that the next one, of so many, will repeat."""
        return []

    def _student_reader(self, config: DynSDPBConfig) -> Predictions:
        """Return what reads the student's predictions, as leanly as the way it is run allows."""
        model = self.accelerator.unwrap_model(self.model)
        return Predictions(model, config, can_watch=self._can_watch, context=self.accelerator.autocast)

    @property
    def _can_watch(self) -> bool:
        """Whether the model's modules are whole on this rank, and called as such: neither sharded nor compiled."""
        model = self.accelerator.unwrap_model(self.model)
        deepspeed = getattr(self.accelerator.state, "deepspeed_plugin", None)
        is_sharded = self.is_fsdp_enabled or getattr(deepspeed, "zero_stage", 0) == 3
        is_compiled = self.args.torch_compile or getattr(model, "_compiled_call_impl", None) is not None
        return not (is_sharded or is_compiled or hasattr(self.model, "_orig_mod"))

    def _student_pass(
        self,
        compute_loss: Callable[..., Any],
        model: torch.nn.Module,
        inputs: dict[str, Any],
        mask_BT: Tensor,
        reader: Predictions,
        *,
        return_outputs: bool,
        num_items: Any,
    ) -> StudentPass:
        """Let the parent compute its loss, and read the predictions off its pass.

        Args:
            compute_loss: The parent's.
            model: As the parent is given it, with its wrappers.
            inputs: The batch; the parent may take things out of it.
            mask_BT: Where predictions are distilled.
            reader: Made by :meth:`_student_reader`.
            return_outputs: The caller needs the outputs.
            num_items: The parent's count of tokens.
        """
        self._has_made_pass = True
        layout = self._label_layout(inputs)
        if num_items is not None:
            self._find_own_mean(inputs, layout)
        # A model compiled in place would be compiled anew for each hook.
        is_watched = getattr(model, "_compiled_call_impl", None) is None
        asks = return_outputs or self._asks_for_outputs or not is_watched
        with reader.watched(model if is_watched else None) as watched:
            result = compute_loss(model, inputs, return_outputs=asks, num_items_in_batch=num_items)
        loss, outputs = result if asks else (result, None)
        outputs = watched.trained_outputs(outputs)
        if watched.num_uncounted and len(watched.outputs) == 1:
            self._asks_for_outputs = False  # the parent makes a pass of their own for them
        seen = reader.read(watched, returned_logits(outputs, mask_BT, layout), mask_BT, inputs)
        return StudentPass(loss, outputs, seen)

    def _is_window_mean(self, num_items: Any) -> bool:
        """Whether the parent's loss is a share of the window's mean, rather than the mean of one micro-batch."""
        declared = getattr(self, "loss_is_scaled_for_ga", None)  # since transformers 5.20
        if declared is not None:
            return bool(declared)
        if self._is_models_own_mean():
            return False
        return num_items is not None and (self.model_accepts_loss_kwargs or self.compute_loss_func is not None)

    def _is_models_own_mean(self) -> bool:
        if not self._is_models_own_loss or self._found_layout is None:
            return False
        return self._found_layout.has_own_mean or bool(self._found_own_mean)

    @property
    def _is_models_own_loss(self) -> bool:
        return self.label_smoother is None and self.compute_loss_func is None

    def _find_own_mean(self, inputs: dict[str, Any], layout: LabelLayout) -> None:
        """Find out once whether the model divides its loss by itself, where that can be asked and matters."""
        has_parts = self.args.gradient_accumulation_steps > 1 or self.args.world_size > 1
        can_ask = self._is_models_own_loss and self.model_accepts_loss_kwargs and self._can_watch
        if self._found_own_mean is None and has_parts and can_ask and not layout.has_own_mean:
            with self.accelerator.autocast():
                model = self.accelerator.unwrap_model(self.model)
                self._found_own_mean = has_own_mean(model, inputs, layout.trained(inputs))

    def _mean_scale(self, num_items: Any) -> int:
        """Return by what the parent multiplies the mean of one micro-batch: it takes it for a share of the window's."""
        is_mistaken = self._is_models_own_mean() and self.model_accepts_loss_kwargs
        return self._rank_scale(num_items) if is_mistaken else 1

    def _rank_scale(self, num_items: Any) -> int:
        """Return by what the parent multiplies a loss that it has divided by the tokens of all ranks.

        Gradients are averaged over ranks, which divides once more.
        """
        if num_items is None or not self.args.average_tokens_across_devices:
            return 1
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        return self.accelerator.num_processes // (parallelism.tp_size if parallelism is not None else 1)

    def _sum_over_ranks(self, sums: Tensor) -> Tensor:
        return self.accelerator.reduce(sums, "sum") if self.accelerator.num_processes > 1 else sums

    def _loss_sum(self, loss: Tensor, num_tokens: int, num_items: Any) -> Tensor:
        """Return the parent's loss on a micro-batch as a sum over its label tokens, as a constant."""
        if self._is_window_mean(num_items) and num_items is not None:
            return loss.detach() * num_items / self._rank_scale(num_items)
        return loss.detach() * num_tokens / self._mean_scale(num_items)


_PROBED_TOKENS = 16


def has_own_mean(model: torch.nn.Module, inputs: Mapping[str, Any], trained_N: Tensor) -> bool | None:
    """Whether a causal language model divides its loss by the tokens of the micro-batch, whatever count it is given.

    The loss of a few tokens is computed for two counts. None where there are too few tokens to tell.

    Args:
        model: Without wrappers for several ranks.
        inputs: A micro-batch; it names the kinds of tokens that some models must be given.
        trained_N: Its trained tokens: those stand for text, not for pictures.
    """
    ids = trained_N[None, :_PROBED_TOKENS]
    count = torch.tensor(ids.shape[1] - 1, device=ids.device)
    if count < 1:
        return None
    given = {name: torch.zeros_like(ids) for name in TOKEN_TYPES if name in inputs} | {"input_ids": ids, "labels": ids}
    losses = []
    for num_items in (count, 2 * count):
        with torch.no_grad(), leaving_no_trace(model):  # each time with the same random numbers
            try:
                outputs = model(**given, num_items_in_batch=num_items)
            except Exception as err:  # whatever a model needs beside tokens
                log.info("%s: how its loss is divided could not be asked (%s)", type(model).__name__, first_line(err))
                return False
        losses.append(float(outputs["loss"] if isinstance(outputs, dict) else outputs[0]))
    return math.isclose(*losses, rel_tol=1e-3)


_CE_SUM, _CE_TOKENS, _KL_TOKENS, *_TERM_PLACES = range(8)
_TERMS = dict(zip(("kl", "alpha", "temperature", "uncertainty", "agreement"), _TERM_PLACES, strict=True))
ALL_TERMS = tuple(_TERMS)


class RunningFigures:
    """Sums since the last log. They stay on the device, so that counting never waits for it.

    Args:
        prefix: Comes before the name of each figure, with a slash.
        terms: Which figures of the distilled tokens are given.
    """

    def __init__(self, prefix: str = "dynsdpb", terms: Sequence[str] = ALL_TERMS) -> None:
        self._prefix, self._terms = prefix, {name: _TERMS[name] for name in terms}
        self._sums: Tensor | None = None

    def add_cross_entropy(self, loss_sum: Tensor, num_tokens: int) -> None:
        """Count the cross-entropy of a joined micro-batch, given as a sum over its label tokens."""
        # Without label tokens a mean loss is 0/0, which must not spoil the other micro-batches.
        if num_tokens:
            self._add({_CE_SUM: loss_sum.detach(), _CE_TOKENS: num_tokens})

    def add_distillation(self, terms: DynSDPBTerms) -> None:
        """Count the distilled tokens of a micro-batch."""
        sums = (
            terms.divergence_sum,
            terms.alpha_sum,
            terms.temperature_sum,
            terms.uncertainty_sum,
            terms.agreement_sum,
        )
        self._add({**dict(zip(_TERM_PLACES, sums, strict=True)), _KL_TOKENS: terms.num_tokens})

    def _add(self, values: dict[int, Tensor | int]) -> None:
        if self._sums is None:
            device = next(value.device for value in values.values() if torch.is_tensor(value))
            self._sums = torch.zeros(8, device=device)
        for place, value in values.items():
            self._sums[place] += value

    def clear(self) -> None:
        """Forget what has been counted, so that no figure of one run stands in the log of the next."""
        self._sums = None

    def take(self, device: torch.device, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the means by their log names, and start again from zero.

        What no token has contributed to is left out: in the first iteration nothing is distilled yet.

        Args:
            device: Where the sums of a rank that has counted nothing are made.
            sum_over_ranks: Called once on every rank.
        """
        sums = torch.zeros(8, device=device) if self._sums is None else self._sums
        self.clear()
        values = sum_over_ranks(sums).tolist()
        figures = {}
        if values[_CE_TOKENS]:
            figures[f"{self._prefix}/ce"] = values[_CE_SUM] / values[_CE_TOKENS]
        if values[_KL_TOKENS]:
            means = {name: values[place] / values[_KL_TOKENS] for name, place in self._terms.items()}
            figures |= {f"{self._prefix}/{name}": mean for name, mean in means.items()}
        return figures
