"""Which layers of a seed model can't be removed, known from its ``config.json`` before anything is scored.

Some layers can't be removed at all (layer 0 of ModernBERT, the layer whose keys others share), some only with
others (experts in every second layer), and of some one must be left (attention in a hybrid model). No
torch, no weights.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.pruning.checkpoint.config_process import start
from axolotl_sdft.pruning.checkpoint.derived_config import reasons_against

_MAX_SETS = 2000


def _nothing_against(_layers: Sequence[int]) -> str | None:
    return None


@dataclass(frozen=True)
class Removable:
    """What may be removed of a model that is to lose a number of layers."""

    blocks: Mapping[tuple[int, ...], str | None]
    """Each block of that many layers that touches no protected one, with why it can't be removed; None: it can."""

    fixed: Mapping[int, str]
    """Layers that can't be removed, alone or in a block, with the reason."""

    reason_in_config: Callable[[Sequence[int]], str | None] = field(default=_nothing_against, repr=False)
    """Says of any set of layers why ``config.json`` rules it out, or None. Takes milliseconds."""

    reason_at_last: Callable[[Sequence[int]], str | None] = field(default=_nothing_against, repr=False)
    """Says why a set that ``config.json`` allows can't be removed, or None. May take seconds."""

    def reason_against(self, layers: Sequence[int]) -> str | None:
        """Return why these layers can't be removed together, or None."""
        return self.reason_in_config(layers) or self.reason_at_last(layers)

    @property
    def free_blocks(self) -> list[tuple[int, ...]]:
        """The blocks that can go, from the first layers to the last."""
        return [block for block, reason in self.blocks.items() if reason is None]

    def fixed_lines(self) -> Iterator[str]:
        """Yield a line for each reason: the layers that can't be removed, and why."""
        by_reason: dict[str, list[int]] = {}
        for layer, reason in self.fixed.items():
            by_reason.setdefault(reason, []).append(layer)
        for reason, layers in by_reason.items():
            noun = "layer" if len(layers) == 1 else "layers"
            yield f"{noun} {', '.join(map(str, layers))} can't be removed, so others are chosen: {reason}"


def find_removable(
    config: dict[str, Any],
    count: int,
    allowed: range,
    confirm: Callable[[Sequence[int]], str | None] = _nothing_against,
) -> Removable:
    """Return what may be removed when ``count`` layers are to be, out of ``allowed``.

    Args:
        config: The seed model's ``config.json``.
        count: How many layers are to go.
        allowed: The layers that are not protected.
        confirm: Says why a set that ``config.json`` allows can't be removed after all, or None.

    Raises:
        CheckpointError: No layer of the model can go.
    """
    blocks = [tuple(range(start, start + count)) for start in range(allowed.start, allowed.stop - count + 1)]
    singles = [(layer,) for layer in allowed]
    reasons = start("reasons_against", config, drop_sets=[list(layers) for layers in (*blocks, *singles)]).result()
    of_blocks = dict(zip(blocks, reasons[: len(blocks)], strict=True))
    in_a_block = {layer for block, reason in of_blocks.items() if reason is None for layer in block}
    fixed = {
        layer: reason
        for layer, reason in zip(allowed, reasons[len(blocks) :], strict=True)
        if reason is not None and layer not in in_a_block
    }

    def reason_in_config(layers: Sequence[int]) -> str | None:
        # Asked often, and when transformers is there for scoring or verifying: not in a process of its own.
        return reasons_against(config, [sorted(layers)])[0]

    return Removable(of_blocks, fixed, reason_in_config, confirm)


def cheapest_set(
    costs: Mapping[int, float], count: int, removable: Removable
) -> tuple[tuple[int, ...], list[tuple[tuple[int, ...], str]]]:
    """Return the layers that cost least together and can go, and the cheaper sets that can't, each with the reason.

    Sets are tried in the order of their cost. Where thousands can't be removed, as when layers are removed in
    pairs only, the cheapest block is taken instead.

    Raises:
        CheckpointError: No set and no block of them can go.
    """
    refused: list[tuple[tuple[int, ...], str]] = []
    for layers in _by_cost({layer: cost for layer, cost in costs.items() if layer not in removable.fixed}, count):
        reason = removable.reason_against(layers)
        if reason is None:
            return layers, refused
        refused.append((layers, reason))
        if len(refused) == _MAX_SETS:
            break
    for block in sorted(removable.free_blocks, key=lambda block: sum(costs[layer] for layer in block)):
        if removable.reason_against(block) is None:
            return block, refused[:1]
    reasons = [reason for _, reason in refused] or list(removable.fixed.values())
    raise CheckpointError(f"no {count} removable layers can be removed together: {reasons[0]}")


def _by_cost(costs: Mapping[int, float], count: int) -> Iterator[tuple[int, ...]]:
    """Yield every set of so many layers, sorted, the cheapest first; the lower layers win a tie."""
    order = sorted(costs, key=lambda layer: (costs[layer], layer))
    if count > len(order):
        return

    def entry(places: tuple[int, ...]) -> tuple[float, tuple[int, ...], tuple[int, ...]]:
        layers = tuple(sorted(order[place] for place in places))
        return sum(costs[layer] for layer in layers), layers, places

    first = tuple(range(count))
    waiting, seen = [entry(first)], {first}
    while waiting:
        _, layers, places = heapq.heappop(waiting)
        yield layers
        for index in range(count):
            following = places[index] + 1
            if following < len(order) and following not in places:
                moved = (*places[:index], following, *places[index + 1 :])
                if moved not in seen:
                    seen.add(moved)
                    heapq.heappush(waiting, entry(moved))
