"""Renders ``report.html``: one self-contained page with pictures that a person judges a recovery by.

Values that are not finite are left out: a broken model must not take the picture of the others with it.

No script, no network, no picture files. All of it goes through escaping, whatever names, paths or settings hold.
"""

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from axolotl_sdft.core.model_folder import is_adapter, read_config
from axolotl_sdft.core.pictures import Point, bar_chart, note_on_pictures, scatter_chart
from axolotl_sdft.core.texts import page_template
from axolotl_sdft.evaluation.figures import Estimate, ModelFigures, RecoveryReport
from axolotl_sdft.evaluation.report.table import SEED, SOURCES, digits, headline, percent_cell, plain_cell, sections

_TEMPLATE_FILE = "recovery_report.html.jinja"


def render_page(report: RecoveryReport) -> str:
    """Return the page."""
    top = headline(report)
    source = top.source if top else None
    measured = [name for name in SOURCES if any(name in model.quality_kept for model in report.models)]
    return page_template(__package__, _TEMPLATE_FILE).render(
        report=report,
        top=top,
        quality=percent_cell(top.quality if top else None),
        forgetting=plain_cell(top.forgetting if top else None),
        drafts={name: "\n".join(lines) for name, lines in vllm_lines_of(report).items()},
        sources={name: SOURCES[name] for name in measured},
        sections=sections(report),
        settings=yaml.safe_dump(dict(report.settings), sort_keys=False, allow_unicode=True),
        provenance=_flat(report.provenance),
        charts=[chart for chart in _charts(report, source) if chart[1]],
        note_on_pictures=note_on_pictures(),
        harness_tables=_harness_tables(report),
    )


def _charts(report: RecoveryReport, source: str | None) -> list[tuple[str, Markup | None]]:
    """Return the pictures by their titles; None where there is nothing to draw."""
    kept = "quality kept (percent of the seed model)"
    others = [model for model in report.models if model.name != SEED]  # the seed's own divergence is 0 by definition
    quality = _points(report.models, lambda model: model.quality_kept.get(source or ""), " %")
    sized = [model for model in report.models if model.footprint]
    spots = _points(sized, lambda model: model.quality_kept.get(source or ""), " %")
    forgotten = _points(others, lambda model: model.general.kl_to_seed if model.general else None)
    speed = [_point(model, model.speed.tokens_per_second) for model in report.models if model.speed]
    across = "parameters (millions)"
    return [
        ("Quality kept", bar_chart(quality, "Quality kept", kept)),
        ("Size and quality", scatter_chart(spots, "Size and quality", (across, "quality kept (percent)"))),
        ("Forgetting", bar_chart(forgotten, "Forgetting", "KL divergence from the seed model (nats per token)")),
        ("Generation", bar_chart(speed, "Generation", "speed of one sequence (tokens per second)")),
    ]


def _points(
    models: Iterable[ModelFigures], figure: Callable[[ModelFigures], Estimate | None], unit: str = ""
) -> list[Point]:
    """Return a figure of each model that has it; across stands its size."""
    points = []
    for model in models:
        found = figure(model)
        if found is not None:
            # The seed beside itself has an interval without width, which is nothing to draw.
            ends = (found.low, found.high) if found.low != found.high else (None, None)
            points.append(_point(model, found.value, *ends, unit))
    return points


def _point(
    model: ModelFigures, value: float, low: float | None = None, high: float | None = None, unit: str = ""
) -> Point:
    ends = "" if low is None or high is None else f" ({digits(low, 3)} to {digits(high, 3)})"
    label = f"{digits(value, 4)}{unit}{ends}"
    size = model.footprint.parameters / 1e6 if model.footprint else 0.0
    return Point(model.name, label, model.name == SEED, value, low, high, size)


def _harness_tables(report: RecoveryReport) -> dict[str, str]:
    if not report.harness:
        return {}
    from axolotl_sdft.evaluation.measures.task_scores import results_table

    return {name: results_table(results) for name, results in report.harness.items()}


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    """Return provenance as texts; a mapping in it becomes one text."""
    return {
        name.replace("_", " "): ", ".join(f"{key} {item}" for key, item in value.items())
        if isinstance(value, Mapping)
        else str(value)
        for name, value in values.items()
    }


def vllm_lines_of(report: RecoveryReport) -> dict[str, list[str]]:
    """Return how vLLM is started with each model that a report tried as draft, by the model's name."""
    seed, others = report.models[0], report.models[1:]
    num_tokens = (report.settings.get("drafting") or {}).get("num_draft_tokens")
    if num_tokens is None:
        return {}
    return {
        model.name: vllm_lines(Path(seed.folder), Path(model.folder), num_tokens) for model in others if model.drafting
    }


def vllm_lines(seed_dir: Path, draft_dir: Path, num_draft_tokens: int) -> list[str]:
    """Return what serves the seed with a draft: comments, a command for a POSIX shell, and the same in Python.

    Read in vLLM's own settings: ``draft_model`` works from 0.15 on (0.10 to 0.14 refuse it),
    ``use_heterogeneous_vocab`` was seen from 0.25 on. Up to 0.32, a draft of another vocabulary size than the seed's is
    refused without the latter.

    A LoRA adapter can't be a draft in vLLM. For one, a comment says how to merge it, and the others name the folder
    that ``axolotl merge-lora`` writes.
    """
    lines = ["# needs vllm >= 0.15, and num_speculative_tokens of your choice: more pay where more are accepted"]
    if is_adapter(draft_dir):
        lines.append(
            "# vLLM drafts with no LoRA adapter: merge it first with `axolotl merge-lora`, which writes ./merged"
        )
        draft_dir = draft_dir / "merged"
    settings: dict[str, Any] = {
        "method": "draft_model",
        "model": str(draft_dir),
        "num_speculative_tokens": num_draft_tokens,
    }
    sizes = [_vocabulary_size(folder) for folder in (seed_dir, draft_dir)]
    if None not in sizes and sizes[0] != sizes[1]:
        lines.append(f"# the embeddings have {sizes[0]} and {sizes[1]} rows, which needs vllm >= 0.25")
        settings["use_heterogeneous_vocab"] = True
    command = ["vllm", "serve", str(seed_dir), "--speculative-config", json.dumps(settings, ensure_ascii=False)]
    return [*lines, shlex.join(command), f"vllm.LLM(model={str(seed_dir)!r}, speculative_config={settings!r})"]


def _vocabulary_size(model_dir: Path) -> int | None:
    """Return how many tokens the config counts, padding included; None where there is no config or it does not say."""
    config = read_config(model_dir) if (model_dir / "config.json").is_file() else {}
    size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    return size if isinstance(size, int) else None
