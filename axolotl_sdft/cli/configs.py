"""``axolotl sdft-configs``."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from axolotl_sdft.cli.command import SdftCommand, echo

if TYPE_CHECKING:
    from axolotl_sdft.configs.catalogue import SharedConfig

_WIDTH = 100


@click.group("sdft-configs", epilog="Example: axolotl sdft-configs copy today/llama-3.2-3b-24gb my.yml")
def sdft_configs() -> None:
    """Ready configurations: the papers' settings and today's models, to list, read, copy, and check before sharing."""


@sdft_configs.command("list", cls=SdftCommand)
@click.option("--filter", "word", metavar="WORD", default="", help="Only those whose name or description holds WORD.")
def list_configs(word: str) -> None:
    """List the configurations: name, what it takes, and what it does."""
    from axolotl_sdft.configs.catalogue import shared_configs

    chosen = [config for config in shared_configs() if word.lower() in _searched(config)]
    for line in _list_lines(chosen):
        echo(line)
    if not chosen:
        echo(f"none of the {len(shared_configs())} configurations holds {word!r}")


def _searched(config: "SharedConfig") -> str:
    return " ".join([config.name, *config.description().values()]).lower()


def _list_lines(configs: list["SharedConfig"]) -> Iterator[str]:
    """Yield two lines for each configuration, in at most 100 columns."""
    widest = max((len(config.name) for config in configs), default=0)
    for config in configs:
        described = config.description()
        needs = described.get("needs", "").partition(";")[0]
        yield f"{config.name:<{widest}}  {textwrap.shorten(needs, _WIDTH - widest - 2)}"
        yield f"    {textwrap.shorten(described.get('title', ''), _WIDTH - 4)}"


@sdft_configs.command("show", cls=SdftCommand)
@click.argument("name")
def show_config(name: str) -> None:
    """Print the configuration NAME as it is."""
    from axolotl_sdft.configs.catalogue import find_config

    echo(find_config(name).text(), nl=False)


@sdft_configs.command("copy", cls=SdftCommand)
@click.argument("name")
@click.argument("dest", required=False, type=click.Path(path_type=Path), default=Path())
@click.option("--force", is_flag=True, help="Overwrite what is there.")
def copy_named(name: str, dest: Path, force: bool) -> None:
    """Copy the configuration NAME, and the small files that it names, to DEST: a file or a folder.

    It runs from the folder that it is copied to.
    """
    from axolotl_sdft.configs.catalogue import copy_config, find_config

    target, *data = copy_config(find_config(name), dest, force)
    for path in (target, *data):
        echo(f"written: {path}")
    into = "" if target.parent == Path() else f"cd {target.parent} && "
    echo(f"run it: {into}axolotl train {target.name}")


@sdft_configs.command("check", cls=SdftCommand)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def check_config(file: Path) -> None:
    """Say whether FILE would run for others: no local paths, no secrets, pinned revisions, a description, known keys.

    Exits with 1 if there is a fault; advice alone leaves it at 0.
    """
    from axolotl_sdft.configs.checking import check_file

    findings = check_file(file)
    for finding in findings:
        echo(finding.line())
    num_faults = sum(finding.level == "fault" for finding in findings)
    if num_faults:
        echo(f"{file}: {num_faults} to mend before others can use it")
        raise SystemExit(1)
    echo(f"{file}: fit to share" + (f"; {len(findings)} to consider" if findings else ""))
