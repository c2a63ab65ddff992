"""The commands ``axolotl prune-layers``, ``axolotl self-distill`` and ``axolotl sdft-summary``; no logic of their own.

``axolotl --help`` imports this module, so whatever is heavy is imported inside the commands.
"""

import contextlib
import functools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from axolotl_sdft.errors import ConfigError, SdftError
from axolotl_sdft.settings_reference import plain_help


class _Command(click.Command):
    """A command whose help ends in the settings of its YAML block, and whose errors are one clear message."""

    def __init__(self, *args: Any, block: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._block = block

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        if self._block is not None:
            formatter.write(f"\nKeys of the {self._block} block:\n\n{plain_help(self._block)}\n")

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SdftError as err:  # the only place where an error becomes an exit code
            raise click.ClickException(str(err)) from err


def _config_command(name: str, block: str | None, epilog: str) -> Callable[[Callable], click.Command]:
    def decorate(function: Callable) -> click.Command:
        @click.command(name, cls=_Command, block=block, epilog=epilog)
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


class _LayerCount(click.ParamType):
    """A number of layers, or a fraction of the model's layers."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        if isinstance(value, int | float):
            return value
        with contextlib.suppress(ValueError):
            if value.isdecimal() and int(value) >= 1:
                return int(value)
            if not value.isdecimal() and 0 < float(value) < 1:
                return float(value)
        self.fail(f"{value!r} is neither a count such as 6 nor a fraction between 0 and 1 such as 0.2", param, ctx)


@click.option(
    "--num-layers", type=_LayerCount(), metavar="K", help="Remove K layers, or this fraction; overrides CONFIG."
)
@click.option("--dry-run", is_flag=True, help="Write no checkpoint. Scores and pictures are kept, as without it.")
@_config_command("prune-layers", "layer_pruning", "Example: axolotl prune-layers config.yml --num-layers 6 --dry-run")
def prune_layers(cfg: Any, dry_run: bool, num_layers: int | float | None) -> None:
    """Write the pruned checkpoint that CONFIG asks for, as training would.

    Before that, print which layers go, what that saves and what else could go, and draw the scores.
    """
    from axolotl_sdft.host.commands import prune_alone

    for line in prune_alone(cfg, dry_run, num_layers):
        click.echo(line)


@click.option(
    "--dry-run",
    type=click.IntRange(1),
    metavar="N",
    help="Rewrite N rows, show them, estimate the time for all, and write nothing.",
)
@_config_command("self-distill", "self_distillation", "Example: axolotl self-distill config.yml --dry-run 5")
def self_distill(cfg: Any, dry_run: int | None) -> None:
    """Write the self-distilled datasets that CONFIG asks for, as training would.

    Beside each stands report.html: what was accepted and why not, lengths, the distribution gap, sample answers.
    """
    from axolotl_sdft.host.commands import distill_alone

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in distill_alone(cfg, num_previews=dry_run, width=width):
        click.echo(line)


@click.option("--prompt", help="Let the seed, the pruned and the trained model answer this.")
@_config_command("sdft-summary", None, "Example: axolotl sdft-summary config.yml --prompt 'What is a glacier?'")
def sdft_summary(cfg: Any, prompt: str | None) -> None:
    """Say what the stages of CONFIG made: layers, rows, losses, paths."""
    from axolotl_sdft.host.commands import find_artifacts
    from axolotl_sdft.recovery.summary import summary_lines

    for line in list(summary_lines(find_artifacts(cfg), prompt)):  # all at once, after what loading models prints
        click.echo(line)
