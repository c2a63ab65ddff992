"""The recovery report as a section of a model card: Markdown that names no folder of this machine."""

from collections.abc import Iterator

from axolotl_sdft.core.cards import code, escaped, versions_text
from axolotl_sdft.evaluation.figures import RecoveryReport
from axolotl_sdft.evaluation.report.headline import SOURCES, headline
from axolotl_sdft.evaluation.report.table import CAPABILITIES, Cell, meaning, percent_cell, sections

_HOW_TO_PASTE = (
    "<!-- Paste this section into the README.md of the model. Folders of this machine are left out; the names of the "
    "models are those of the report. -->"
)


def model_card_section(report: RecoveryReport) -> str:
    """Return the section: what was kept, a table of all figures, and how they were measured."""
    return "\n".join([_HOW_TO_PASTE, "", *_lines(report), ""])


def _lines(report: RecoveryReport) -> Iterator[str]:
    yield "## Beside the seed model"
    yield ""
    top = headline(report)
    if top is not None:
        yield f"The {escaped(top.model.name)} model: {escaped(top.verdict)}."
        yield ""
        for tile in (top.task, top.everything_else):
            if tile.source is not None:
                label, explanation = SOURCES[tile.source]
                kept = _joined(percent_cell(tile.after))
                yield f"- {tile.title}: {kept} {meaning(tile)}, by the {label}. {explanation}"
        yield ""
    yield from _table(report)
    yield ""
    yield CAPABILITIES
    yield ""
    yield "### How it was measured"
    yield ""
    yield from (f"- {line}" for line in _method(report))


def _table(report: RecoveryReport) -> Iterator[str]:
    yield _table_row("", [escaped(model.name) for model in report.models])
    yield _table_row("---", ["---:"] * len(report.models))
    for section in sections(report):
        yield _table_row(f"**{section.title}**", [""] * len(report.models))
        for row in section.rows:
            yield _table_row(escaped(row.label), [_joined(cell) for cell in row.cells])


def _table_row(label: str, cells: list[str]) -> str:
    return f"| {' | '.join([label, *cells])} |"


def _joined(cell: Cell) -> str:
    return f"{cell.text} ({cell.interval})" if cell.interval else cell.text


def _method(report: RecoveryReport) -> Iterator[str]:
    seed, settings = report.models[0], report.settings
    if samples := settings.get("bootstrap_samples"):
        yield f"In brackets: 95 % confidence intervals, by {samples:,} bootstrap resamples of the rows."
    if seed.held_out is not None:
        yield f"Held-out rows: likelihood of {seed.held_out.nll.rows:,} reference answers that no model was trained on."
    if seed.exact_match is not None:
        checks = ", ".join(_check_name(check) for check in (settings.get("exact_match") or {}).get("checks", ()))
        yield f"Right answers: greedy answers to {seed.exact_match.rows:,} held-out prompts that pass: {checks}."
    if seed.general is not None:
        yield (
            f"General prompts: the seed model's own greedy answers to {seed.general.nll.rows:,} prompts from outside "
            "the task; the KL divergence from the seed model at each of their tokens is what was forgotten."
        )
    if seed.tasks:
        yield "Tasks: lm-evaluation-harness, " + ", ".join(_task_text(task) for task in _tasks(report)) + "."
    if seed.speed is not None:
        speed = seed.speed
        yield (
            f"Generation: one sequence, {speed.prompt_tokens} tokens of prompt and {speed.new_tokens} new ones, the "
            f"models in turn, each in a process of its own, median of {len(speed.speeds)} rounds, on "
            f"{escaped(speed.device)}. Models of one shape share one speed."
        )
    yield f"Versions: {versions_text(report.provenance)}."


def _check_name(check: str | dict[str, object]) -> str:
    return code(check if isinstance(check, str) else next(iter(check)))


def _tasks(report: RecoveryReport) -> list[dict[str, object]]:
    return list((report.settings.get("lm_eval") or {}).get("tasks", ()))


def _task_text(task: dict[str, object]) -> str:
    shots = task.get("num_fewshot")
    return escaped(str(task["task"])) + (f" ({shots} shots)" if shots is not None else "")
