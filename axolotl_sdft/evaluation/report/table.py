"""The table of all figures, by capability, and the report as lines of text of at most 100 columns."""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from axolotl_sdft.core.terminal import LINE_WIDTH, paragraph_lines, table_lines
from axolotl_sdft.core.texts import one_line, short_number, shortened
from axolotl_sdft.evaluation.figures import DraftFigures, Estimate, LikelihoodFigures, ModelFigures, RecoveryReport
from axolotl_sdft.evaluation.report.headline import SOURCES, Headline, Tile, headline, is_better

ABSENT = "-"
_OWN_SECTIONS = ("multiple_choice", "generate_until")


@dataclass(frozen=True)
class Cell:
    """One figure of one model."""

    text: str = ABSENT
    interval: str = ""
    """Such as ``1.2 to 1.4``; empty where there is none."""


@dataclass(frozen=True)
class TableRow:
    """One figure of all models."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Section:
    """Rows that belong together."""

    title: str
    rows: tuple[TableRow, ...]


def sections(report: RecoveryReport) -> list[Section]:
    """Return all figures that at least one model has, in the order of a report."""
    models, tasks = report.models, report.task_kinds
    every = (
        ("In percent of the seed model", _relative_rows(models)),
        ("Size and cost", _size_rows(models)),
        ("Speed", _speed_rows(models)),
        ("Likelihood of held-out answers", _likelihood_rows([model.held_out for model in models])),
        ("Likelihood of general answers", _likelihood_rows([model.general for model in models])),
        ("Multiple choice", _task_rows(models, tasks, ("multiple_choice",))),
        ("Generation", [*_generation_rows(models), *_task_rows(models, tasks, ("generate_until",))]),
        ("Tool calls", _share_rows("the calls of the reference", [model.tool_calls for model in models])),
        ("Refusals", _share_rows("answers that refuse", [model.refusals for model in models])),
        ("Other tasks of lm-evaluation-harness", _task_rows(models, tasks, None)),
        ("As draft of the seed model in speculative decoding", _draft_rows(models)),
    )
    filled = ((title, tuple(row for row in rows if any(cell != Cell() for cell in row.cells))) for title, rows in every)
    return [Section(title, rows) for title, rows in filled if rows]


def percent_cell(figure: Estimate | None, factor: float = 1.0) -> Cell:
    """Return a figure as a percentage in three digits; ``factor`` is 100 for a share."""
    return _cell(figure, lambda value: f"{digits(factor * value)} %", lambda end: digits(factor * end))


def plain_cell(figure: Estimate | None) -> Cell:
    """Return a figure and its interval in three digits."""
    return _cell(figure, digits, digits)


def digits(value: float) -> str:
    """Return a number in three significant digits, whole from a thousand on: ``0.0123``, ``12.0``, ``1,234``."""
    if 999.5 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if 1e-4 <= abs(value) < 1e3 else f"{value:.3g}"


def _cell(figure: Estimate | None, shown: Callable[[float], str], shown_end: Callable[[float], str]) -> Cell:
    if figure is None:
        return Cell()
    if figure.low is None or figure.high is None or figure.low == figure.high:
        return Cell(shown(figure.value))
    return Cell(shown(figure.value), f"{shown_end(figure.low)} to {shown_end(figure.high)}")


def _relative_rows(models: Sequence[ModelFigures]) -> Iterator[TableRow]:
    for source, (label, _) in SOURCES.items():
        yield TableRow(label, tuple(percent_cell(model.relative_to_seed.get(source)) for model in models))


def _size_rows(models: Sequence[ModelFigures]) -> Iterator[TableRow]:
    fields = (
        ("layers", "num_layers", ""),
        ("parameters", "parameters", ""),
        ("weights", "weight_bytes", "B"),
        ("FLOPs per token", "flops", ""),
        ("KV cache per token", "cache_bytes", "B"),
        ("state per sequence", "state_bytes", "B"),
    )
    for label, field, unit in fields:
        yield TableRow(label, tuple(_size_cell(model, field, unit) for model in models))


def _size_cell(model: ModelFigures, field: str, unit: str) -> Cell:
    value = getattr(model.footprint, field, None)
    # A model without a recurrent state has one of 0 bytes, which is nothing to tell.
    return Cell() if value is None or (field == "state_bytes" and not value) else Cell(short_number(value, unit))


def _speed_rows(models: Sequence[ModelFigures]) -> Iterator[TableRow]:
    speeds = [model.speed for model in models]
    yield TableRow("tokens per second", tuple(speed_cell(model) for model in models))
    yield TableRow("peak memory", tuple(Cell(short_number(s.peak_bytes, "B")) if s else Cell() for s in speeds))


def speed_cell(model: ModelFigures) -> Cell:
    """Return the median speed; as interval, the slowest and the fastest round of all models of its shape."""
    if model.speed is None:
        return Cell()
    slowest, fastest = min(model.speed.speeds), max(model.speed.speeds)
    return _cell(Estimate(model.speed.tokens_per_second, slowest, fastest, len(model.speed.speeds)), digits, digits)


def _generation_rows(models: Sequence[ModelFigures]) -> Iterator[TableRow]:
    yield from _share_rows("right answers", [model.exact_match for model in models])
    for k in sorted({int(k) for model in models for k in model.pass_at}):
        yield from _share_rows(f"pass@{k}", [model.pass_at.get(str(k)) for model in models])
    for prompts, named in (("held_out", "held-out prompts"), ("general", "general prompts")):
        yield from _share_rows(f"in circles, {named}", [model.repetition.get(prompts) for model in models])


def _share_rows(label: str, figures: Sequence[Estimate | None]) -> Iterator[TableRow]:
    yield TableRow(label, tuple(percent_cell(figure, 100) for figure in figures))


def _likelihood_rows(likelihoods: Sequence[LikelihoodFigures | None]) -> Iterator[TableRow]:
    divergences = tuple(plain_cell(f.kl_to_seed if f else None) for f in likelihoods)
    yield TableRow("KL to seed model, nats/token", divergences)
    yield TableRow(
        "agreement with the seed model", tuple(percent_cell(f.agreement if f else None, 100) for f in likelihoods)
    )
    yield TableRow("perplexity of the answers", tuple(plain_cell(f.perplexity if f else None) for f in likelihoods))


def _task_rows(
    models: Sequence[ModelFigures], task_kinds: Mapping[str, str], wanted: Sequence[str] | None
) -> Iterator[TableRow]:
    """Yield the tasks of some kinds; given None, those of all kinds that stand nowhere else."""
    for task in dict.fromkeys(task for model in models for task in model.tasks):
        kind = task_kinds.get(task, "")
        if kind in wanted if wanted is not None else kind not in _OWN_SECTIONS:
            yield TableRow(task, tuple(percent_cell(model.tasks.get(task), 100) for model in models))


def _draft_rows(models: Sequence[ModelFigures]) -> Iterator[TableRow]:
    columns: tuple[tuple[str, Callable[[DraftFigures], str]], ...] = (
        ("draft tokens accepted", lambda draft: f"{digits(100 * draft.acceptance)} %"),
        ("tokens per pass of the seed model", lambda draft: digits(draft.tokens_per_step)),
        ("tokens per second with draft", lambda draft: digits(draft.tokens_per_second)),
        ("tokens per second without", lambda draft: digits(draft.tokens_per_second_alone)),
        ("same answers as without", lambda draft: f"{digits(100 * draft.same_answers)} %"),
    )
    for label, text in columns:
        yield TableRow(label, tuple(Cell(text(model.drafting)) if model.drafting else Cell() for model in models))


_LABEL, _COLUMN = 32, 16
"""Columns that a label and a figure take at most."""
_MODELS_ABREAST = (LINE_WIDTH - _LABEL) // (_COLUMN + 1)
_INTERVALS = "second lines: 95 % confidence intervals, by bootstrap over rows"
_SPREAD = "; of tokens per second, the slowest and the fastest round"

CAPABILITIES = (
    "Multiple choice comes back to about 90 % of the seed model; answers that take steps of reasoning come back last, "
    "if at all (arXiv 2602.01997). A good likelihood or a good choice says little of what a model writes."
)
"""The papers' warning, beside figures by capability."""


def text_lines(report: RecoveryReport) -> Iterator[str]:
    """Yield the headline, the table of all figures, what is missing, and the notes.

    More models than fit get a table of their own.
    """
    yield from _headline_lines(report)
    for places in _column_groups(len(report.models)):
        yield ""
        yield from _table_lines(report, places)
    if any(cell.interval for section in sections(report) for row in section.rows for cell in row.cells):
        yield from paragraph_lines(_INTERVALS + (_SPREAD if any(model.speed for model in report.models) else ""))
    yield from paragraph_lines(CAPABILITIES)
    for what, reason in report.unmeasured.items():
        yield from paragraph_lines(f"not measured: {what}: {reason}")
    for note in report.notes:
        yield from paragraph_lines(f"note: {note}")


def _table_lines(report: RecoveryReport, places: Sequence[int]) -> Iterator[str]:
    rows = []
    for section in sections(report):
        rows.append((textwrap.fill(section.title, _LABEL), *("" for _ in places)))
        for row in section.rows:
            label = f"  {shortened(one_line(row.label), _LABEL - 2)}"
            rows.append((label, *(_cell_text(row.cells[place]) for place in places)))
    names = [_column_text(report.models[place].name) for place in places]
    yield from table_lines(("", *names), rows, "l" + "r" * len(names), gap=1)


def _headline_lines(report: RecoveryReport) -> Iterator[str]:
    top = headline(report)
    if top is None:
        return
    yield from paragraph_lines(f"{top.model.name}: {top.verdict}")
    for tile in (top.task, top.everything_else):
        yield from paragraph_lines(f"{tile.title.lower()}: {_tile_text(top, tile)}")
    if top.forgetting is not None:
        cell = plain_cell(top.forgetting)
        away = f"forgetting: {cell.text} nats per token from the seed model on general prompts"
        yield from paragraph_lines(f"{away}{_interval(cell.interval)}")


def _tile_text(top: Headline, tile: Tile) -> str:
    if tile.after is None or tile.source is None:
        return tile.why_none
    told = f"{change(tile)} {meaning(tile)}: {SOURCES[tile.source][0]}"
    interval = percent_cell(tile.after).interval
    return f"{told}; {tile.after.rows:,} rows" + (f", interval {interval}" if interval else "")


def change(tile: Tile) -> str:
    """Return a headline figure, with that of the pruned model before it: ``63.0 → 98.0 %``."""
    before = "" if tile.before is None else f"{digits(tile.before.value)} → "
    return f"{before}{percent_cell(tile.after).text}"


def meaning(tile: Tile) -> str:
    """Return what a headline figure is a percentage of; above 100 it is not called a share."""
    is_above = tile.after is not None and is_better(tile.after)
    return "of the seed model's: better than the seed model on this measure" if is_above else "of the seed model's"


def _interval(text: str) -> str:
    return f" ({text})" if text else ""


def _column_groups(num_models: int) -> list[list[int]]:
    """Return which models stand side by side; the seed model stands in each table, for comparison."""
    others, abreast = list(range(1, num_models)), _MODELS_ABREAST - 1
    return [[0, *others[start : start + abreast]] for start in range(0, len(others), abreast)] or [[0]]


def _cell_text(cell: Cell) -> str:
    """Return a figure with its interval below it."""
    return "\n".join(_column_text(text) for text in (cell.text, cell.interval) if text)


def _column_text(text: str) -> str:
    return shortened(one_line(text), _COLUMN)
