"""Reports made by hand, for the tests of what is rendered from them."""

import math

from axolotl_sdft.config import RecoveryReportConfig
from axolotl_sdft.evaluation.figures import (
    DraftFigures,
    Estimate,
    LikelihoodFigures,
    ModelFigures,
    RecoveryReport,
    SpeedFigures,
)
from axolotl_sdft.pruning.planning.savings import Footprint


def figure(value, spread=None, rows=40):
    """A figure whose interval reaches as far to both sides."""
    return (
        Estimate(value, None, None, rows) if spread is None else Estimate(value, value - spread, value + spread, rows)
    )


def likelihood(nll, kl, agreement):
    """Likelihood figures of 40 rows, each with an interval."""
    perplexity = Estimate(math.exp(nll), math.exp(nll - 0.1), math.exp(nll + 0.1), 40)
    return LikelihoodFigures(figure(nll, 0.1), perplexity, figure(kl, kl / 4), figure(agreement, 0.02))


def model(name, layers, folder=None, **figures):
    """A model of so many layers of 1000 parameters each."""
    footprint = Footprint(layers, 1000 * layers, 2000 * layers, 64 * layers, 0, 2000 * layers)
    return ModelFigures(name, folder or f"/models/{name}", footprint, **figures)


def speed(tokens_per_second):
    return SpeedFigures(tokens_per_second, 420_000_000, 128, 64, 3, "cpu, 2 threads")


def seed_model(**figures):
    return model("seed", 30, general=likelihood(0.5, 0.0, 1.0), held_out=likelihood(2.0, 0.0, 1.0), **figures)


def full_report(**changes):
    """Seed, pruned and trained model with every kind of figure."""
    kept = {"tasks": figure(88.8, 2.5), "exact_match": figure(91.0, 6), "held_out": figure(101.2, 3.0)}
    draft = DraftFigures(0.81, 3.9, 41.0, 30.0, 1.0, 16)
    settings = RecoveryReportConfig.model_validate(
        {"exact_match": {"checks": ["numeric_answer"]}, "drafting": {}, "lm_eval": {"tasks": ["gsm8k"]}}
    )
    report = {
        "models": (
            seed_model(
                speed=speed(30.0),
                exact_match=figure(0.5, 0.1),
                tasks={"gsm8k": figure(0.4, 0.02)},
                quality_kept=dict.fromkeys(kept, figure(100.0)),
            ),
            model(
                "pruned",
                24,
                held_out=likelihood(2.6, 0.9, 0.61),
                general=likelihood(1.4, 0.8, 0.66),
                exact_match=figure(0.3, 0.1),
                tasks={"gsm8k": figure(0.31, 0.02)},
                speed=speed(36.0),
                drafting=draft,
                quality_kept={"tasks": figure(77.5, 3.0), "exact_match": figure(60.0, 9), "held_out": figure(54.9, 4)},
            ),
            model(
                "trained",
                24,
                held_out=likelihood(1.95, 0.3, 0.8),
                general=likelihood(0.7, 0.21, 0.85),
                exact_match=figure(0.45, 0.1),
                tasks={"gsm8k": figure(0.355, 0.02)},
                speed=speed(36.0),
                drafting=draft,
                quality_kept=kept,
            ),
        ),
        "settings": settings.model_dump(mode="json"),
        "notes": ("original rows: ./plain holds no model yet",),
        "provenance": {"created": "2031-05-06 07:08 UTC", "package_versions": {"axolotl-sdft": "9.9"}},
    }
    return RecoveryReport(**(report | changes))
