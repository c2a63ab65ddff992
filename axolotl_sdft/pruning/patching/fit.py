"""Fits the patch of a cut on calibration text: a ridge least-squares map, after ReplaceMe (arXiv 2505.02819).

Several cuts are patched one after the other, front to back: the projection's outputs are those of the model that has
been cut and patched so far, and the map is to lead from there to what the seed model has behind the removed layers.
A map is kept only if the model with it is nearer to the seed model on text that it was not fitted on.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.errors import CheckpointError, DatasetError, error_context, failure, first_line
from axolotl_sdft.core.model_folder import read_config
from axolotl_sdft.core.terminal import progress
from axolotl_sdft.inference.forwarding import free_memory
from axolotl_sdft.pruning.general_answers import TOKENS_PER_UNIT
from axolotl_sdft.pruning.patching.apply import NamedTensor, why_not_stored
from axolotl_sdft.pruning.patching.cut_model import CutModel, divergences, num_tokens, opened, split_held_out
from axolotl_sdft.pruning.patching.linear_map import RIDGE, FitSums, find_projection
from axolotl_sdft.pruning.patching.record import (
    CutPatch,
    LayerPatch,
    Projection,
    UnpatchableError,
    bare_patch,
    neighbours,
    span,
)
from axolotl_sdft.pruning.planning.plan import given_layers, validate_drop_layers
from axolotl_sdft.pruning.scoring.boundaries import decoder_layers
from axolotl_sdft.pruning.scoring.loading import MEMORY_SHORTAGE, check_loading, load_for_scoring
from axolotl_sdft.pruning.scoring.scores import Batch, list_of_batches

LOG = logging.getLogger(__name__)

# Such as one whose layers hand on more than hidden states.
_CANT_BE_RUN = failure("the model can't be run layer by layer", None, UnpatchableError)

Refusal = Callable[[Projection], str | None]
"""Says why a projection can't be written, or None."""


MoreText = Callable[[PreTrainedModel, Sequence[Batch]], Sequence[Batch]]
"""Gives further calibration text, from the loaded model and the text that was read."""


def _never(_projection: Projection) -> str | None:
    return None


def fit_patch(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    drop_layers: Collection[int],
    *,
    ridge: float = RIDGE,
    hold_out: bool = True,
    refuse: Refusal = _never,
) -> LayerPatch:
    """Return the patch that lets the layer before each cut stand in for the removed layers, as far as a map can.

    The model comes back as it was. In memory are one micro-batch and two float64 matrices [D, D], with D the hidden
    size. What can't be patched stays bare, with the reason.

    Args:
        model: The unpruned model, on the device or devices where it is to run.
        batches: Calibration text as micro-batches of ``input_ids`` and ``attention_mask``, each [rows, tokens]. It
            should hold at least eight times as many tokens as the hidden size. A generator or a ``DataLoader`` is read
            once.
        drop_layers: The removed layers, counted from 0.
        ridge: Weight of the ridge that pulls the map to the identity, as a share of the mean square of the outputs.
        hold_out: Fit on nine tenths of the rows only, and let the rest decide whether a map is kept. Otherwise every
            map is kept.
        refuse: Says of a projection why it can't be written, or None.

    Raises:
        ConfigError: No layer is named, one is not there, or none would stay.
        CheckpointError: The model's layers can't be found.
        DatasetError: There is no text, or ``batches`` holds something else than batches.

    Example:
        >>> patch = fit_patch(model, batches, [13, 14, 15])
        >>> patch.divergence_bare, patch.divergence_patched
        >>> cut_layers("models/SmolLM2-135M-Instruct", [13, 14, 15], "patched", patch=patch)
    """
    layers = decoder_layers(model)
    drop_layers = given_layers(drop_layers, "drop_layers")
    validate_drop_layers(drop_layers, len(layers), "drop_layers")
    batches = list_of_batches(batches)
    if not any(int(batch["input_ids"].numel()) for batch in batches):
        raise DatasetError("layer_pruning.calibration gave no token to fit a patch on; check its path, split and type")
    fit_on, held_out = split_held_out(batches) if hold_out else (batches, [])
    if hold_out and not held_out:
        return bare_patch(drop_layers, "the calibration holds a single row, which can't be fitted on and held out too")
    cuts = [cut_with_projection(model, cut, fit_on[0], refuse) for cut in neighbours(drop_layers)]
    if not any(cut.projection for cut in cuts):
        return LayerPatch(tuple(cuts))
    try:
        with opened(model, fit_on[0]) as cut_model:
            with error_context(_CANT_BE_RUN), cut_model.as_cut(drop_layers):
                cut_model.run_row(fit_on[0])
            return _Fitting(cut_model, fit_on, held_out, ridge).run(cuts)
    except UnpatchableError as err:
        return LayerPatch(tuple(cut.without_map(cut.reason or str(err)) for cut in cuts))


def cut_with_projection(
    model: PreTrainedModel, removed: tuple[int, ...], probe: Batch, refuse: Refusal = _never
) -> CutPatch:
    """Return a cut with the projection that its map can be folded into, or with the reason why there is none."""
    try:
        if removed[0] == 0:
            raise UnpatchableError("the cut begins with layer 0, so there is no layer before it")
        with error_context(_CANT_BE_RUN):
            projection = find_projection(model, decoder_layers(model), removed[0] - 1, probe)
        reason = refuse(projection)
        if reason is not None:
            raise UnpatchableError(reason)
    except UnpatchableError as err:
        return CutPatch(removed, reason=str(err))
    return CutPatch(removed, projection)


class _Fitting:
    """The cuts of one model, patched one after the other."""

    def __init__(self, cut_model: CutModel, fit_on: Sequence[Batch], held_out: Sequence[Batch], ridge: float) -> None:
        # The longest rows first: they hold the most tokens, which tell what norm is usual.
        self._cut_model, self._fit_on, self._held_out = cut_model, fit_on[::-1], held_out
        self._ridge = ridge

    def run(self, cuts: Sequence[CutPatch]) -> LayerPatch:
        """Return the cuts with their maps, each kept if it brings the model nearer to the seed model, and so must
        all."""
        done: list[CutPatch] = []
        for cut in cuts:
            fitted = cut if cut.projection is None else self._fitted(cut, done)
            # Cuts that come later are not made yet: a model that they have ruined would tell nothing.
            done.append(self._judged(fitted, done) if fitted.is_applied and self._held_out else fitted)
        _warn_of_few_tokens(done)
        return self._with_divergences(done) if self._held_out else LayerPatch(tuple(done))

    def _judged(self, fitted: CutPatch, before: Sequence[CutPatch]) -> CutPatch:
        bare = replace(fitted, correction=None)
        without, found = self._divergences([*before, bare], [*before, fitted])
        fitted = replace(fitted, divergence_without=without, divergence_with=found)
        return fitted if found < without else fitted.without_map(_not_nearer(found, without))

    def _with_divergences(self, cuts: Sequence[CutPatch]) -> LayerPatch:
        """Return the patch with both figures of the whole model, and bare where all maps together do not help."""
        bare = patched = None
        if len(cuts) == 1:
            bare, patched = cuts[0].divergence_without, cuts[0].divergence_with
        elif any(cut.is_applied for cut in cuts):
            bare, patched = self._divergences([replace(cut, correction=None) for cut in cuts], cuts)
        return _decided(cuts, bare, patched, sum(num_tokens(batch) for batch in self._held_out))

    def _divergences(self, bare: Sequence[CutPatch], patched: Sequence[CutPatch]) -> tuple[float, float]:
        """Return KL(seed || model) of the model with these cuts made, without their maps and with them."""
        gone = [layer for cut in patched for layer in cut.removed]
        variants = [partial(self._cut_model.as_cut, gone, cuts) for cuts in (bare, patched)]
        without, found = divergences(self._cut_model.model, self._held_out, variants)
        return without, found

    def _fitted(self, cut: CutPatch, before: Sequence[CutPatch]) -> CutPatch:
        assert cut.projection is not None
        sums: FitSums | None = None
        total = sum(batch["input_ids"].numel() for batch in self._fit_on)
        with progress(f"fitting the patch of {span(cut.removed)}", total, "tokens", LOG) as shown:
            for batch in self._fit_on:
                sums = self._with_batch(sums, cut, before, batch)
                shown.advance(batch["input_ids"].numel())
        assert sums is not None
        return solved(cut, sums, self._ridge)

    def _with_batch(self, sums: FitSums | None, cut: CutPatch, before: Sequence[CutPatch], batch: Batch) -> FitSums:
        projection = cut.projection
        assert projection is not None
        gone = [layer for earlier in before for layer in earlier.removed]
        end_ND, outputs_ND, hidden_ND = self._cut_model.around(projection, batch, cut.removed[-1])
        if gone:
            with self._cut_model.as_cut(gone, before):
                _, outputs_ND, hidden_ND = self._cut_model.around(projection, batch, projection.layer)
        sums = sums or sums_for(end_ND)
        sums.add_states(outputs_ND, projection.scale, hidden_ND, end_ND)
        return sums


def sums_for(hidden_ND: Tensor) -> FitSums:
    """Return empty sums for a model with such hidden states, on their device if it has float64."""
    device = hidden_ND.device if hidden_ND.device.type != "mps" else torch.device("cpu")
    return FitSums(hidden_ND.shape[-1], device)


def solved(cut: CutPatch, sums: FitSums, ridge: float) -> CutPatch:
    """Return a cut with the map that its sums give, or with the reason why they give none."""
    cut = replace(cut, num_tokens=sums.num_tokens, num_sinks=sums.num_sinks)
    try:
        correction, num_directions = sums.correction(ridge)
    except RuntimeError as err:
        return cut.without_map(f"the fit has no solution ({first_line(err)})")
    if not correction.isfinite().all():
        return cut.without_map("hidden states overflow or are not numbers; set layer_pruning.dtype to float32")
    return replace(cut, correction=correction, num_directions=num_directions)


def _warn_of_few_tokens(cuts: Sequence[CutPatch]) -> None:
    fitted = [(cut.num_tokens, len(cut.correction)) for cut in cuts if cut.correction is not None]
    for num_tokens_fitted, width in fitted[:1]:
        if num_tokens_fitted < TOKENS_PER_UNIT * width:
            LOG.warning(
                "the patch was fitted on %d tokens, fewer than %d times the hidden size of %d; raise "
                "layer_pruning.calibration.num_samples",
                *(num_tokens_fitted, TOKENS_PER_UNIT, width),
            )


def _decided(cuts: Sequence[CutPatch], bare: float | None, patched: float | None, num_held_out: int) -> LayerPatch:
    """Return the patch if it brings the model nearer to the seed model, else that of the bare cut."""
    if bare is None or patched is None:
        return LayerPatch(tuple(cuts))
    if patched < bare:
        return LayerPatch(tuple(cuts), bare, patched, num_held_out)
    reason = _not_nearer(patched, bare)
    return LayerPatch(tuple(cut.without_map(cut.reason or reason) for cut in cuts), bare, bare, num_held_out)


def _not_nearer(found: float, without: float) -> str:
    return (
        f"the patched model is not nearer to the seed model on held-out text than without: KL {found:.4g} nats per "
        f"token, {without:.4g} without"
    )


def fitted_patch(
    seed_dir: Path,
    drop_layers: Sequence[int],
    stored: tuple[Sequence[NamedTensor], str],
    config: LayerPruningConfig,
    batches: Sequence[Batch],
    trust_remote_code: bool = False,
    more_batches: MoreText | None = None,
) -> LayerPatch:
    """Load the seed model, fit the patch of a cut, and free the model. What can't be patched stays bare, with a reason.

    Args:
        seed_dir: Folder of the seed model.
        drop_layers: The removed layers.
        stored: The tensors that stay, and what comes before the layer number in their old names.
        config: How the model is loaded.
        batches: Calibration text that was read.
        trust_remote_code: Run code that comes with the seed model.
        more_batches: Gives text that the model writes; called only if some cut can be patched.

    Raises:
        DatasetError: The text holds no token.
        CheckpointError: Memory ran out.
    """
    refuse = partial(why_not_stored, stored)
    check_loading(read_config(seed_dir), config)
    with error_context(MEMORY_SHORTAGE):
        try:
            model = load_for_scoring(seed_dir, config, trust_remote_code)
            if more_batches is not None and _can_be_patched(model, drop_layers, batches, refuse):
                batches = [*batches, *more_batches(model, batches)]
            if not batches:
                return bare_patch(drop_layers, "there is no calibration text to fit it on")
            return fit_patch(model, batches, drop_layers, refuse=refuse)
        except CheckpointError as err:  # the bare cut needs no model that can be loaded and run
            return bare_patch(drop_layers, str(err))
        finally:
            model = None
            free_memory()


def _can_be_patched(
    model: PreTrainedModel, drop_layers: Collection[int], batches: Sequence[Batch], refuse: Refusal
) -> bool:
    """Whether some cut has a projection that a map can be folded into; without text to try it out, it may have."""
    if not batches:
        return True
    cuts = (cut_with_projection(model, cut, batches[0], refuse) for cut in neighbours(drop_layers))
    return any(cut.projection is not None for cut in cuts)
