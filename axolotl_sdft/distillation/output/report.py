"""Writes ``report.html``: one self-contained page that says what became of a dataset, for a person to judge it.

No script, no network, no picture files. All of it goes through escaping, whatever rows, answers or settings hold.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from axolotl_sdft.core.pages import page_template
from axolotl_sdft.distillation.output.card import publish_commands
from axolotl_sdft.distillation.output.charts import mean, median, overlaid_histograms
from axolotl_sdft.distillation.output.gap import Gap
from axolotl_sdft.distillation.output.report_figures import ReportFigures
from axolotl_sdft.distillation.rows.left_alone import rewritten_of

REPORT_FILE = "report.html"

_TEMPLATE_FILE = "report.html.jinja"
_SHOWN_CHARS = 1600


def write_report(folder: Path, dataset_dir: Path, summary: dict[str, Any], figures: ReportFigures, gap: Gap) -> None:
    """Write the page into a folder.

    Args:
        folder: Where it is written.
        dataset_dir: Where the dataset will be, as the page names it.
        summary: What ``summary.json`` holds.
        figures: What was collected from the rows.
        gap: The distribution gap.
    """
    page = render_report(dataset_dir, summary, figures, gap)
    (folder / REPORT_FILE).write_text(page, encoding="utf-8")


def render_report(dataset_dir: Path, summary: dict[str, Any], figures: ReportFigures, gap: Gap) -> str:
    """Return the page."""
    return page_template(__package__, _TEMPLATE_FILE).render(
        dataset_dir=str(dataset_dir),
        name=dataset_dir.name,
        summary=summary,
        rewritten=rewritten_of(summary),
        provenance=summary["provenance"],
        settings=yaml.safe_dump(summary["provenance"]["settings"], sort_keys=False, allow_unicode=True),
        figures=figures,
        gap=gap,
        gap_chart=_gap_chart(gap) if gap.answers else None,
        lengths_chart=_lengths_chart(figures) if figures.words_before else None,
        publish_commands=publish_commands(dataset_dir),
        shown_chars=_SHOWN_CHARS,
    )


def lengths(figures: ReportFigures) -> dict[str, float] | None:
    """Return the median words of the trained answers for ``summary.json``; None where no row that is kept has one."""
    if not figures.words_before:
        return None
    return {
        "median_words_before": median(figures.words_before),
        "median_words_after": median(figures.words_after),
    }


def _lengths_chart(figures: ReportFigures) -> Any:
    before, after = figures.words_before, figures.words_after
    return overlaid_histograms(before, after, median(before), median(after), least_step=1)


def _gap_chart(gap: Gap) -> Any:
    before = Counter(round(answer.before, 4) for answer in gap.answers)
    after = Counter(round(answer.after, 4) for answer in gap.answers)
    return overlaid_histograms(before, after, mean(before), mean(after), least_step=0.01)
