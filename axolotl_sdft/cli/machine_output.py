"""Standard output that holds a result and nothing else, for ``--json`` and for files that are shown."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import Any, TextIO

import click

from axolotl_sdft.core.terminal import stream_handlers
from axolotl_sdft.core.texts import printable


def json_text(value: Any) -> str:
    """Return a JSON-like value as a text that ends its last line."""
    return printable(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str)) + "\n"


@contextmanager
def result_alone() -> Iterator[Callable[[str], None]]:
    """Give what prints a result, and send all else that is meant for standard output to standard error meanwhile.

    Axolotl's own banner is out, flushed by colorama, before any module of ours is imported, so nothing can be done
    about it here: the program ``axolotl-sdft`` has the same commands and prints none.
    """
    out = sys.stdout
    with ExitStack() as stack:
        for handler in stream_handlers():
            if handler.stream not in (out, sys.__stdout__):
                continue
            stack.callback(handler.setStream, handler.stream)
            handler.setStream(sys.stderr)
        stack.enter_context(redirect_stdout(sys.stderr))
        stack.enter_context(_children_to_stderr(out))
        texts: list[str] = []
        yield texts.append
    for text in texts:
        click.echo(text, file=out, nl=False)


@contextmanager
def _children_to_stderr(out: TextIO) -> Iterator[None]:
    """Let child processes and libraries in C write to standard error as well."""
    number, other = _file_number(out), _file_number(sys.stderr)
    if number is None or other is None:
        yield
        return
    saved = os.dup(number)
    os.dup2(other, number)
    try:
        yield
    finally:
        out.flush()
        os.dup2(saved, number)
        os.close(saved)


def _file_number(stream: TextIO) -> int | None:
    with suppress(OSError, ValueError, AttributeError):
        return stream.fileno()
    return None
