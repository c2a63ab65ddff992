"""The pruning plan as lines of text, from which a person can choose how many layers to remove."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.terminal import paragraph_lines, table_lines
from axolotl_sdft.core.texts import short_number
from axolotl_sdft.pruning.planning.plan import (
    PruningPlan,
    avoided_lines,
    best_plans,
    cost_text,
    is_measured,
    ranked_blocks,
)
from axolotl_sdft.pruning.planning.savings import Footprint, Savings, read_savings
from axolotl_sdft.pruning.scoring.scores import LayerScores


@dataclass(frozen=True)
class PruningTable:
    """Which layers of a model go, what that saves, and what else could go. Printing it gives the table."""

    model_name: str
    plan: PruningPlan
    scores: LayerScores | None
    """What chose the layers; None when the user named them."""

    savings: Savings
    config: LayerPruningConfig

    def __repr__(self) -> str:
        before, after = self.savings.before.parameters, self.savings.after.parameters
        layers = ", ".join(map(str, self.plan.drop_layers))
        return f"<PruningTable {self.model_name}: layers {layers} of {self.plan.num_layers}, {after / before:.1%} left>"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """Yield the table line by line."""
        yield from report_lines(self.model_name, self.plan, self.scores, self.savings, self.config)

    def to_json(self) -> dict[str, Any]:
        """Return plan, savings, and the best choice for each number of layers, as JSON values."""
        plan, is_compared = self.plan, self.scores is not None and is_measured(self.scores)
        choices = best_plans(self.scores, self.config) if is_compared and self.scores is not None else []
        return {
            "model": self.model_name,
            "drop_layers": list(plan.drop_layers),
            "num_layers": plan.num_layers,
            "metric": plan.metric,
            "cost": plan.cost,
            "avoided": [{"layers": list(layers), "reason": reason} for layers, reason in plan.avoided],
            "before": asdict(self.savings.before),
            "after": asdict(self.savings.after),
            "choices": [{"drop_layers": list(choice.drop_layers), "cost": choice.cost} for choice in choices],
        }

    def draw(self, folder: str | Path) -> list[Path]:
        """Draw the scores with the chosen layers marked, and return the PNG files; none where nothing was compared.

        Raises:
            MissingExtraError: matplotlib is not installed.
            ArtifactError: The disk refuses.
        """
        from axolotl_sdft.pruning.planning.plots import write_plots

        if self.scores is None:
            return []
        return write_plots(self.model_name, self.plan, self.scores, self.config, Path(folder))


def pruning_table(
    seed_model: str | Path,
    plan: PruningPlan,
    scores: LayerScores | None = None,
    config: LayerPruningConfig | None = None,
    *,
    revision: str | None = None,
) -> PruningTable:
    """Return which layers of a plan go, what that saves, and what else could go. No weights are read.

    Args:
        seed_model: Folder or Hub id of the model that is pruned.
        plan: What :func:`~axolotl_sdft.plan_pruning` decided.
        scores: What it decided from; None where the layers were named.
        config: With which it decided; by default one that names the number of layers.
        revision: Revision of the seed model on the Hub.

    Raises:
        CheckpointError: The model is incomplete, or can't be cut soundly.

    Example:
        >>> table = pruning_table("Qwen/Qwen3-8B", plan, scores)
        >>> print(table)
        >>> table.draw("pictures")
    """
    from axolotl_sdft.core.model_folder import seed_dir_of_call

    savings = read_savings(seed_dir_of_call(seed_model, revision), plan.drop_layers)
    settings = config or LayerPruningConfig(num_layers=len(plan.drop_layers))
    return PruningTable(str(seed_model), plan, scores, savings, settings)


_MOST_MORE = 4
"""So many more layers than chosen are looked at as well."""
_NUM_RUNNERS_UP = 3
_UNKNOWN = "unknown"


def report_lines(
    model_name: str, plan: PruningPlan, scores: LayerScores | None, savings: Savings, config: LayerPruningConfig
) -> Iterator[str]:
    """Yield which layers are removed, what that saves, and what else could be.

    Args:
        model_name: What the user calls the seed model.
        plan: The removed layers.
        scores: What chose them; None when the user named them.
        savings: Of this plan.
        config: For the protected layers.
    """
    yield f"{model_name}: {len(plan.drop_layers)} of {plan.num_layers} layers removed"
    yield from paragraph_lines(f"layers, counted from 0: {', '.join(map(str, plan.drop_layers))}")
    if scores is not None and is_measured(scores):
        yield f"{plan.metric}: {cost_text(plan.cost)}, over {scores.num_tokens:,} tokens (lower: less is lost)"
    elif scores is not None:
        yield f"chosen by {plan.metric}, which measures nothing"
    for line in avoided_lines(plan):
        yield from paragraph_lines(line)
    yield ""
    yield from savings_lines(savings)
    if scores is not None and is_measured(scores):
        yield ""
        yield from _alternative_lines(plan, scores, savings, config)


def savings_lines(savings: Savings) -> Iterator[str]:
    """Yield a table of what the model is before and after, and what is saved."""
    yield from table_lines(("", "before", "after", "saved", ""), _savings_rows(savings), "lrrrr")
    if savings.before.flops is not None:
        yield "FLOPs: forward pass of one token without a context before it; a multiply-add counts as two"
    yield from savings.notes


def _savings_rows(savings: Savings) -> Iterator[tuple[str, ...]]:
    before, after = savings.before, savings.after
    yield _row("layers", before.num_layers, after.num_layers, "")
    yield _row("parameters", before.parameters, after.parameters, "")
    yield _row("weights", before.weight_bytes, after.weight_bytes, "B")
    if before.cache_bytes is not None or savings.notes:  # an encoder keeps nothing
        yield from _memory_rows(before, after)
    yield _row("FLOPs per token", before.flops, after.flops, "")


def _memory_rows(before: Footprint, after: Footprint) -> Iterator[tuple[str, ...]]:
    """Yield the rows of what a model remembers of a text: a cache, a state, or both in a hybrid model."""
    if before.state_bytes:
        yield _row("state per sequence", before.state_bytes, after.state_bytes, "B")
    if before.cache_bytes or not before.state_bytes:
        yield _row("KV cache per token", before.cache_bytes, after.cache_bytes, "B")


def _row(name: str, before: int | None, after: int | None, unit: str) -> tuple[str, ...]:
    if before is None or after is None:
        return name, _UNKNOWN, _UNKNOWN, "", ""
    percent = f"{100 * (before - after) / before:.1f} %" if before else ""
    return name, short_number(before, unit), short_number(after, unit), short_number(before - after, unit), percent


def _alternative_lines(
    plan: PruningPlan, scores: LayerScores, savings: Savings, config: LayerPruningConfig
) -> Iterator[str]:
    """Yield a table of the best choice for each number of layers, the chosen one marked."""
    if scores.divergences:
        yield from _tried_lines(plan, scores, savings, config)
        return
    plans = best_plans(scores, config)
    chosen = len(plan.drop_layers)
    if plan.avoided:
        plans[chosen - 1 : chosen] = [plan]  # what the scores alone would choose can't be removed
    shown = plans[: chosen + _MOST_MORE]
    yield _choice_title(scores) + (f" (1 to {len(shown)} of up to {len(plans)})" if len(shown) < len(plans) else "")
    rows = [
        (
            *(">" if count == chosen else "", str(count), cost_text(choice.cost)),
            *(*_parameters_left(choice.drop_layers, savings), _which(choice, plans, scores)),
        )
        for count, choice in enumerate(shown, start=1)
    ]
    yield from table_lines(("", "go", scores.metric, "parameters left", "", _what(scores)), rows, "lrrrrl")
    if scores.contiguous and scores.block_costs:
        yield from _runner_up_lines(plan, scores, config)
    if plan.avoided:
        yield "Other numbers of layers are by the scores alone: what can't be removed may be among them"


def _tried_lines(plan: PruningPlan, scores: LayerScores, savings: Savings, config: LayerPruningConfig) -> Iterator[str]:
    """Yield a table of the blocks that were tried, the best one of each length first, the chosen one marked."""
    yield "Blocks tried: KL to the seed model in nats per token of held-out text, bare and patched"
    best = {choice.drop_layers for choice in best_plans(scores, config)}
    rows = []
    for block in sorted(scores.divergences, key=lambda tried: (tried.end - tried.start, tried.cost(config.patch))):
        layers = tuple(range(block.start, block.end))
        mark = ">" if layers == plan.drop_layers else ""
        count = str(len(layers)) if layers in best else ""
        patched = "no patch" if block.patched is None else cost_text(block.patched)
        rows.append((mark, count, cost_text(block.bare), patched, *_parameters_left(layers, savings), _span(layers)))
    yield from table_lines(("", "go", "KL bare", "KL patched", "parameters left", "", "layers"), rows, "lrrrrrl")


def _parameters_left(layers: Sequence[int], savings: Savings) -> tuple[str, str]:
    """Return how many parameters stay without some layers, and that in percent."""
    left = savings.before.parameters - sum(savings.layer_parameters[layer] for layer in layers)
    return short_number(left, ""), f"{100 * left / savings.before.parameters:.1f} %"


def _choice_title(scores: LayerScores) -> str:
    if scores.removal_order:
        return "Layers one after the other, as each hurts least"
    return "The cheapest block of each length" if scores.contiguous else "The cheapest single layers"


def _what(scores: LayerScores) -> str:
    return "layers" if scores.contiguous and not scores.removal_order else "goes as well"


def _which(choice: PruningPlan, plans: Sequence[PruningPlan], scores: LayerScores) -> str:
    """Return the block, or the one layer that is removed beside those of the line above."""
    if scores.contiguous and not scores.removal_order:
        return _span(choice.drop_layers)
    count = len(choice.drop_layers)
    above = plans[count - 2].drop_layers if count > 1 else ()
    return ", ".join(str(layer) for layer in choice.drop_layers if layer not in above)


def _runner_up_lines(plan: PruningPlan, scores: LayerScores, config: LayerPruningConfig) -> Iterator[str]:
    length = len(plan.drop_layers)
    told = {plan.drop_layers, *(layers for layers, _ in plan.avoided)}
    others = [pair for pair in ranked_blocks(scores, config, length) if tuple(pair[1]) not in told][:_NUM_RUNNERS_UP]
    if others:
        shown = ", ".join(f"{_span(block)} ({cost_text(cost)})" for cost, block in others)
        yield from paragraph_lines(f"Next-best blocks of {length}: {shown}")


def _span(layers: Sequence[int]) -> str:
    return f"{layers[0]} to {layers[-1]}" if len(layers) > 1 else str(layers[0])
