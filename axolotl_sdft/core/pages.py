"""Self-contained HTML pages: one look for all reports, and everything that they show goes through escaping."""

from functools import cache
from importlib import resources
from typing import Any

from axolotl_sdft.core.texts import cut, duration, printable


@cache
def page_template(package: str, file_name: str) -> Any:
    """Return a Jinja template that lies in a package; it may include ``page_head.html.jinja``, and knows our filters.

    Args:
        package: Such as ``axolotl_sdft.distillation``.
        file_name: Of the template in it.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        """Make texts printable; what a macro has drawn is Markup, and done already."""
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    def source(name: str) -> str:
        home = package if name == file_name else __package__
        return resources.files(home).joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        loader=FunctionLoader(source),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cut": cut, "percent": _percent, "count": _count, "duration": duration}
    return environment.get_template(file_name)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _count(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.10g}"
