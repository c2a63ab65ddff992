"""The table of all figures, one column per model: the same in the terminal, on the page and in the model card."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from axolotl_sdft.evaluation.metrics import DraftFigures, Figure, LikelihoodFigures, ModelFigures, RecoveryReport
from axolotl_sdft.evaluation.report.headline import SOURCES
from axolotl_sdft.pruning.planning.report import short_number

ABSENT = "-"


@dataclass(frozen=True)
class Cell:
    """One figure of one model."""

    text: str = ABSENT
    interval: str = ""
    """Such as ``1.2 to 1.4``; empty where there is none."""


@dataclass(frozen=True)
class Row:
    """One figure of all models."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Section:
    """Rows that belong together."""

    title: str
    rows: tuple[Row, ...]


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


def percent_cell(figure: Figure | None, factor: float = 1.0) -> Cell:
    """Return a figure as a percentage; ``factor`` is 100 for a share."""
    return _cell(figure, lambda value: f"{factor * value:.1f} %", lambda end: f"{factor * end:.1f}")


def plain_cell(figure: Figure | None) -> Cell:
    """Return a figure in four digits, and its interval in three."""
    return _cell(figure, lambda value: digits(value, 4), lambda end: digits(end, 3))


def digits(value: float, count: int) -> str:
    """Return a number in so many digits, whole from a thousand on: ``0.01234``, ``12.34``, ``1,234``."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.{count}g}"


def _cell(figure: Figure | None, shown: Callable[[float], str], shown_end: Callable[[float], str]) -> Cell:
    if figure is None:
        return Cell()
    if figure.low is None or figure.high is None or figure.low == figure.high:
        return Cell(shown(figure.value))
    return Cell(shown(figure.value), f"{shown_end(figure.low)} to {shown_end(figure.high)}")


def _quality_rows(models: Sequence[ModelFigures]) -> Iterator[Row]:
    for source, (label, _) in SOURCES.items():
        yield Row(label, tuple(percent_cell(model.quality_kept.get(source)) for model in models))


def _size_rows(models: Sequence[ModelFigures]) -> Iterator[Row]:
    fields = (
        ("layers", "num_layers", ""),
        ("parameters", "parameters", ""),
        ("weights", "weight_bytes", "B"),
        ("FLOPs per token", "flops", ""),
        ("KV cache per token", "cache_bytes", "B"),
        ("state per sequence", "state_bytes", "B"),
    )
    for label, field, unit in fields:
        yield Row(label, tuple(_size_cell(model, field, unit) for model in models))


def _size_cell(model: ModelFigures, field: str, unit: str) -> Cell:
    value = getattr(model.footprint, field, None)
    # A model without a recurrent state has one of 0 bytes, which is nothing to tell.
    return Cell() if value is None or (field == "state_bytes" and not value) else Cell(short_number(value, unit))


def _speed_rows(models: Sequence[ModelFigures]) -> Iterator[Row]:
    speeds = [model.speed for model in models]
    yield Row("tokens per second", tuple(Cell(f"{s.tokens_per_second:,.1f}") if s else Cell() for s in speeds))
    yield Row("peak memory", tuple(Cell(short_number(s.peak_bytes, "B")) if s else Cell() for s in speeds))


def _held_out_rows(models: Sequence[ModelFigures]) -> Iterator[Row]:
    yield from _likelihood_rows([model.held_out for model in models])
    yield Row("right answers", tuple(percent_cell(model.exact_match, 100) for model in models))


def _likelihood_rows(likelihoods: Sequence[LikelihoodFigures | None]) -> Iterator[Row]:
    yield Row("KL to the seed, nats per token", tuple(plain_cell(f.kl_to_seed if f else None) for f in likelihoods))
    yield Row(
        "top-1 agreement with the seed", tuple(percent_cell(f.agreement if f else None, 100) for f in likelihoods)
    )
    yield Row("perplexity of the answers", tuple(plain_cell(f.perplexity if f else None) for f in likelihoods))


def _task_rows(models: Sequence[ModelFigures]) -> Iterator[Row]:
    for task in dict.fromkeys(task for model in models for task in model.tasks):
        yield Row(task, tuple(percent_cell(model.tasks.get(task), 100) for model in models))


def _draft_rows(models: Sequence[ModelFigures]) -> Iterator[Row]:
    columns: tuple[tuple[str, Callable[[DraftFigures], str]], ...] = (
        ("draft tokens accepted", lambda draft: f"{100 * draft.acceptance:.1f} %"),
        ("tokens per pass of the seed", lambda draft: f"{draft.tokens_per_step:.2f}"),
        ("tokens per second with draft", lambda draft: f"{draft.tokens_per_second:,.1f}"),
        ("tokens per second without", lambda draft: f"{draft.tokens_per_second_alone:,.1f}"),
        ("same answers as without", lambda draft: f"{100 * draft.same_answers:.1f} %"),
    )
    for label, text in columns:
        yield Row(label, tuple(Cell(text(model.drafting)) if model.drafting else Cell() for model in models))
