"""What a patch is and how it came about, as data and as lines of text. No torch is imported here."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from axolotl_sdft.core.errors import SdftError

if TYPE_CHECKING:
    from torch import Tensor


def patch_lines(record: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """Yield a line for each cut and one for the whole, with whether it tells of something that was patched.

    Args:
        record: What :meth:`~axolotl_sdft.pruning.patching.record.LayerPatch.to_json` gave.
    """
    for cut in record["cuts"]:
        if cut["applied"]:
            sinks = f", {cut['num_sinks']} attention sinks left out" if cut["num_sinks"] else ""
            yield (
                True,
                (
                    f"layer {cut['layer']} is patched for {span(cut['removed'])}: {cut['module']}, fitted on "
                    f"{cut['num_tokens']:,} tokens{sinks}"
                ),
            )
        else:
            yield False, f"{span(cut['removed'])} removed without a patch: {cut['reason']}"
    if any(cut["applied"] for cut in record["cuts"]) and record["divergence_bare"] is not None:
        yield True, f"KL to the seed model: {nearer(record)}"


def log_patch(patch: "LayerPatch", log: logging.Logger) -> None:
    """Say of each cut how it is patched, and warn of one that is not."""
    for is_applied, line in patch_lines(patch.to_json()):
        log.log(logging.INFO if is_applied else logging.WARNING, "%s", line)


def nearer(record: Mapping[str, Any]) -> str:
    """Return how much nearer to the seed model a patch brings the cut."""
    bare, patched = record["divergence_bare"], record["divergence_patched"]
    return (
        f"{bare:.3f} nats per token for the bare cut, {patched:.3f} patched ({100 * (1 - patched / bare):.0f} % less), "
        f"over {record['num_held_out_tokens']:,} held-out tokens"
    )


def card_cell(record: Mapping[str, Any] | None) -> str:
    """Return what a model card says of a patch in one cell of its table."""
    applied = [cut for cut in record["cuts"] if cut["applied"]] if record is not None else []
    if record is None or not applied:
        return "none: the weights that stay are the seed model's"
    tensors = ", ".join(f"`{cut['module']}` of layer {cut['layer']}" for cut in applied)
    measured = f"; KL to the seed model: {nearer(record)}" if record["divergence_bare"] is not None else ""
    return f"linear, in {tensors} (counted before the removal){measured}"


def span(layers: Sequence[int]) -> str:
    """Return neighbouring layers as text: ``layer 3``, ``layers 3 to 5``."""
    return f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"


class UnpatchableError(SdftError, ValueError):
    """A cut can't be patched. The text is the reason."""


@dataclass(frozen=True)
class Projection:
    """The linear map of a layer whose output is added to the hidden states last, such as ``mlp.down_proj``."""

    layer: int
    """The layer that it belongs to, counted from 0 in the unpruned model."""
    path: str
    """Its module path inside the layer."""
    scale: float
    """The factor with which its output is added: 1, or a residual multiplier."""
    is_transposed: bool
    """Whether its weight is stored as [in, out], as GPT-2 has it, instead of [out, in]."""


@dataclass(frozen=True)
class CutPatch:
    """What was done about one run of neighbouring removed layers."""

    removed: tuple[int, ...]
    """The removed layers, counted from 0 in the unpruned model."""
    projection: Projection | None = None
    """Where the map is folded in."""
    correction: "Tensor | None" = None
    """T - I in float64 on the CPU, [D, D]: the projection's output M becomes M T. None: nothing is folded in."""
    num_tokens: int = 0
    """Tokens that the map was fitted on."""
    num_sinks: int = 0
    """Attention sinks that were left out of the fit."""
    num_directions: int = 0
    """Directions of the sinks along which the map changes nothing."""
    divergence_without: float | None = None
    """KL(seed || pruned) per held-out token in nats without this map, with those of the cuts before it."""
    divergence_with: float | None = None
    """The same with it."""
    reason: str | None = None
    """Why nothing is folded in."""

    @property
    def is_applied(self) -> bool:
        """Whether a map is folded in."""
        return self.correction is not None

    def without_map(self, reason: str) -> "CutPatch":
        """Return the same cut left bare, for this reason."""
        return replace(self, correction=None, reason=reason)

    def to_json(self) -> dict[str, Any]:
        """Return all but the map itself as a dict that ``json`` can write."""
        where = self.projection
        return {
            "removed": list(self.removed),
            "applied": self.is_applied,
            "layer": where.layer if where is not None else None,
            "module": where.path if where is not None else None,
            "num_tokens": self.num_tokens,
            "num_sinks": self.num_sinks,
            "num_directions": self.num_directions,
            "divergence_without": self.divergence_without,
            "divergence_with": self.divergence_with,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class LayerPatch:
    """What is folded into the layers before each cut, and how much nearer to the seed model that brings the model."""

    cuts: tuple[CutPatch, ...]
    """One for each run of neighbouring removed layers, front to back."""
    divergence_bare: float | None = None
    """KL(seed || pruned) in nats per held-out token of the bare cut; None where it was not measured."""
    divergence_patched: float | None = None
    """The same after what is folded in."""
    num_held_out: int = 0
    """Held-out tokens that the two are averaged over."""

    @property
    def drop_layers(self) -> tuple[int, ...]:
        """The removed layers."""
        return tuple(layer for cut in self.cuts for layer in cut.removed)

    @property
    def applied(self) -> tuple[CutPatch, ...]:
        """The cuts that something is folded in for."""
        return tuple(cut for cut in self.cuts if cut.is_applied)

    def to_json(self) -> dict[str, Any]:
        """Return what a provenance file says of the patch."""
        return {
            "divergence_bare": self.divergence_bare,
            "divergence_patched": self.divergence_patched,
            "num_held_out_tokens": self.num_held_out,
            "cuts": [cut.to_json() for cut in self.cuts],
        }


def bare_patch(drop_layers: Collection[int], reason: str) -> LayerPatch:
    """Return the patch that leaves every cut bare for one reason."""
    return LayerPatch(tuple(CutPatch(removed, reason=reason) for removed in neighbours(drop_layers)))


def neighbours(layers: Collection[int]) -> Iterator[tuple[int, ...]]:
    """Yield the runs of neighbouring layers, front to back.

    Example:
        >>> list(neighbours({5, 2, 3}))
        [(2, 3), (5,)]
    """
    run: list[int] = []
    for layer in sorted(layers):
        if run and layer != run[-1] + 1:
            yield tuple(run)
            run = []
        run.append(layer)
    if run:
        yield tuple(run)
