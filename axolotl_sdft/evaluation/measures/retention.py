"""Says in percent of the seed what quality a model has kept. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from axolotl_sdft.evaluation.measures.bootstrap import Resampler, transformed
from axolotl_sdft.evaluation.metrics import Figure

if TYPE_CHECKING:
    from axolotl_sdft.evaluation.measures.likelihood import RowSums


@dataclass(frozen=True)
class MeasuredRows:
    """What was measured of a model row by row; empty where something was not. All models have the same rows."""

    held_out: "Sequence[RowSums]" = ()
    general: "Sequence[RowSums]" = ()
    exact_match: Sequence[bool] = ()
    tasks: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Scores of each question, by task."""


def quality_kept(seed: MeasuredRows, model: MeasuredRows, resampler: Resampler) -> dict[str, Figure]:
    """Return the quality that a model has kept, in percent of the seed, by source.

    ``tasks``: the mean score over the tasks. ``exact_match``: the share of right answers. ``held_out`` and ``general``:
    the perplexity of the seed divided by that of the model, ``exp(nll of the seed - nll of the model)``. Rows are
    resampled for both at once, since both find the same ones hard. A source that is missing in one of the two is left
    out, and so is one in which the seed scores 0.

    Raises:
        ValueError: Seed and model were measured on different numbers of rows.
    """
    kept: dict[str, Figure] = {}
    tasks = [task for task in seed.tasks if task in model.tasks]
    if any(any(seed.tasks[task]) for task in tasks):
        scores = ([rows.tasks[task] for task in tasks] for rows in (model, seed))
        kept["tasks"] = resampler.quotient_of_means(*scores)
    if any(seed.exact_match) and model.exact_match:
        ones = [1] * len(seed.exact_match)
        kept["exact_match"] = resampler.quotient(model.exact_match, ones, seed.exact_match, ones)
    for name in ("held_out", "general"):
        rows = getattr(seed, name), getattr(model, name)
        if all(rows):
            kept[name] = _perplexity_quotient(*rows, resampler)
    return {name: transformed(figure, lambda share: 100 * share) for name, figure in kept.items()}


def _perplexity_quotient(seed: "Sequence[RowSums]", model: "Sequence[RowSums]", resampler: Resampler) -> Figure:
    nll, tokens = ([[getattr(row, name) for row in rows] for rows in (seed, model)] for name in ("nll", "tokens"))
    return resampler.quotient(nll[0], tokens[0], nll[1], tokens[1], np.exp)
