"""Reports made by hand, for the tests of what is rendered from them."""

import math

from axolotl_sdft.config import RecoveryReportConfig
from axolotl_sdft.evaluation.figures import (
    Curve,
    DraftFigures,
    Estimate,
    LikelihoodFigures,
    ModelFigures,
    RecoveryReport,
    SideBySide,
    SpeedFigures,
    TriedRemoval,
)
from axolotl_sdft.pruning.planning.savings import Footprint


def figure(value, spread=None, rows=60):
    """A figure whose interval reaches as far to both sides."""
    return (
        Estimate(value, None, None, rows) if spread is None else Estimate(value, value - spread, value + spread, rows)
    )


def likelihood(nll, kl, agreement):
    """Likelihood figures of 60 rows, each with an interval."""
    perplexity = Estimate(math.exp(nll), math.exp(nll - 0.1), math.exp(nll + 0.1), 60)
    return LikelihoodFigures(figure(nll, 0.1), perplexity, figure(kl, kl / 4), figure(agreement, 0.02))


def model(name, layers, folder=None, **figures):
    """A model of so many layers of 1000 parameters each."""
    footprint = Footprint(layers, 1000 * layers, 2000 * layers, 64 * layers, 0, 2000 * layers)
    return ModelFigures(name, folder or f"/models/{name}", footprint, **figures)


def speed(*speeds):
    """Speeds of rounds; the middle one is the median."""
    return SpeedFigures(sorted(speeds)[len(speeds) // 2], speeds, 420_000_000, 128, 64, "cpu, 2 threads")


def seed_model(**figures):
    return model("seed", 30, general=likelihood(0.5, 0.0, 1.0), held_out=likelihood(2.0, 0.0, 1.0), **figures)


def relative(**values):
    """Figures in percent of the seed model, each with an interval of 3 to both sides."""
    return {source: figure(value, 3.0, rows=300) for source, value in values.items()}


def full_report(**changes):
    """Seed, pruned and trained model with every kind of figure."""
    kept = relative(tasks=81.2, exact_match=97.9, tool_calls=90.0, held_out=101.2, general=70.3)
    pruned_kept = relative(tasks=72.0, exact_match=62.6, tool_calls=50.0, held_out=54.9, general=40.0)
    draft = DraftFigures(0.81, 3.9, 41.0, 30.0, 1.0, 16)
    settings = RecoveryReportConfig.model_validate(
        {"exact_match": {"checks": ["numeric_answer"]}, "drafting": {}, "lm_eval": {"tasks": ["gsm8k"]}}
    )
    shared_speed = speed(35.0, 36.0, 37.0)
    report = {
        "models": (
            seed_model(
                speed=speed(29.0, 30.0, 31.0),
                exact_match=figure(0.5, 0.1),
                pass_at={"1": figure(0.4, 0.1), "5": figure(0.8, 0.1)},
                repetition={"general": figure(0.02, 0.02), "held_out": figure(0.0)},
                refusals=figure(0.05, 0.02),
                tool_calls=figure(0.6, 0.1),
                tasks={"gsm8k": figure(0.4, 0.02), "arc_easy": figure(0.7, 0.02)},
                relative_to_seed=dict.fromkeys(kept, figure(100.0, rows=300)),
            ),
            model(
                "pruned",
                24,
                held_out=likelihood(2.6, 0.9, 0.61),
                general=likelihood(1.4, 0.8, 0.66),
                exact_match=figure(0.3, 0.1),
                repetition={"general": figure(0.4, 0.1), "held_out": figure(0.3)},
                refusals=figure(0.0),
                tool_calls=figure(0.3, 0.1),
                tasks={"gsm8k": figure(0.31, 0.02), "arc_easy": figure(0.6, 0.02)},
                speed=shared_speed,
                drafting=draft,
                relative_to_seed=pruned_kept,
            ),
            model(
                "trained",
                24,
                held_out=likelihood(1.95, 0.3, 0.8),
                general=likelihood(0.7, 0.21, 0.85),
                exact_match=figure(0.45, 0.1),
                pass_at={"1": figure(0.4, 0.1), "5": figure(0.7, 0.1)},
                repetition={"general": figure(0.04, 0.03), "held_out": figure(0.0)},
                refusals=figure(0.02, 0.02),
                tool_calls=figure(0.54, 0.1),
                tasks={"gsm8k": figure(0.355, 0.02), "arc_easy": figure(0.65, 0.02)},
                speed=shared_speed,
                drafting=draft,
                relative_to_seed=kept,
            ),
        ),
        "settings": settings.model_dump(mode="json"),
        "notes": ("original rows: ./plain holds no model yet",),
        "provenance": {
            "seed_model": "org/seed-135M",
            "data": "org/word-problems",
            "created": "2031-05-06 07:08 UTC",
            "package_versions": {"axolotl-sdft": "9.9"},
        },
        "task_kinds": {"gsm8k": "generate_until", "arc_easy": "multiple_choice"},
        "answers": (
            SideBySide("Why is the sky blue?", "yours", {"seed": "It scatters.", "pruned": "", "trained": "Light."}),
            SideBySide("What is 2 + 2?", "held out", {"seed": "4", "trained": "It is 4."}, reference="2 + 2 = 4"),
        ),
        "curves": (
            Curve("trained", "loss", (1, 2, 3), (2.5, 2.0, 1.75)),
            Curve("trained", "eval_loss", (1, 3), (2.4, 1.9)),
        ),
        "removals": (TriedRemoval(1, 0.1, 0.05), TriedRemoval(2, 0.3, 0.2), TriedRemoval(6, 0.98, 0.73)),
        "removal_measure": "KL to the seed model (nats per token)",
        "unmeasured": {"pass at 100": "set it"},
    }
    return RecoveryReport(**(report | changes))
