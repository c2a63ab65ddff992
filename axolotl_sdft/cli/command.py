"""What all commands share: the YAML they read, and errors that are one clear message."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from axolotl_sdft.errors import ConfigError, SdftError
from axolotl_sdft.settings_reference import plain_help


class SdftCommand(click.Command):
    """A command whose help ends in the settings of its YAML block, and whose errors are one clear message."""

    def __init__(self, *args: Any, block: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._block = block

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example, then the keys of the block."""
        super().format_epilog(ctx, formatter)
        if self._block is not None:
            formatter.write(f"\nKeys of the {self._block} block:\n\n{plain_help(self._block)}\n")

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of ours becomes its message and exit code 1."""
        try:
            return super().invoke(ctx)
        except SdftError as err:  # the only place where an error becomes an exit code
            raise click.ClickException(str(err)) from err


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
    """Return the YAML as Axolotl holds it before validation."""
    import yaml
    from axolotl.utils.dict import DictDefault

    from axolotl_sdft.host.compat import show_log_lines

    show_log_lines()
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as err:
        raise ConfigError(f"{path} is no YAML: {err}") from err
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no keys; see the README for a first configuration")
    return DictDefault(raw)
