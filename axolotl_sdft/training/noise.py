"""What makes two forward passes of the same weights differ, and how far the weights alone move a prediction.

DynSDPB holds a prediction against that of one optimizer step ago. The difference has two sources: the *drift* of the
weights in that step, and the *noise* that training draws anew in each pass, dropout above all. Drift alone is second
order: the term then opposes the last step and acts as a brake. With noise it is first order, a consistency loss as
R-Drop (arXiv 2106.14448) has it.

Shapes: B rows, T positions, N label tokens, V vocabulary.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from axolotl_sdft.core.runtime import rank
from axolotl_sdft.training.batching import TOKEN_TYPES
from axolotl_sdft.training.losses.labels import LabelLayout, returned_logits

log = logging.getLogger(__name__)

_MAX_TOKENS = 2048  # of a pass that only measures
_MAX_LABELS = 256  # whose distributions are compared; with a vocabulary of 128,000 in bfloat16 these are 64 MB
_FEATURES = ("input_ids", "attention_mask", "position_ids", *TOKEN_TYPES)
_RATE = re.compile(r"(dropout(_p|_prob|_rate)?|pdrop|layerdrop|drop_path(_rate)?|jitter_noise)$")


def noise_sources(model: nn.Module) -> list[str]:
    """Return the names of what differs from pass to pass while this model trains; none where nothing does.

    Found are dropout modules, rates that modules use themselves (``attention_dropout`` and the like), and rates of the
    model's config.
    """
    found = {name: None for name, module in model.named_modules() if _draws(module)}
    config = getattr(model, "config", None)
    for part in (config, getattr(config, "text_config", None)):
        found |= {
            f"config.{name}": None for name, value in getattr(part, "__dict__", {}).items() if _is_rate(name, value)
        }
    return list(found)


def _draws(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return any(_is_rate(name, value) for name, value in vars(module).items())


def _is_rate(name: str, value: Any) -> bool:
    return isinstance(value, int | float) and value > 0 and _RATE.search(name) is not None


def warn_without_noise(model: nn.Module, neftune_noise_alpha: float | None) -> bool:
    """Say so on the main rank where nothing differs from pass to pass; return whether anything does.

    Args:
        model: In training, without wrappers.
        neftune_noise_alpha: The trainer's.
    """
    if noise_sources(model) or neftune_noise_alpha:
        return True
    if rank() == 0:
        log.warning(
            "dynsdpb: no dropout is active, so successive predictions differ only by one optimizer step: expect a "
            "brake, not a regulariser. For one, set lora_dropout: 0.1 (with LoRA), or the model's own dropout, such as "
            "attention_dropout or hidden_dropout_prob"
        )
    return False


@contextmanager
def without_noise(model: nn.Module) -> Iterator[None]:
    """Let a model in training run without noise, and without gradients, while the block is open.

    Modules of bitsandbytes keep their mode: on a CPU they repack their 4-bit weights for inference as soon as they run
    in evaluation mode, and training would go on with what they made.
    """
    training = [
        module
        for module in model.modules()
        if module.training and not type(module).__module__.startswith("bitsandbytes.")
    ]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


class DriftMeter:
    """Measures drift and noise every so many steps, each in one more forward pass of a few rows.

    Args:
        every: Number of optimizer steps between two measurements.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._before: tuple[dict[str, Any], Tensor] | None = None
        self._sums: Tensor | None = None

    def measure(
        self, step: int, model: nn.Module, inputs: Mapping[str, Any], layout: LabelLayout, seen: Iterator[Tensor]
    ) -> None:
        """Take part in an optimizer step; call it once in each, before the weights change.

        Args:
            step: Number of the step, from 0 on.
            model: As the trainer calls it.
            inputs: A micro-batch that the step is new to, with its labels.
            layout: Where labels meet logits.
            seen: The noisy logits at its label tokens, in row-major order, some [n, V] at a time.
        """
        if self._before is not None:
            inputs_before, logits_before = self._before
            self._before = None
            logits_now = self._logits(model, inputs_before, layout)
            self._add(0, divergence_sum(logits_before, logits_now), len(logits_before))
        if (step + 1) % self._every or any(torch.is_tensor(inputs.get(name)) for name in set(inputs) & _UNUSUAL):
            return
        rows = first_rows(inputs)
        logits_NV = self._logits(model, rows, layout)
        if not len(logits_NV):
            return
        self._before = rows, logits_NV
        noisy_NV = _first(seen, len(logits_NV))
        self._add(1, divergence_sum(logits_NV, noisy_NV), len(logits_NV))

    def _logits(self, model: nn.Module, rows: Mapping[str, Any], layout: LabelLayout) -> Tensor:
        """Return the logits at the first label tokens of these rows without noise, [N, V]."""
        mask_BT = layout.mask(rows)
        with without_noise(model):
            outputs = model(**{name: rows[name] for name in _FEATURES if name in rows})
            logits_BTV = returned_logits(outputs, mask_BT, layout)
        assert logits_BTV is not None
        return logits_BTV.flatten(0, 1)[mask_BT.flatten().nonzero().squeeze(1)[:_MAX_LABELS]]

    def _add(self, place: int, divergence: Tensor, num_tokens: int) -> None:
        if self._sums is None:
            self._sums = torch.zeros(4, device=divergence.device)
        self._sums[place] += divergence
        self._sums[2 + place] += num_tokens

    def take(self, device: torch.device, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return ``dynsdpb/drift`` and ``dynsdpb/noise`` as token means since the last call, where measured.

        Args:
            device: Where the sums of a rank that has measured nothing are made.
            sum_over_ranks: Called once on every rank.
        """
        sums = torch.zeros(4, device=device) if self._sums is None else self._sums
        self._sums = None
        drift, noise, drift_tokens, noise_tokens = sum_over_ranks(sums).tolist()
        figures = {"dynsdpb/drift": (drift, drift_tokens), "dynsdpb/noise": (noise, noise_tokens)}
        return {name: total / tokens for name, (total, tokens) in figures.items() if tokens}


_UNUSUAL = frozenset({"inputs_embeds", "pixel_values", "input_features", "input_values"})


def first_rows(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first rows of a micro-batch, at most ``_MAX_TOKENS`` positions of them, but one at the least."""
    shape = inputs["input_ids"].shape
    count = max(1, _MAX_TOKENS // max(1, shape[1]))
    return {name: inputs[name][:count] for name in (*_FEATURES, "labels") if torch.is_tensor(inputs.get(name))}


def divergence_sum(logits_NV: Tensor, other_NV: Tensor) -> Tensor:
    """Return ``KL(softmax(logits) || softmax(other))`` in nats, summed over tokens."""
    kl = nn.functional.kl_div
    return kl(other_NV.float().log_softmax(-1), logits_NV.float().log_softmax(-1), log_target=True, reduction="sum")


def _first(parts: Iterator[Tensor], count: int) -> Tensor:
    taken: list[Tensor] = []
    for part in parts:
        taken.append(part)
        if sum(map(len, taken)) >= count:
            break
    return torch.cat(taken)[:count]
