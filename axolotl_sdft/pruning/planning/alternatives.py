"""What else could go: the best choice for every number of layers, and the next-best blocks. No torch, no files."""

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.pruning.planning.plan import PruningPlan, plan_pruning
from axolotl_sdft.pruning.scoring.scores import LayerScores


def is_measured(scores: LayerScores) -> bool:
    """Return whether there are costs to compare; a metric that goes by position alone gives none."""
    return scores.num_tokens > 0 and bool(scores.block_costs or scores.removal_costs)


def cost_text(cost: float | None) -> str:
    """Return a cost as a person reads it: four decimals, and large ones, such as a ruined perplexity, in short form."""
    if cost is None:
        return "not measured"
    return f"{cost:.4f}" if abs(cost) < 10_000 else f"{cost:.3e}"


def best_plans(scores: LayerScores, config: LayerPruningConfig) -> list[PruningPlan]:
    """Return the plan for each number of layers that can go, from 1 on, under the same protected layers.

    Raises:
        CheckpointError: A score that matters is no finite number.
    """
    unprotected = scores.num_layers - config.protect_first - config.protect_last
    most = min(unprotected, scores.num_layers - 1, len(scores.removal_order) or scores.num_layers)
    if scores.divergences:
        most = min(most, max(block.end - block.start for block in scores.divergences))
    choices = (config.model_copy(update={"num_layers": count, "drop_layers": None}) for count in range(1, most + 1))
    return [plan_pruning(scores, choice) for choice in choices]


def ranked_blocks(scores: LayerScores, config: LayerPruningConfig, length: int) -> list[tuple[float, range]]:
    """Return the blocks of this many layers that touch no protected layer, each with its cost, cheapest first."""
    if scores.divergences:
        tried = [block for block in scores.divergences if block.end - block.start == length]
        blocks = [(block.cost(config.patch), range(block.start, block.end)) for block in tried]
    else:
        starts = range(config.protect_first, scores.num_layers - config.protect_last - length + 1)
        blocks = [(scores.block_costs[start][start + length], range(start, start + length)) for start in starts]
    return sorted(blocks, key=lambda block: (block[0], block[1].start))
