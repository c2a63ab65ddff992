"""The recovery report as lines of text of at most 100 columns."""

import textwrap
from collections.abc import Iterator, Sequence

from axolotl_sdft.core.texts import printable, shortened
from axolotl_sdft.evaluation.metrics import RecoveryReport
from axolotl_sdft.evaluation.report.headline import SOURCES, headline
from axolotl_sdft.evaluation.report.table import Row, Section, percent_cell, plain_cell, sections

_WIDTH, _LABEL, _COLUMN = 100, 32, 17
_MODELS_ABREAST = (_WIDTH - _LABEL) // _COLUMN
INTERVALS = "smaller lines: 95 % confidence intervals, by bootstrap over rows"


def text_lines(report: RecoveryReport) -> Iterator[str]:
    """Yield the headline, the table of all figures, and the notes. More models than fit get a table of their own."""
    yield from _headline_lines(report)
    names = [model.name for model in report.models]
    for places in _column_groups(len(names)):
        yield ""
        yield _line("", [names[place] for place in places])
        for section in sections(report):
            yield from _section_lines(section, places)
    for note in report.notes:
        yield from _wrapped(f"note: {note}")


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
        yield from _wrapped(f"{top.model.name}: {part}")


def _interval(text: str) -> str:
    return f" ({text})" if text else ""


def _column_groups(num_models: int) -> list[list[int]]:
    """Return which models stand side by side; the seed stands in each table, for comparison."""
    others, abreast = list(range(1, num_models)), _MODELS_ABREAST - 1
    return [[0, *others[start : start + abreast]] for start in range(0, len(others), abreast)] or [[0]]


def _section_lines(section: Section, places: Sequence[int]) -> Iterator[str]:
    yield section.title
    for row in section.rows:
        yield from _row_lines(row, places)


def _row_lines(row: Row, places: Sequence[int]) -> Iterator[str]:
    cells = [row.cells[place] for place in places]
    yield _line(f"  {row.label}", [cell.text for cell in cells])
    if any(cell.interval for cell in cells):
        yield _line("", [cell.interval for cell in cells])


def _line(label: str, texts: Sequence[str]) -> str:
    columns = "".join(f"{shortened(printable(text), _COLUMN - 1):>{_COLUMN}}" for text in texts)
    return f"{_shortened_label(label):<{_LABEL}}{columns}".rstrip()


def _shortened_label(label: str) -> str:
    """Return a label that leaves the columns their room; the indent stays."""
    indent = label[: len(label) - len(label.lstrip(" "))]  # other white space is part of a name
    return indent + shortened(printable(label), _LABEL - len(indent))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(printable(text), _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
