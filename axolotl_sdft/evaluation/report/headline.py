"""What a recovery report says first: quality kept, parameters saved, speed gained, forgetting. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from axolotl_sdft.evaluation.metrics import Estimate, ModelFigures, RecoveryReport

SEED, TRAINED = "seed", "trained"

SOURCES: Mapping[str, tuple[str, str]] = {
    "tasks": (
        "tasks of lm-evaluation-harness",
        "The mean score over all tasks, divided by the seed's.",
    ),
    "exact_match": (
        "right answers on held-out rows",
        "The share of held-out prompts whose answer passes the checks, divided by the seed's.",
    ),
    "held_out": (
        "likelihood of held-out answers",
        "The seed's perplexity on the reference answers of held-out rows, divided by the model's. Training on the task "
        "can lift it above 100 %.",
    ),
    "general": (
        "likelihood of general answers",
        "The seed's perplexity on its own answers to prompts from outside the task, divided by the model's. It says "
        "how much of the seed's behaviour is left, not how good an answer is.",
    ),
}
"""Where a figure of quality kept comes from, the strongest evidence first: what it is called, and what it says."""


@dataclass(frozen=True)
class Headline:
    """The figures of one model that matter most; None where something was not measured."""

    model: ModelFigures
    source: str | None
    """Which of :data:`SOURCES` the quality comes from."""

    quality: Estimate | None
    """In percent of the seed."""

    parameters_saved: float | None
    """Share of the seed's parameters that the model does without."""

    speed_gained: float | None
    """Tokens per second, divided by the seed's."""

    forgetting: Estimate | None
    """KL to the seed, in nats per token, on the seed's own answers to general prompts."""


def headline(report: RecoveryReport) -> Headline | None:
    """Return the figures of the trained model, else of the last one that is not the seed; None with the seed alone."""
    seed, others = report.models[0], report.models[1:]
    if not others:
        return None
    model = next((other for other in others if other.name == TRAINED), others[-1])
    source = next((name for name in SOURCES if name in model.quality_kept), None)
    return Headline(
        model=model,
        source=source,
        quality=model.quality_kept[source] if source else None,
        parameters_saved=_parameters_saved(seed, model),
        speed_gained=_speed_gained(seed, model),
        forgetting=model.general.kl_to_seed if model.general else None,
    )


def _parameters_saved(seed: ModelFigures, model: ModelFigures) -> float | None:
    if seed.footprint is None or model.footprint is None:
        return None
    return 1 - model.footprint.parameters / seed.footprint.parameters


def _speed_gained(seed: ModelFigures, model: ModelFigures) -> float | None:
    if seed.speed is None or model.speed is None:
        return None
    return model.speed.tokens_per_second / seed.speed.tokens_per_second
