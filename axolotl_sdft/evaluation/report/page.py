"""Renders ``report.html``: one self-contained page that a person judges a recovery by.

No script, no network, no picture files. All of it goes through escaping, whatever names, paths or settings hold.
"""

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from axolotl_sdft.core.pages import page_template
from axolotl_sdft.core.texts import shortened
from axolotl_sdft.evaluation.metrics import Figure, ModelFigures, RecoveryReport
from axolotl_sdft.evaluation.report.charts import Bars, Point, Scatter, bars, scatter
from axolotl_sdft.evaluation.report.headline import SEED, SOURCES, headline
from axolotl_sdft.evaluation.report.table import percent_cell, plain_cell, sections
from axolotl_sdft.evaluation.report.vllm_settings import vllm_lines_of

_TEMPLATE_FILE = "recovery_report.html.jinja"
_NAME_CHARS = 28


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
        quality_chart=_quality_chart(report, source),
        size_chart=_size_chart(report, source),
        forgetting_chart=_forgetting_chart(report),
        speed_chart=_speed_chart(report),
    )


def _quality_chart(report: RecoveryReport, source: str | None) -> Bars | None:
    return bars(_points(report, lambda model: model.quality_kept.get(source or "")), " %") if source else None


def _forgetting_chart(report: RecoveryReport) -> Bars | None:
    others = [model for model in report.models if model.name != SEED]  # the seed's own is 0 by definition
    return bars([_point(model, model.general.kl_to_seed) for model in others if model.general])


def _speed_chart(report: RecoveryReport) -> Bars | None:
    return bars([_named(model, model.speed.tokens_per_second) for model in report.models if model.speed])


def _size_chart(report: RecoveryReport, source: str | None) -> Scatter | None:
    return scatter(
        [
            _point(model, model.quality_kept[source], model.footprint.parameters / 1e6)
            for model in report.models
            if source is not None and source in model.quality_kept and model.footprint
        ]
    )


def _points(report: RecoveryReport, figure: Callable[[ModelFigures], Figure | None]) -> list[Point]:
    return [_point(model, found) for model in report.models if (found := figure(model)) is not None]


def _point(model: ModelFigures, figure: Figure, x: float = 0.0) -> Point:
    # The seed beside itself has an interval without width, which is nothing to draw.
    low, high = (figure.low, figure.high) if figure.low != figure.high else (None, None)
    return _named(model, figure.value, low, high, x)


def _named(
    model: ModelFigures, value: float, low: float | None = None, high: float | None = None, x: float = 0.0
) -> Point:
    return Point(shortened(model.name, _NAME_CHARS), model.name == SEED, value, low, high, x)


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    """Return provenance as texts; a mapping in it becomes one text."""
    return {
        name.replace("_", " "): ", ".join(f"{key} {item}" for key, item in value.items())
        if isinstance(value, Mapping)
        else str(value)
        for name, value in values.items()
    }
