"""The running figures of DynSDPB training, as token means between two logs."""

from collections.abc import Callable

import torch
from torch import Tensor

from axolotl_sdft.dynsdpb.loss import DynSDPBTerms

_CE_SUM, _CE_TOKENS, _KL_SUM, _ALPHA_SUM, _TEMPERATURE_SUM, _KL_TOKENS = range(6)


class RunningFigures:
    """Sums since the last log. They stay on the device, so that counting never waits for it."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add_cross_entropy(self, loss_sum: Tensor, num_tokens: int) -> None:
        """Count the cross-entropy of a joined micro-batch, given as a sum over its label tokens."""
        # Without label tokens a mean loss is 0/0, which must not spoil the other micro-batches.
        if num_tokens:
            self._add({_CE_SUM: loss_sum.detach(), _CE_TOKENS: num_tokens})

    def add_distillation(self, terms: DynSDPBTerms) -> None:
        """Count the distilled tokens of a micro-batch."""
        sums = {_KL_SUM: terms.divergence_sum, _ALPHA_SUM: terms.alpha_sum, _TEMPERATURE_SUM: terms.temperature_sum}
        self._add({**sums, _KL_TOKENS: terms.num_tokens})

    def _add(self, values: dict[int, Tensor | int]) -> None:
        if self._sums is None:
            device = next(value.device for value in values.values() if torch.is_tensor(value))
            self._sums = torch.zeros(6, device=device)
        for place, value in values.items():
            self._sums[place] += value

    def take(self, device: torch.device, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the means by their log names, and start again from zero.

        What no token has contributed to is left out: in the first iteration nothing is distilled yet.

        Args:
            device: Where the sums of a rank that has counted nothing are made.
            sum_over_ranks: Called once on every rank.
        """
        sums = torch.zeros(6, device=device) if self._sums is None else self._sums
        self._sums = None
        values = sum_over_ranks(sums).tolist()
        figures = {}
        if values[_CE_TOKENS]:
            figures["dynsdpb/ce"] = values[_CE_SUM] / values[_CE_TOKENS]
        if values[_KL_TOKENS]:
            figures["dynsdpb/kl"] = values[_KL_SUM] / values[_KL_TOKENS]
            figures["dynsdpb/alpha"] = values[_ALPHA_SUM] / values[_KL_TOKENS]
            figures["dynsdpb/temperature"] = values[_TEMPERATURE_SUM] / values[_KL_TOKENS]
        return figures
