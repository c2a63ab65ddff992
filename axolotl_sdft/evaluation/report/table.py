"""What a report says first, the table of all figures, and both as lines of text of at most 100 columns."""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from axolotl_sdft.core.terminal import LINE_WIDTH, paragraph_lines, table_lines
from axolotl_sdft.core.texts import one_line, short_number, shortened
from axolotl_sdft.evaluation.figures import DraftFigures, Estimate, LikelihoodFigures, ModelFigures, RecoveryReport

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


ABSENT = "-"


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
    models = report.models
    every = (
        ("Quality kept, in percent of the seed", _quality_rows(models)),
        ("Size and cost", _size_rows(models)),
        ("Generation", _speed_rows(models)),
        ("Held-out rows", _held_out_rows(models)),
        ("Tasks of lm-evaluation-harness", _task_rows(models)),
        ("General prompts: what was forgotten", _likelihood_rows([model.general for model in models])),
        ("As draft of the seed in speculative decoding", _draft_rows(models)),
    )
    filled = ((title, tuple(row for row in rows if any(cell != Cell() for cell in row.cells))) for title, rows in every)
    return [Section(title, rows) for title, rows in filled if rows]


def percent_cell(figure: Estimate | None, factor: float = 1.0) -> Cell:
    """Return a figure as a percentage; ``factor`` is 100 for a share."""
    return _cell(figure, lambda value: f"{factor * value:.1f} %", lambda end: f"{factor * end:.1f}")


def plain_cell(figure: Estimate | None) -> Cell:
    """Return a figure in four digits, and its interval in three."""
    return _cell(figure, lambda value: digits(value, 4), lambda end: digits(end, 3))


def digits(value: float, count: int) -> str:
    """Return a number in so many digits, whole from a thousand on: ``0.01234``, ``12.34``, ``1,234``."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.{count}g}"


def _cell(figure: Estimate | None, shown: Callable[[float], str], shown_end: Callable[[float], str]) -> Cell:
    if figure is None:
        return Cell()
    if figure.low is None or figure.high is None or figure.low == figure.high:
        return Cell(shown(figure.value))
    return Cell(shown(figure.value), f"{shown_end(figure.low)} to {shown_end(figure.high)}")


def _quality_rows(models: Sequence[ModelFigures]) -> Iterator[TableRow]:
    for source, (label, _) in SOURCES.items():
        yield TableRow(label, tuple(percent_cell(model.quality_kept.get(source)) for model in models))


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
    yield TableRow("tokens per second", tuple(Cell(f"{s.tokens_per_second:,.1f}") if s else Cell() for s in speeds))
    yield TableRow("peak memory", tuple(Cell(short_number(s.peak_bytes, "B")) if s else Cell() for s in speeds))


def _held_out_rows(models: Sequence[ModelFigures]) -> Iterator[TableRow]:
    yield from _likelihood_rows([model.held_out for model in models])
    yield TableRow("right answers", tuple(percent_cell(model.exact_match, 100) for model in models))


def _likelihood_rows(likelihoods: Sequence[LikelihoodFigures | None]) -> Iterator[TableRow]:
    divergences = tuple(plain_cell(f.kl_to_seed if f else None) for f in likelihoods)
    yield TableRow("KL to the seed, nats per token", divergences)
    yield TableRow(
        "top-1 agreement with the seed", tuple(percent_cell(f.agreement if f else None, 100) for f in likelihoods)
    )
    yield TableRow("perplexity of the answers", tuple(plain_cell(f.perplexity if f else None) for f in likelihoods))


def _task_rows(models: Sequence[ModelFigures]) -> Iterator[TableRow]:
    for task in dict.fromkeys(task for model in models for task in model.tasks):
        yield TableRow(task, tuple(percent_cell(model.tasks.get(task), 100) for model in models))


def _draft_rows(models: Sequence[ModelFigures]) -> Iterator[TableRow]:
    columns: tuple[tuple[str, Callable[[DraftFigures], str]], ...] = (
        ("draft tokens accepted", lambda draft: f"{100 * draft.acceptance:.1f} %"),
        ("tokens per pass of the seed", lambda draft: f"{draft.tokens_per_step:.2f}"),
        ("tokens per second with draft", lambda draft: f"{draft.tokens_per_second:,.1f}"),
        ("tokens per second without", lambda draft: f"{draft.tokens_per_second_alone:,.1f}"),
        ("same answers as without", lambda draft: f"{100 * draft.same_answers:.1f} %"),
    )
    for label, text in columns:
        yield TableRow(label, tuple(Cell(text(model.drafting)) if model.drafting else Cell() for model in models))


_LABEL, _COLUMN = 32, 16
"""Columns that a label and a figure take at most."""
_MODELS_ABREAST = (LINE_WIDTH - _LABEL) // (_COLUMN + 1)
_INTERVALS = "second lines: 95 % confidence intervals, by bootstrap over rows"


def text_lines(report: RecoveryReport) -> Iterator[str]:
    """Yield the headline, the table of all figures, and the notes. More models than fit get a table of their own."""
    yield from _headline_lines(report)
    for places in _column_groups(len(report.models)):
        yield ""
        yield from _table_lines(report, places)
    if any(cell.interval for section in sections(report) for row in section.rows for cell in row.cells):
        yield _INTERVALS
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
    said = []
    if top.quality is not None and top.source is not None:
        cell = percent_cell(top.quality)
        said.append(f"{cell.text} of the seed's quality kept{_interval(cell.interval)}: {SOURCES[top.source][0]}")
    if top.parameters_saved is not None:
        said.append(f"{100 * top.parameters_saved:.1f} % fewer parameters")
    if top.speed_gained is not None:
        said.append(f"{top.speed_gained:.2f} times the seed's tokens per second")
    if top.forgetting is not None:
        cell = plain_cell(top.forgetting)
        away = f"{cell.text} nats per token from the seed on general prompts"
        said.append(f"{away}{_interval(cell.interval)}: forgetting")
    for part in said:
        yield from paragraph_lines(f"{top.model.name}: {part}")


def _interval(text: str) -> str:
    return f" ({text})" if text else ""


def _column_groups(num_models: int) -> list[list[int]]:
    """Return which models stand side by side; the seed stands in each table, for comparison."""
    others, abreast = list(range(1, num_models)), _MODELS_ABREAST - 1
    return [[0, *others[start : start + abreast]] for start in range(0, len(others), abreast)] or [[0]]


def _cell_text(cell: Cell) -> str:
    """Return a figure with its interval below it."""
    return "\n".join(_column_text(text) for text in (cell.text, cell.interval) if text)


def _column_text(text: str) -> str:
    return shortened(one_line(text), _COLUMN)
