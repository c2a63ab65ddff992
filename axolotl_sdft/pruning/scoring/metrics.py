"""The layer metrics that ship built in. Two come from the cosines between layer boundaries, in one pass.

Every command loads this module with the plugins, so torch comes with the first measurement only.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from axolotl_sdft.plugins.specifications import hookimpl
from axolotl_sdft.pruning.checkpoint.architecture import layer_count
from axolotl_sdft.pruning.scoring.scores import Batch, LayerMetric, LayerScores, ScoringOptions, metric_traits

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@metric_traits(needs_block=True)
def angular_distance(model: "PreTrainedModel", batches: Sequence[Batch], options: ScoringOptions) -> LayerScores:
    """Return the mean angle between what enters and what leaves each block, over pi: 0 for none, 1 for opposite.

    arXiv 2403.17887, equation 7, as used by arXiv 2410.09982. There the last token counts (``token_reduction="last"``).
    """
    mean_KK, num_tokens = _mean_over_tokens(model, batches, options, lambda cosines: cosines.arccos() / math.pi)
    return _scores("angular_distance", mean_KK, num_tokens, contiguous=True)


def block_influence(model: "PreTrainedModel", batches: Sequence[Batch], options: ScoringOptions) -> LayerScores:
    """Return 1 less the mean cosine between what enters and what leaves each layer.

    ShortGPT, arXiv 2403.03853, equation 1. Layers are chosen one by one. The same formula over
    whole blocks fills the rest of the table.
    """
    mean_KK, num_tokens = _mean_over_tokens(model, batches, options, lambda cosines: 1 - cosines)
    return _scores("block_influence", mean_KK, num_tokens, contiguous=False)


@metric_traits(is_greedy=True)
def perplexity(model: "PreTrainedModel", batches: Sequence[Batch], options: ScoringOptions) -> LayerScores:
    """Return the layers in the order in which they go: each time the one that the calibration text misses least."""
    from axolotl_sdft.pruning.scoring.perplexity import greedy_removals

    return greedy_removals(model, batches, options)


@metric_traits(needs_block=True, tries_blocks=True)
def divergence(model: "PreTrainedModel", batches: Sequence[Batch], options: ScoringOptions) -> LayerScores:
    """Return how far from the seed model the best few blocks by angular distance leave it, bare and patched."""
    from axolotl_sdft.pruning.patching.ranking import tried_blocks

    known = options.known or angular_distance(model, batches, options)
    return tried_blocks(model, batches, options, known)


@metric_traits(needs_text=False, is_greedy=True)
def last(model: "PreTrainedModel", batches: Sequence[Batch], options: ScoringOptions) -> LayerScores:
    """Return the layers from the deepest up, without the very last one: nothing is measured.

    The simple baseline of arXiv 2403.17887, section 4.4, which keeps the last layer since the head is used to it.
    """
    num_layers = layer_count(model.config.to_dict())
    end = num_layers - max(1, options.protect_last)
    order = tuple(reversed(range(options.protect_first, end)))
    return LayerScores("last", num_layers, (), False, 0, removal_order=order)


def _mean_over_tokens(
    model: "PreTrainedModel",
    batches: Sequence[Batch],
    options: ScoringOptions,
    of_cosines: "Callable[[Tensor], Tensor]",
) -> "tuple[Tensor, int]":
    from axolotl_sdft.pruning.scoring.boundaries import mean_over_tokens

    return mean_over_tokens(model, batches, options.token_reduction, of_cosines)


def _scores(metric: str, mean_KK: "Tensor", num_tokens: int, *, contiguous: bool) -> LayerScores:
    costs = tuple(tuple(row) for row in mean_KK.triu(diagonal=1).tolist())
    return LayerScores(metric, len(costs) - 1, costs, contiguous, num_tokens)


@hookimpl
def sdft_register_layer_metrics(register: Callable[[str, LayerMetric], None]) -> None:
    """Register the built-in metrics."""
    register("angular_distance", angular_distance)
    register("block_influence", block_influence)
    register("perplexity", perplexity)
    register("divergence", divergence)
    register("last", last)
