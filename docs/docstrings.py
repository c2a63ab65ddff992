"""Lets the reference read the docstrings as they are written: named by ``mkdocs.yml``, no part of the package."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":[a-z]+:`(~?)([\w.]+)`")


_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


class DocstringStyle(griffe.Extension):
    """Takes ``Example:`` for a section of code, and roles such as ``:class:`~package.Name` `` for code.

    Of a pydantic field it leaves the default, and writes its bounds below; private names are not shown as defaults or
    bases.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object that has one."""
        if obj.docstring is not None:
            obj.docstring.value = plain_docstring(obj.docstring.value)

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Take a pydantic field apart."""
        if not isinstance(attr.value, griffe.ExprCall):
            return
        named = {each.name: each.value for each in attr.value.arguments if isinstance(each, griffe.ExprKeyword)}
        unnamed = [each for each in attr.value.arguments if not isinstance(each, griffe.ExprKeyword)]
        match str(attr.value.function):
            case "ByteSize":
                attr.value = unnamed[0]
            case "Field":
                factory = f"{named['default_factory']}()" if "default_factory" in named else None
                attr.value = next(iter(unnamed), named.get("default", factory))
                bounds = ", ".join(f"{sign} {named[name]}" for name, sign in _BOUNDS.items() if name in named)
                if bounds and attr.docstring is not None:
                    attr.docstring.value += f"\n\nBounds: `{bounds}`."

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Show that a parameter has a default, not the private name of it."""
        for parameter in func.parameters:
            if str(parameter.default).startswith("_"):
                parameter.default = "..."

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Leave out private bases."""
        cls.bases = [base for base in cls.bases if not str(base).startswith("_")]


def plain_docstring(text: str) -> str:
    """Return a docstring in the form that the generator knows.

    Example:
        >>> plain_docstring("See :class:`~axolotl_sdft.core.errors.ConfigError`.")
        'See `ConfigError`.'
    """
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return _ROLE.sub(lambda role: f"`{role[2].rpartition('.')[2] if role[1] else role[2]}`", text)
