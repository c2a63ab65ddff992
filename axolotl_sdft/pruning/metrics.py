"""The layer metrics that ship built in. Both come from the cosines between layer boundaries, in one pass."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from axolotl_sdft.hookspecs import hookimpl
from axolotl_sdft.pruning.boundaries import mean_over_tokens
from axolotl_sdft.pruning.score import Batch, LayerMetric, LayerScores, TokenAverage


def angular_distance(model: PreTrainedModel, batches: Sequence[Batch], token_average: TokenAverage) -> LayerScores:
    """Return the mean angle between what enters and what leaves each block, over pi: 0 for none, 1 for opposite.

    arXiv 2403.17887, equation 7, as used by arXiv 2410.09982. There the last token counts (``token_average="last"``).
    """
    mean_KK, num_tokens = mean_over_tokens(model, batches, token_average, lambda cosines: cosines.arccos() / math.pi)
    return _scores("angular_distance", mean_KK, num_tokens, contiguous=True)


def block_influence(model: PreTrainedModel, batches: Sequence[Batch], token_average: TokenAverage) -> LayerScores:
    """Return 1 less the mean cosine between what enters and what leaves each layer.

    ShortGPT, arXiv 2403.03853, equation 1. Layers are chosen one by one. The same formula over
    whole blocks fills the rest of the table.
    """
    mean_KK, num_tokens = mean_over_tokens(model, batches, token_average, lambda cosines: 1 - cosines)
    return _scores("block_influence", mean_KK, num_tokens, contiguous=False)


def _scores(metric: str, mean_KK: Tensor, num_tokens: int, *, contiguous: bool) -> LayerScores:
    costs = tuple(tuple(row) for row in mean_KK.triu(diagonal=1).tolist())
    return LayerScores(metric, len(costs) - 1, costs, contiguous, num_tokens)


@hookimpl
def sdft_register_layer_metrics(register: Callable[[str, LayerMetric], None]) -> None:
    """Register the built-in metrics."""
    register("angular_distance", angular_distance)
    register("block_influence", block_influence)
