"""The running figures of a distillation, as token means between two logs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from axolotl_sdft.training.losses.dynsdpb import DynSDPBTerms

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

    def take(self, device: torch.device, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the means by their log names, and start again from zero.

        What no token has contributed to is left out: in the first iteration nothing is distilled yet.

        Args:
            device: Where the sums of a rank that has counted nothing are made.
            sum_over_ranks: Called once on every rank.
        """
        sums = torch.zeros(8, device=device) if self._sums is None else self._sums
        self._sums = None
        values = sum_over_ranks(sums).tolist()
        figures = {}
        if values[_CE_TOKENS]:
            figures[f"{self._prefix}/ce"] = values[_CE_SUM] / values[_CE_TOKENS]
        if values[_KL_TOKENS]:
            means = {name: values[place] / values[_KL_TOKENS] for name, place in self._terms.items()}
            figures |= {f"{self._prefix}/{name}": mean for name, mean in means.items()}
        return figures
