"""Tries blocks of layers out: how far from the seed model is a model without each, bare and patched?

A cheap metric says which blocks are worth it: the best few of the wanted length, and the best one of each smaller
length, from which a person sees where quality falls off. One pass over the text fits all patches.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from transformers import PreTrainedModel

from axolotl_sdft.core.errors import ConfigError, DatasetError
from axolotl_sdft.core.terminal import progress
from axolotl_sdft.pruning.patching.cut_model import CutModel, divergences, opened, split_held_out
from axolotl_sdft.pruning.patching.fit import cut_with_projection, solved, sums_for
from axolotl_sdft.pruning.patching.linear_map import RIDGE, FitSums
from axolotl_sdft.pruning.patching.record import CutPatch
from axolotl_sdft.pruning.scoring.scores import Batch, BlockDivergence, LayerScores, ScoringOptions

LOG = logging.getLogger(__name__)

NUM_TRIED = 4
"""So many blocks of the wanted length are tried."""


def tried_blocks(
    model: PreTrainedModel, batches: Sequence[Batch], options: ScoringOptions, known: LayerScores
) -> LayerScores:
    """Return scores with the divergences of the blocks that are worth trying, besides those that are known.

    Args:
        model: The unpruned model.
        batches: Calibration text; a tenth of its rows is held out.
        options: ``num_layers`` is the length that is wanted.
        known: Costs of all blocks by a cheap metric, and blocks tried before.

    Raises:
        ConfigError: ``num_layers`` is not given.
        DatasetError: The text is a single row.
        UnpatchableError: The model has no logits for each token.
    """
    if options.num_layers is None:
        raise ConfigError("metric divergence needs num_layers: score_layers(..., num_layers=6)")
    fit_on, held_out = split_held_out(batches)
    if not held_out:
        raise DatasetError("layer_pruning.calibration holds a single row, which can't be fitted on and held out too")
    done = {(block.start, block.end) for block in known.divergences}
    blocks = [block for block in _candidates(known, options) if (block.start, block.stop) not in done]
    cuts = [cut_with_projection(model, tuple(block), fit_on[0]) for block in blocks]
    with opened(model, fit_on[0]) as cut_model:
        patches = _all_fitted(cut_model, fit_on, cuts)
        found = _divergences(cut_model, held_out, patches)
    tried = sorted([*known.divergences, *found], key=lambda block: (block.end - block.start, block.start))
    return replace(known, metric="divergence", divergences=tuple(tried))


def _candidates(known: LayerScores, options: ScoringOptions) -> list[range]:
    """Return the blocks to try: some of the wanted length, one of each smaller one."""
    assert options.num_layers is not None
    chosen: list[range] = []
    for length in range(1, options.num_layers + 1):
        starts = range(options.protect_first, known.num_layers - options.protect_last - length + 1)
        by_cost = sorted(starts, key=lambda start: (known.block_costs[start][start + length], start))
        blocks = [range(start, start + length) for start in by_cost]
        allowed = [block for block in blocks if options.may_go(list(block))] or blocks
        chosen += allowed[: NUM_TRIED if length == options.num_layers else 1]
    return chosen


def _all_fitted(cut_model: CutModel, fit_on: Sequence[Batch], cuts: Sequence[CutPatch]) -> list[CutPatch]:
    """Return the cuts with their maps, all fitted in one pass over the text; where there is none, as they are."""
    wanted = [cut for cut in cuts if cut.projection is not None]
    if not wanted:
        return list(cuts)
    projections = list({cut.projection.layer: cut.projection for cut in wanted if cut.projection}.values())
    layers = {projection.layer for projection in projections} | {cut.removed[-1] for cut in wanted}
    sums: list[FitSums] = []
    total = sum(batch["input_ids"].numel() for batch in fit_on)
    with progress(f"fitting the patches of {len(wanted)} blocks", total, "tokens", LOG) as shown:
        for batch in fit_on[::-1]:  # the longest rows first, as in a single fit
            hidden, projected = cut_model.states(projections, layers, batch)
            sums = sums or [sums_for(next(iter(hidden.values()))) for _ in wanted]
            for cut, of_cut in zip(wanted, sums, strict=True):
                assert cut.projection is not None
                layer = cut.projection.layer
                of_cut.add_states(projected[layer], cut.projection.scale, hidden[layer], hidden[cut.removed[-1]])
            shown.advance(batch["input_ids"].numel())
    by_block = {cut.removed: solved(cut, of_cut, RIDGE) for cut, of_cut in zip(wanted, sums, strict=True)}
    return [by_block.get(cut.removed, cut) for cut in cuts]


def _divergences(cut_model: CutModel, held_out: Sequence[Batch], patches: Sequence[CutPatch]) -> list[BlockDivergence]:
    variants = []
    for patch in patches:
        variants.append(partial(cut_model.as_cut, patch.removed))
        if patch.is_applied:
            variants.append(partial(cut_model.as_cut, patch.removed, [patch]))
    figures = iter(divergences(cut_model.model, held_out, variants))
    return [
        BlockDivergence(
            patch.removed[0], patch.removed[-1] + 1, next(figures), next(figures) if patch.is_applied else None
        )
        for patch in patches
    ]
