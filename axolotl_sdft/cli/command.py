"""What all commands share: the YAML they read, and errors that are one clear message."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from axolotl_sdft.core.errors import SdftError
from axolotl_sdft.core.texts import printable

LOG = logging.getLogger(__name__)


class SdftCommand(click.Command):
    """A command whose help ends in the settings of its YAML block, and whose errors are one clear message."""

    def __init__(self, *args: Any, block: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._block = block

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example, then the keys of the block."""
        super().format_epilog(ctx, formatter)
        if self._block is not None:
            from axolotl_sdft.cli.settings_reference import plain_help

            formatter.write(f"\nKeys of the {self._block} block:\n\n{plain_help(self._block)}\n")

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of ours becomes its message and exit code 1."""
        try:
            return super().invoke(ctx)
        except SdftError as err:  # the only place where an error becomes an exit code
            raise click.ClickException(str(err)) from err


def echo(text: str, **options: Any) -> None:
    """Print a text without what would steer the terminal: answers, names and servers' words may hold escapes."""
    click.echo(printable(text), **options)


def config_command(name: str, block: str | None, epilog: str) -> Callable[[Callable], click.Command]:
    """Turn a function of a raw configuration into a command that takes the path of a YAML file.

    Args:
        name: What follows ``axolotl`` on the command line.
        block: The YAML block whose keys the help lists.
        epilog: An example, shown at the end of the help.
    """

    def decorate(function: Callable) -> click.Command:
        @click.command(name, cls=SdftCommand, block=block, epilog=epilog)
        @click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
        @functools.wraps(function)
        def command(config: Path, **options: Any) -> None:
            function(_load_raw(config), **options)

        return command

    return decorate


def _load_raw(path: Path) -> Any:
    """Return the YAML as Axolotl holds it before validation; keys that stand there twice are said."""
    from axolotl.utils.dict import DictDefault

    from axolotl_sdft.config.yaml_file import read_yaml_file
    from axolotl_sdft.integrations.axolotl.compat import show_log_lines

    show_log_lines()
    file = read_yaml_file(path)
    for repeated in file.repeated:
        LOG.warning("%s: %s %s", path, repeated.key, repeated.sentence())
    return DictDefault(file.values)
