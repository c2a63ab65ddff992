"""Tables of all settings, and of what ships built in, for the documentation and for ``--help``. Imports no torch.

``python -m axolotl_sdft.cli.settings_reference docs`` rewrites what stands between the markers of each block:
``<!-- settings:dynsdpb -->`` and ``<!-- /settings:dynsdpb -->``. The blocks may be spread over several files.
"""

import argparse
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from axolotl_sdft.config import BLOCKS
from axolotl_sdft.core.errors import ConfigError, UnknownNameError
from axolotl_sdft.distillation import checks, templates
from axolotl_sdft.distillation.checks.options import keyword_options

_HELP_WIDTH = 100
_UNSET, _REQUIRED = "unset", "required"
_ESCAPED_PIPE = r"\|"
_BETWEEN_FILES = "\0"


class SettingRow(NamedTuple):
    """One setting, as a user reads about it."""

    key: str
    """Dotted from the block on, such as ``self_distillation.generation.seed``."""

    type_text: str
    """What may be written, with its bounds, such as ``0 < float <= 1``."""

    default: str
    """As it would stand in YAML; ``unset`` where the setting is absent by default."""

    description: str
    """One paragraph without line breaks; code stands in double backticks."""


def settings_rows(block_name: str) -> list[SettingRow]:
    """Return the settings of a block in the order of its model, nested blocks flattened into dotted keys.

    Raises:
        UnknownNameError: There is no such block; the message lists the known ones.
    """
    if block_name not in BLOCKS:
        raise UnknownNameError(f"{block_name!r} is not a block of settings; known: {', '.join(BLOCKS)}")
    return list(_rows(BLOCKS[block_name], block_name))


def markdown_table(block_name: str) -> str:
    """Return the settings of a block as a Markdown table, without a line break at its end.

    Types are code like the rest: a bare ``{path, share}`` would be read as attributes, ``<`` as the start of a tag.
    """
    lines = ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
    for row in settings_rows(block_name):
        default = row.default if row.default in (_UNSET, _REQUIRED) else f"`{row.default}`"
        cells = (f"`{row.key}`", f"`{row.type_text}`", default, row.description.replace("``", "`"))
        lines.append(f"| {' | '.join(cell.replace('|', _ESCAPED_PIPE) for cell in cells)} |")
    return "\n".join(lines)


def plain_help(block_name: str) -> str:
    """Return the settings of a block as plain text of at most 100 columns and no blank line, for ``--help``."""
    lines = []
    indented = textwrap.TextWrapper(_HELP_WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 4)
    hanging = textwrap.TextWrapper(_HELP_WIDTH, subsequent_indent=" " * 4, break_on_hyphens=False)
    for row in settings_rows(block_name):
        lines += hanging.wrap(f"{row.key}: {row.type_text} (default: {row.default})")
        # Code stays on one line: the wrapper doesn't break at no-break spaces.
        meaning = re.sub("``(.+?)``", lambda code: code[1].replace(" ", "\xa0"), row.description)
        lines += [line.replace("\xa0", " ") for line in indented.wrap(meaning)]
    return "\n".join(lines)


def refresh(texts: Sequence[str]) -> list[str]:
    """Return Markdown texts whose tables are up to date: the settings of each block, and templates and checks.

    Raises:
        ConfigError: The markers of a block are not there exactly once in all texts together, or name a block that
            there is not.
    """
    markdown = _BETWEEN_FILES.join(texts)
    unknown = sorted(set(re.findall(r"<!-- /?settings:(\S*) -->", markdown)) - set(BLOCKS))
    if unknown:
        raise ConfigError(
            f"a marker names {unknown[0]!r}, which is not a block of settings; known: {', '.join(BLOCKS)}"
        )
    for block_name in BLOCKS:
        markdown = _with_table(markdown, block_name)
    return refreshed(markdown).split(_BETWEEN_FILES)


def markdown_files(paths: Iterable[Path]) -> list[Path]:
    """Return the Markdown files among paths, with those in folders at any depth, in the order of their names."""
    return [file for path in paths for file in (sorted(path.rglob("*.md")) if path.is_dir() else [path])]


def main(arguments: list[str] | None = None) -> None:
    """Rewrite the tables in the Markdown files that the command line names, all or none; others are left alone."""
    parser = argparse.ArgumentParser(description="Bring the tables of settings in Markdown files up to date.")
    parser.add_argument("paths", type=Path, nargs="+", help="Markdown files, or folders of them")
    paths: list[Path] = parser.parse_args(arguments).paths
    try:
        files = markdown_files(paths)
        texts = [path.read_text(encoding="utf-8") for path in files]
        for path, old, new in zip(files, texts, refresh(texts), strict=True):
            if new != old:
                path.write_text(new, encoding="utf-8")
    except (ConfigError, OSError) as err:
        raise SystemExit(f"error: {', '.join(map(str, paths))}: {err}") from err


def _with_table(markdown: str, block_name: str) -> str:
    opening, closing = f"<!-- settings:{block_name} -->", f"<!-- /settings:{block_name} -->"
    between = re.compile(f"{re.escape(opening)}[^{_BETWEEN_FILES}]*?{re.escape(closing)}")
    if not (len(between.findall(markdown)) == markdown.count(opening) == markdown.count(closing) == 1):
        raise ConfigError(f"the markers {opening} and {closing} must be there once each, in this order")
    table = f"{opening}\n{markdown_table(block_name)}\n{closing}"
    return between.sub(lambda _: table, markdown)


def _rows(model: type[BaseModel], prefix: str) -> Iterator[SettingRow]:
    for name, field in model.model_fields.items():
        key, nested = f"{prefix}.{name}", _nested_block(field.annotation)
        variants = _variants(field.annotation)
        if variants:
            yield from _variant_rows(variants, key)
            continue
        is_optional = nested is not None and nested is not field.annotation
        if nested is None or is_optional:  # that an optional block is there already says something
            description = " ".join((field.description or "").split())
            type_text = "block" if is_optional else _bounded(field)
            yield SettingRow(key, type_text, _default_text(field), description)
        if nested is not None:
            yield from _rows(nested, key)


def _variant_rows(models: Sequence[type[BaseModel]], prefix: str) -> Iterator[SettingRow]:
    """Yield the settings of blocks one of which a key such as ``backend`` chooses; a key of several makes one row."""
    first = models[0].model_fields
    chooser = next(name for name in first if len({str(model.model_fields[name].annotation) for model in models}) > 1)
    for name in dict.fromkeys(name for model in models for name in model.model_fields):
        owners = [model for model in models if name in model.model_fields]
        fields = [model.model_fields[name] for model in owners]
        choices = [model.model_fields[chooser].default for model in owners]
        named = [f"``{choice}``" if isinstance(choice, str) else "a plugin's" for choice in choices]
        condition = "" if len(owners) == len(models) else f"Only with ``{chooser}`` {' or '.join(named)}. "
        type_text = " or ".join(dict.fromkeys(_bounded(field) for field in fields))
        description = " ".join((fields[0].description or "").split())
        yield SettingRow(f"{prefix}.{name}", type_text, _default_text(fields[0]), condition + description)


def _variants(annotation: Any) -> list[type[BaseModel]]:
    """Return the blocks of a union of several, one of which a key chooses; else nothing."""
    candidates = [each.__origin__ if get_origin(each) is Annotated else each for each in _alternatives(annotation)]
    blocks = [each for each in candidates if inspect.isclass(each) and issubclass(each, BaseModel)]
    return blocks if len(blocks) == len(candidates) > 1 else []


def _nested_block(annotation: Any) -> type[BaseModel] | None:
    """Return the block that an annotation stands for, alone or with its absence; else None."""
    candidates = _alternatives(annotation)
    blocks = [each for each in candidates if inspect.isclass(each) and issubclass(each, BaseModel)]
    return blocks[0] if blocks and all(each in (blocks[0], type(None)) for each in candidates) else None


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _bounded(field: FieldInfo) -> str:
    """Return the type with its bounds: ``int >= 1`` with one, ``0 < float <= 1`` with two."""
    text = _type_text(field.annotation)
    low = high = ""
    for bound in field.metadata:
        match bound:
            case Ge(ge=value):
                low, sign = _number_text(value), "="
            case Gt(gt=value):
                low, sign = _number_text(value), ""
            case Le(le=value):
                high = f" <= {_number_text(value)}"
            case Lt(lt=value):
                high = f" < {_number_text(value)}"
    if not low:
        return f"{text}{high}"
    return f"{low} <{sign} {text}{high}" if high else f"{text} >{sign} {low}"


def _number_text(value: Any) -> str:
    """Return a bound without needless decimals: 100.0 reads 100."""
    return str(int(value)) if value == int(value) else str(value)


def _type_text(annotation: Any) -> str:
    """Return what a user may write, without bounds and without the absence that the default shows."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(_type_text(each) for each in arguments if each is not type(None) and not _is_callable(each))
    if origin is Annotated:
        return _type_text(arguments[0])
    if origin is Literal:
        return " or ".join(_yaml_text(argument) for argument in arguments)
    if origin in (tuple, list):
        return f"list of {_type_text(arguments[0])}"
    if origin is dict:
        return "dict"
    if annotation is ByteSize:
        return "size"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"{{{', '.join(annotation.model_fields)}}}"
    return str(annotation.__name__)


def _is_callable(annotation: Any) -> bool:
    """Say whether a setting may be a function, which no YAML file can hold."""
    return get_origin(annotation) is Callable


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return _REQUIRED
    default = field.get_default(call_default_factory=True)
    return _UNSET if default is None else _yaml_text(default)


def _yaml_text(value: Any) -> str:
    """Return a value as it would stand in a YAML file, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, ByteSize):
        return value.human_readable(decimal=True).replace(".0", "")
    if isinstance(value, tuple | list):
        return f"[{', '.join(_yaml_text(item) for item in value)}]"
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_yaml_text(item)}' for key, item in value.items())}}}"
    return str(value) or '""'


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


if __name__ == "__main__":
    main()
