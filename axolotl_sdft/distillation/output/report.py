"""Writes ``report.html``: one self-contained page that says what became of a dataset, for a person to judge it.

No script, no network, no picture files. All of it goes through escaping, whatever rows, answers or settings hold.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from axolotl_sdft.core.pictures import Counts, expanded, histograms, note_on_pictures
from axolotl_sdft.core.texts import page_template
from axolotl_sdft.distillation.output.card import is_unaided, publish_commands
from axolotl_sdft.distillation.output.gap import Gap, ReportFigures, is_pure_sample
from axolotl_sdft.distillation.output.unchecked import unchecked_sentences
from axolotl_sdft.distillation.rows.left_alone import rewritten_of

REPORT_FILE = "report.html"
REJECTED_FILE = "rejected.jsonl"
"""Holds all rejected answers, of which the page shows the first."""

_TEMPLATE_FILE = "report.html.jinja"
_SHOWN_CHARS = 1600
_LOW_ACCEPTANCE = 0.5
_FEWEST_ANSWERS = 20  # of fewer a share says little
_FEW_OTHER_RESULTS = 0.02  # some originals are wrong, and some results can't be read

WAY_OUT = {
    "truncated": "raise generation.max_new_tokens, or choose a template that asks for less",
    "leak": "choose another template, or show worked examples (examples)",
    "too_long": "lower generation.max_new_tokens, choose a template that asks for less, or raise sequence_len",
    "repetition": "raise generation.temperature or max_attempts",
    "refusal": "choose a template that shows the reference; a seed model that declines most prompts is not suited",
    "empty": "look at a few rows with axolotl self-distill --dry-run 5",
    "language": "choose a template of your own in the language of the rows",
    "length_ratio": "choose another template, or wider bounds",
    "numeric_answer": "set template: mathematics, or a list of templates, or raise max_attempts",
    "arithmetic": "raise max_attempts",
    "function_call": "set template: function_calls, or raise max_attempts",
    "code": "set template: code, or raise max_attempts",
    "exact_match": "raise max_attempts, or set normalized_match",
    "normalized_match": "raise max_attempts",
    "failed": "start again to have them tried again",
}
"""By the name of the check that rejected an answer, or ``failed``, ``too_long``; keys are of ``self_distillation``."""

_FAILED_FOR_GOOD = "see the reasons, such as a prompt that is too long: they would fail again, so none is tried again"


def ways_out(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return :data:`WAY_OUT` for a dataset: what failed for good is not tried again, however often one starts."""
    return WAY_OUT if summary["to_try_again"]["failed"] else WAY_OUT | {"failed": _FAILED_FOR_GOOD}


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
        name=str(summary["provenance"].get("source") or dataset_dir.name),
        rejected_file=REJECTED_FILE,
        summary=summary,
        rewritten=rewritten_of(summary),
        way_out=ways_out(summary),
        is_pure_sample=is_pure_sample(summary["provenance"]["settings"]["generation"]),
        is_unaided=is_unaided(summary["provenance"]["settings"]),
        provenance=summary["provenance"],
        settings=yaml.safe_dump(summary["provenance"]["settings"], sort_keys=False, allow_unicode=True),
        figures=figures,
        gap=gap,
        charts=_charts(figures, gap),
        note_on_pictures=note_on_pictures(),
        publish_commands=publish_commands(dataset_dir),
        shown_chars=_SHOWN_CHARS,
    )


def lengths(figures: ReportFigures) -> dict[str, float] | None:
    """Return the median words of the trained answers for ``summary.json``; None where no row that is kept has one."""
    if not figures.words_before:
        return None
    return {
        "median_words_before": _median(figures.words_before),
        "median_words_after": _median(figures.words_after),
    }


@dataclass(frozen=True)
class Distribution:
    """Something of the trained answers, before and after."""

    title: str
    middle: str
    """``mean`` or ``median``."""
    before: str
    """The mean or median."""
    after: str
    picture: Markup | None
    """None without matplotlib."""


def _charts(figures: ReportFigures, gap: Gap) -> list[Distribution]:
    charts = []
    if gap.answers:
        before = Counter(round(answer.before, 4) for answer in gap.answers)
        after = Counter(round(answer.after, 4) for answer in gap.answers)
        title = f"Distribution gap of {len(gap.answers)} measured answers"
        charts.append(_chart(title, "mean", (before, after), (gap.before, gap.after), "nats per token"))
    if figures.words_before:
        both = (figures.words_before, figures.words_after)
        middles = (_median(both[0]), _median(both[1]))
        charts.append(_chart("Length of the trained answers", "median", both, middles, "words"))
    return charts


def _chart(
    title: str, middle: str, both: tuple[Counts, Counts], middles: tuple[float, float], axis: str
) -> Distribution:
    picture = histograms(*both, middles, f"{title}, {middle}", axis)
    before, after = (f"{value:.3g} {axis}" if value < 999.5 else f"{value:,.0f} {axis}" for value in middles)
    return Distribution(title, middle, before, after, picture)


def _median(counts: Counts) -> float:
    return float(np.median(expanded(counts)))


def advice_for(summary: Mapping[str, Any]) -> list[str]:
    """Return sentences about what went badly, each with a way out; none where it went well.

    Args:
        summary: ``summary.json`` with its counts and the gap.
    """
    is_told_by_gap = not is_pure_sample(summary["provenance"]["settings"]["generation"])
    return [
        *_about_acceptance(summary),
        *unchecked_sentences({name: count for name, count in summary["unchecked_results"].items() if _tells(count)}),
        *(_about_the_gap(summary.get("gap")) if is_told_by_gap else []),
    ]


def _about_acceptance(summary: Mapping[str, Any]) -> list[str]:
    turns, acceptance = summary["turns"], summary["acceptance"]
    if turns < _FEWEST_ANSWERS or acceptance >= _LOW_ACCEPTANCE:
        return []
    way_out = ways_out(summary)
    reasons = [
        f"{name} {count}" + (f" ({way_out[name]})" if name in way_out else "")
        for name, count in summary["rejections"].items()
    ]
    advice = [
        f"only {acceptance:.0%} of the answers were accepted, so most of the training is on original answers; rejected "
        f"by {'; '.join(reasons)}"
    ]
    settings = summary["provenance"]["settings"]
    temperature = settings["generation"]["temperature"]
    if temperature >= 1.0 and settings["max_attempts"] == 1:
        advice.append(
            f"answers drawn at temperature {temperature:g} fail more often than the most likely ones: max_attempts: 4 "
            "brings more of them; generation.temperature: 0 does too, but such answers protect less of what the model "
            "knows"
        )
    return advice


def _tells(count: Mapping[str, int]) -> bool:
    return count["compared"] >= _FEWEST_ANSWERS and count["others"] > _FEW_OTHER_RESULTS * count["compared"]


def _about_the_gap(gap: Mapping[str, Any] | None) -> list[str]:
    if gap is None or gap["answers"] < _FEWEST_ANSWERS:
        return []
    before, after = gap["nats_per_token_before"], gap["nats_per_token_after"]
    if after <= before:
        return []
    return [
        f"the distribution gap grew from {before:.2f} to {after:.2f} nats per token: rewritten answers surprise the "
        "seed model more than the original ones. Sampled answers do (lower generation.temperature or top_p), and those "
        "of a template that the model hardly understands (choose another, or show worked examples)"
    ]
