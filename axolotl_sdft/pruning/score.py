"""What removing layers costs, as one table for every block of layers. No torch is imported here."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from axolotl_sdft.errors import PluginError
from axolotl_sdft.plugins import METRICS, registry

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

TokenAverage: TypeAlias = Literal["all", "last"]

Batch: TypeAlias = "dict[str, Tensor]"
"""One micro-batch: ``input_ids`` and ``attention_mask``, each [rows, tokens]."""


@dataclass(frozen=True)
class LayerScores:
    """What it costs to remove each block of layers; a lower cost is a less important block."""

    metric: str
    """Name of the metric."""

    num_layers: int
    """Layers of the model that was measured."""

    block_costs: tuple[tuple[float, ...], ...]
    """``block_costs[i][j]`` is the cost of removing layers i to j - 1; 0.0 where j <= i. Boundaries: 0 to L."""

    contiguous: bool
    """True: the cheapest block goes. False: the cheapest single layers go; only ``block_costs[i][i + 1]`` counts."""

    num_tokens: int
    """Tokens that the costs are averaged over."""

    def to_json(self) -> dict[str, Any]:
        """Return the scores as a dict that ``json`` can write."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "LayerScores":
        """Return the scores that :meth:`to_json` gave."""
        return cls(**data | {"block_costs": tuple(tuple(row) for row in data["block_costs"])})


LayerMetric: TypeAlias = Callable[["PreTrainedModel", Sequence[Batch], TokenAverage], LayerScores]
"""Measures the layers of a model on calibration batches."""


def score_layers(
    model: "PreTrainedModel",
    batches: Sequence[Batch],
    metric: str = "angular_distance",
    token_average: TokenAverage = "all",
) -> LayerScores:
    """Return what removing each block of decoder layers costs by a registered metric.

    The model comes back as it was. Tokens that ``attention_mask`` hides play no part.

    Args:
        model: A decoder model of transformers, on the device where it is to run.
        batches: Calibration text as micro-batches of ``input_ids`` and ``attention_mask``, each [rows, tokens].
        metric: A registered name.
        token_average: Average over all tokens, or over the last one of each row.

    Raises:
        UnknownNameError: No plugin registers the metric.
        PluginError: The metric returned something else than scores.
        CheckpointError: The decoder layers can't be found in the model.

    Example:
        >>> encoded = tokenizer(["Water boils at 100 degrees Celsius.", "Hi."], padding=True, return_tensors="pt")
        >>> scores = score_layers(model, [encoded])
        >>> scores.block_costs[3][5]  # of removing layers 3 and 4
    """
    measure = registry().resolve(METRICS, metric, "layer_pruning.metric")
    scores = measure(model, batches, token_average)
    if not isinstance(scores, LayerScores):
        raise PluginError(f"metric {metric!r} returned a {type(scores).__name__}; it must return LayerScores")
    return scores
