"""Tables of the built-in templates and checks, made of their docstrings, for the documentation."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from axolotl_sdft.distillation import checks, templates
from axolotl_sdft.distillation.checks.options import keyword_options


def templates_table() -> str:
    """Return the built-in templates as a Markdown table, without a line break at its end."""
    rows = []
    for name, template in templates.BUILT_IN.items():
        what, when = _paragraphs(template)
        rows.append((f"`{name}`", what, when))
    return _table(("Template", "What it does", "When to pick it"), rows)


def checks_table() -> str:
    """Return the built-in checks with their options as a Markdown table, without a line break at its end."""
    rows = []
    for name, check in checks.BUILT_IN.items():
        what, more = _paragraphs(check)
        options = ", ".join(f"`{option}: {_yaml(default)}`" for option, default in keyword_options(check).items())
        rows.append((f"`{name}`", f"{what} {more}".strip(), options))
    return _table(("Check", "What it does", "Options"), rows)


TABLES: Mapping[str, Callable[[], str]] = {"templates": templates_table, "checks": checks_table}
"""What may stand between ``<!-- table:NAME -->`` and ``<!-- /table:NAME -->``."""


def refreshed(markdown: str) -> str:
    """Return a Markdown text whose tables of templates and checks, as far as it has them, are up to date."""
    for name, table in TABLES.items():
        opening, closing = f"<!-- table:{name} -->", f"<!-- /table:{name} -->"
        start, end = markdown.find(opening), markdown.find(closing)
        if 0 <= start < end:
            markdown = f"{markdown[:start]}{opening}\n{table()}\n{markdown[end:]}"
    return markdown


def _paragraphs(thing: Callable[..., Any]) -> tuple[str, str]:
    """Return the first paragraph of a docstring and the rest, each on one line."""
    first, _, rest = inspect.cleandoc(thing.__doc__ or "").partition("\n\n")
    return " ".join(first.split()), " ".join(rest.split())


def _yaml(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", r"\|")
