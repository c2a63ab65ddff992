"""Keys of the YAML blocks on the command line, in Axolotl's style: ``--layer-pruning.num-layers 4``."""

from collections.abc import Mapping, Sequence
from typing import Any

import click
import yaml

PREFIX = "--"


def split_overrides(args: Sequence[str], blocks: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the arguments that are left, and the overrides among them by their dotted key.

    A value is read as YAML. A key without one is true, as is ``--no-`` before it false.

    Args:
        args: What follows the command.
        blocks: The blocks whose keys may be set.

    Raises:
        click.UsageError: A key stands there twice.
    """
    left: list[str] = []
    found: dict[str, Any] = {}
    waiting = list(args)
    while waiting:
        word = waiting.pop(0)
        key, is_on = _dotted_key(word.partition("=")[0], blocks)
        if word == PREFIX:
            return [*left, word, *waiting], found
        if key is None:
            left.append(word)
            continue
        if key in found:
            raise click.UsageError(f"{word.partition('=')[0]} is given twice; leave one out")
        if "=" in word:
            found[key] = _value(word.partition("=")[2])
        elif is_on and waiting and not waiting[0].startswith(PREFIX):
            found[key] = _value(waiting.pop(0))
        else:
            found[key] = is_on
    return left, found


def _dotted_key(word: str, blocks: Sequence[str]) -> tuple[str | None, bool]:
    """Return the key that an option names, and whether it switches it on; None for any other word."""
    if not word.startswith(PREFIX) or "." not in word:
        return None, True
    name = word.removeprefix(PREFIX).replace("-", "_")
    for start, is_on in (("", True), ("no_", False)):
        key = name.removeprefix(start)
        if name.startswith(start) and key.partition(".")[0] in blocks:
            return key, is_on
    return None, True


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def set_keys(cfg: Any, overrides: Mapping[str, Any]) -> None:
    """Set dotted keys of a raw configuration; blocks that are not there are made.

    Raises:
        click.UsageError: A key goes through something that is not a block.
    """
    for key, value in overrides.items():
        *path, last = key.split(".")
        place = cfg
        for depth, name in enumerate(path, start=1):
            if place.get(name) is None:
                place[name] = {}
            place = place[name]
            if not isinstance(place, dict):
                raise click.UsageError(f"--{key} needs a block under {'.'.join(path[:depth])}, which holds {place!r}")
        place[last] = value
