"""Lets the reference read the docstrings as they are written: named by ``mkdocs.yml``, no part of the package."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":[a-z]+:`(~?)([\w.]+)`")


class DocstringStyle(griffe.Extension):
    """Takes ``Example:`` for a section of code, and roles such as ``:class:`~package.Name` `` for code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object that has one."""
        if obj.docstring is not None:
            obj.docstring.value = plain_docstring(obj.docstring.value)


def plain_docstring(text: str) -> str:
    """Return a docstring in the form that the generator knows.

    Example:
        >>> plain_docstring("See :class:`~axolotl_sdft.core.errors.ConfigError`.")
        'See `ConfigError`.'
    """
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return _ROLE.sub(lambda role: f"`{role[2].rpartition('.')[2] if role[1] else role[2]}`", text)
