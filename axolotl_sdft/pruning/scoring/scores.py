"""What removing layers costs, and how a metric says so. No torch is imported here."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from axolotl_sdft.core.callables import callable_identity, callable_name
from axolotl_sdft.core.errors import ConfigError, DatasetError, PluginError
from axolotl_sdft.plugins.registry import METRICS, registry

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

TokenReduction: TypeAlias = Literal["all", "last"]

Batch: TypeAlias = "dict[str, Tensor]"
"""One micro-batch: ``input_ids`` and ``attention_mask``, each [rows, tokens]."""

_METRIC_KEY = "layer_pruning.metric"


@dataclass(frozen=True)
class BlockDivergence:
    """How far from the seed model a model without one block is: KL(seed || pruned) in nats per held-out token."""

    start: int
    """First layer of the block, counted from 0."""
    end: int
    """The layer after its last."""
    bare: float
    """Of the bare cut."""
    patched: float | None
    """With the patch; None where the cut takes none."""

    def cost(self, patch: str) -> float:
        """Return what the stage gives with a setting of ``patch``: the lesser of the two unless it is ``none``."""
        return self.bare if patch == "none" or self.patched is None else min(self.bare, self.patched)


@dataclass(frozen=True)
class LayerScores:
    """What it costs to remove layers; a lower cost is a less important block or layer."""

    metric: str
    """Name of the metric."""

    num_layers: int
    """Layers of the model that was measured."""

    block_costs: tuple[tuple[float, ...], ...]
    """``block_costs[i][j]`` is the cost of removing layers i to j - 1; 0.0 where j <= i. Boundaries: 0 to L. Empty
    where the metric gives a ``removal_order`` instead."""

    contiguous: bool
    """True: the cheapest block is removed. False: the cheapest layers one by one; only
    ``block_costs[i][i + 1]`` counts."""

    num_tokens: int
    """Tokens that the costs are averaged over."""

    removal_order: tuple[int, ...] = ()
    """Of a greedy metric: the layers in the order in which they go, counted from 0 in the whole model."""

    removal_costs: tuple[float, ...] = ()
    """``removal_costs[n]`` is the cost once the first n + 1 layers of ``removal_order`` have gone. May be empty."""

    divergences: tuple[BlockDivergence, ...] = ()
    """Of a metric that tries blocks out: those that were tried, one of which goes. ``block_costs`` led to them."""

    def to_json(self) -> dict[str, Any]:
        """Return the scores as a dict that ``json`` can write."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "LayerScores":
        """Return the scores that :meth:`to_json` gave."""
        lists = {key: tuple(data.get(key, ())) for key in ("removal_order", "removal_costs")}
        lists["divergences"] = tuple(BlockDivergence(**block) for block in data.get("divergences", ()))
        return cls(**data | lists | {"block_costs": tuple(tuple(row) for row in data["block_costs"])})


def _any_layers(_layers: Sequence[int]) -> bool:
    return True


@dataclass(frozen=True)
class ScoringOptions:
    """What a metric is told besides the model and the text."""

    token_reduction: TokenReduction = "all"
    """Average over all tokens, or over the last one of each row. Tokens that ``attention_mask`` hides never count."""

    num_layers: int | None = None
    """How many layers are to go; greedy metrics need it."""

    protect_first: int = 0
    """This many of the first layers are never chosen. Only greedy metrics need to know."""

    protect_last: int = 0
    """This many of the last layers are never chosen. Only greedy metrics need to know."""

    known: LayerScores | None = None
    """What a greedy metric gave before with the same settings and fewer layers; it may go on from there."""

    may_go: Callable[[Sequence[int]], bool] = _any_layers
    """Whether these layers can be removed together. Only greedy metrics need to know."""


LayerMetric: TypeAlias = Callable[["PreTrainedModel", Sequence[Batch], ScoringOptions], LayerScores]
"""Measures the layers of a model on calibration batches."""


def metric_traits(
    *, needs_text: bool = True, is_greedy: bool = False, needs_block: bool = False, tries_blocks: bool = False
) -> Callable[[LayerMetric], LayerMetric]:
    """Mark a metric that is not a plain measurement, as a decorator.

    Args:
        needs_text: False: the metric looks at the model's structure alone. It gets no batches, and a model on the meta
            device, whose weights are never loaded.
        is_greedy: True: the metric gives a ``removal_order``, made for ``num_layers``, ``protect_first`` and
            ``protect_last``.
        needs_block: True: the scores are always ``contiguous``, which is good to know when no block can go.
        tries_blocks: True: the metric gives ``divergences`` of some blocks of up to ``num_layers`` layers, chosen for
            ``protect_first`` and ``protect_last``.
    """

    def mark(metric: LayerMetric) -> LayerMetric:
        vars(metric).update(
            needs_text=needs_text, is_greedy=is_greedy, needs_block=needs_block, tries_blocks=tries_blocks
        )
        return metric

    return mark


def _trait(metric: str | LayerMetric, name: str, default: bool) -> bool:
    return bool(getattr(registry().resolve(METRICS, metric, _METRIC_KEY), name, default))


def metric_code(metric: str | LayerMetric) -> dict[str, str]:
    """Return what counts beside the name of a plugin's metric: its code, where that can be told.

    The built-in ones count by name alone, and a function that is given in place of a name by its code anyway.
    """
    function = registry().resolve(METRICS, metric, _METRIC_KEY)
    if not isinstance(metric, str) or str(getattr(function, "__module__", "")).startswith("axolotl_sdft."):
        return {}
    try:
        return {"metric_code": callable_identity(function)}
    except ValueError:  # it has no source
        return {}


def metric_needs_text(metric: str | LayerMetric) -> bool:
    """Return whether a metric reads calibration text.

    Raises:
        UnknownNameError: No plugin registers the metric.
    """
    return _trait(metric, "needs_text", True)


def metric_is_greedy(metric: str | LayerMetric) -> bool:
    """Return whether a metric gives an order of removal instead of costs of blocks.

    Raises:
        UnknownNameError: No plugin registers the metric.
    """
    return _trait(metric, "is_greedy", False)


def metric_tries_blocks(metric: str | LayerMetric) -> bool:
    """Return whether a metric tries some blocks of the wanted length out.

    Raises:
        UnknownNameError: No plugin registers the metric.
    """
    return _trait(metric, "tries_blocks", False)


def metric_needs_block(metric: str | LayerMetric) -> bool:
    """Return whether a metric says that it always chooses a block of neighbouring layers.


    Raises:
        UnknownNameError: No plugin registers the metric.
    """
    return _trait(metric, "needs_block", False)


def list_of_batches(batches: Iterable[Batch]) -> list[Batch]:
    """Return calibration batches as a list, each found to be what a model can be run on.

    Raises:
        DatasetError: They are something else, such as texts, a single batch, or rows without a dimension for them.
    """
    if isinstance(batches, Mapping):
        raise DatasetError("batches is a single batch, but a list of them is read; write [batch]")
    found = list(batches)
    fault = next((f"batches[{place}]{why}" for place, batch in enumerate(found) if (why := _no_batch(batch))), None)
    if fault is not None:
        raise DatasetError(
            f"{fault}; each must hold input_ids and attention_mask as tensors [rows, tokens], as "
            "tokenizer(texts, padding=True, return_tensors='pt') gives them, and calibration_batches for a dataset"
        )
    return found


def _no_batch(batch: Any) -> str | None:
    """Return what is wrong with a batch; None where it is one."""
    if not isinstance(batch, Mapping):
        return f" is a {type(batch).__name__}"
    if "input_ids" not in batch:
        return f" has no input_ids, only {', '.join(map(str, batch)) or 'nothing'}"
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if not callable(getattr(ids, "numel", None)):
        return f"['input_ids'] is a {type(ids).__name__}"
    if len(ids.shape) != 2:
        return f"['input_ids'] is of shape {list(ids.shape)}"
    if mask is not None and getattr(mask, "shape", None) != ids.shape:
        return f"['attention_mask'] is not of the shape of its input_ids, {list(ids.shape)}"
    return None


def score_layers(
    model: "PreTrainedModel",
    batches: Iterable[Batch],
    metric: str | LayerMetric = "angular_distance",
    token_reduction: TokenReduction = "all",
    *,
    num_layers: int | None = None,
    protect_first: int = 0,
    protect_last: int = 0,
    may_go: Callable[[Sequence[int]], bool] = _any_layers,
    known: LayerScores | None = None,
) -> LayerScores:
    """Return what removing layers costs by a metric.

    The model comes back as it was. Tokens that ``attention_mask`` hides play no part.

    Args:
        model: A decoder or encoder of transformers, on the device or devices where it is to run.
        batches: Calibration text as micro-batches of ``input_ids`` and ``attention_mask``, each [rows, tokens]; a
            generator or a ``DataLoader`` is read once.
        metric: A registered name, or a function that is called as a registered one is.
        token_reduction: Average over all tokens, or over the last one of each row.
        num_layers: How many layers are to go; greedy metrics such as ``perplexity`` need it.
        protect_first: How many of the first layers a greedy metric leaves alone.
        protect_last: How many of the last layers a greedy metric leaves alone.
        may_go: Whether layers can be removed together; greedy metrics choose others where they can't.
        known: Scores of a greedy metric with the same settings and fewer layers, to go on from.

    Raises:
        UnknownNameError: No plugin registers the metric.
        PluginError: The metric can't be called as a metric is, or returned something else than scores.
        ConfigError: The metric needs ``num_layers``, or it is not a whole number; ``token_reduction`` is neither of
            the two.
        CheckpointError: The layers can't be found in the model, or it is not of a kind that the metric can measure.
        DatasetError: ``batches`` holds something else than batches, or no text.

    Example:
        >>> encoded = tokenizer(["Water boils at 100 degrees Celsius.", "Hi."], padding=True, return_tensors="pt")
        >>> scores = score_layers(model, [encoded])
        >>> scores.block_costs[3][5]  # of removing layers 3 and 4
    """
    measure, name = registry().resolve(METRICS, metric, _METRIC_KEY), callable_name(metric)
    if num_layers is not None and not hasattr(num_layers, "__index__"):
        raise ConfigError(f"num_layers is {num_layers!r}, which is not a number of layers; write one such as 6")
    if token_reduction not in get_args(TokenReduction):
        choices = ", ".join(get_args(TokenReduction))
        raise ConfigError(f"token_reduction is {token_reduction!r}; choose one of {choices}")
    options = ScoringOptions(token_reduction, num_layers, protect_first, protect_last, known, may_go)
    scores = measure(model, list_of_batches(batches), options)
    if not isinstance(scores, LayerScores):
        raise PluginError(f"metric {name!r} returned a {type(scores).__name__}; it must return LayerScores")
    if scores.removal_order and not metric_is_greedy(metric):
        raise PluginError(
            f"metric {name!r} returned a removal_order, but does not say that it is greedy; mark it with "
            "@metric_traits(is_greedy=True) of axolotl_sdft.plugin_api"
        )
    return replace(scores, metric=name)  # a metric may have them from another one
