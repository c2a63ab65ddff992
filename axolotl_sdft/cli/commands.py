"""The commands, and what all share: the YAML they read, and errors that are one clear message."""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from axolotl_sdft.cli.machine_output import json_text, result_alone
from axolotl_sdft.cli.overrides import set_keys, split_overrides
from axolotl_sdft.core.errors import SdftError
from axolotl_sdft.core.terminal import fact_lines, terminal_width
from axolotl_sdft.core.texts import printable

if TYPE_CHECKING:
    from axolotl_sdft.configs.catalogue import SharedConfig

LOG = logging.getLogger(__name__)

BLOCK_NAMES = ("layer_pruning", "self_distillation", "logit_distillation", "dynsdpb", "merge", "recovery_report")
"""The blocks whose keys are options; written out, since the settings would slow ``axolotl --help``."""

_OVERRIDES = "axolotl_sdft.overrides"
_as_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON; log lines go to stderr. Below axolotl its banner comes first: axolotl-sdft prints none.",
)


class SdftCommand(click.Command):
    """A command whose help ends in the settings of its YAML block, and whose errors are one clear message."""

    def __init__(self, *args: Any, block: str | None = None, takes_keys: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._block, self._takes_keys = block, takes_keys

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take out the keys of blocks that are set on the command line, and parse what is left."""
        if self._takes_keys:
            args, ctx.meta[_OVERRIDES] = split_overrides(args, BLOCK_NAMES)
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example, then the keys of the block."""
        super().format_epilog(ctx, formatter)
        if self._block is not None:
            from axolotl_sdft.cli.settings_reference import plain_help

            formatter.write(
                f"\nKeys of the {self._block} block, each also an option such as "
                f"--{self._block.replace('_', '-')}.<key> VALUE, which overrides CONFIG:\n\n{plain_help(self._block)}\n"
            )

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
        name: What follows ``axolotl`` on the command line. With an option ``as_json``, the function returns what is
            printed as JSON.
        block: The YAML block whose keys the help lists.
        epilog: An example, shown at the end of the help.
    """

    def decorate(function: Callable) -> click.Command:
        @click.command(name, cls=SdftCommand, block=block, takes_keys=True, epilog=epilog)
        @click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
        @functools.wraps(function)
        def command(config: Path, **options: Any) -> None:
            overrides = click.get_current_context().meta[_OVERRIDES]
            is_json = options.get("as_json", False)
            with result_alone() if is_json else contextlib.nullcontext(echo) as show:
                cfg = _load_raw(config)
                set_keys(cfg, overrides)
                result = function(cfg, **options)
                if is_json:
                    show(json_text(result))

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
@_as_json
@config_command("prune-layers", "layer_pruning", "Example: axolotl prune-layers config.yml --num-layers 6 --dry-run")
def prune_layers(cfg: Any, dry_run: bool, num_layers: int | float | None, as_json: bool) -> Any:
    """Write the pruned checkpoint that CONFIG asks for, as training would.

    Before that, print which layers are removed, what that saves and what else could be, and draw the scores.
    """
    from axolotl_sdft.integrations.axolotl.commands import prune_alone

    pruned = prune_alone(cfg, dry_run, num_layers)
    if as_json:
        return pruned.to_json()
    for line in pruned.lines():
        echo(line)
    return None


@click.option(
    "--dry-run",
    type=click.IntRange(1),
    metavar="N",
    help="Rewrite N rows, show them, estimate the time for all, and write nothing.",
)
@click.option(
    "--corrections",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write, as chat rows, how each attempt that was rejected for its content is corrected.",
)
@click.option(
    "--logits",
    type=click.IntRange(1),
    metavar="K",
    help="Also write the seed model's K most likely tokens at each trained one, as Axolotl's KD plugin reads them.",
)
@config_command("self-distill", "self_distillation", "Example: axolotl self-distill config.yml --dry-run 5")
def self_distill(cfg: Any, dry_run: int | None, corrections: Path | None, logits: int | None) -> None:
    """Write the self-distilled datasets that CONFIG asks for, as training would.

    Beside each stands report.html: what was accepted and why not, lengths, the distribution gap, sample answers.
    """
    if dry_run is not None and corrections is not None:
        raise click.UsageError("--dry-run writes nothing, so there is no file for --corrections; leave one out")
    if dry_run is not None and logits is not None:
        raise click.UsageError("--dry-run writes nothing, so there is no place for --logits; leave one out")
    from axolotl_sdft.integrations.axolotl.commands import distill_alone

    for line in distill_alone(
        cfg, num_previews=dry_run, width=terminal_width(), corrections=corrections, logits=logits
    ):
        echo(line)


@click.option("--prompt", help="Let the seed model, the pruned and the trained model answer this.")
@_as_json
@config_command("sdft-summary", None, "Example: axolotl sdft-summary config.yml --prompt 'What is a glacier?'")
def sdft_summary(cfg: Any, prompt: str | None, as_json: bool) -> Any:
    """Say what the stages of CONFIG made: layers, rows, losses, paths."""
    from axolotl_sdft.evaluation.summary import RunSummary
    from axolotl_sdft.integrations.axolotl.commands import find_artifacts

    summary = RunSummary.of(find_artifacts(cfg), prompt)  # before anything is printed: loading models prints too
    if as_json:
        return summary.to_json()
    for line in summary.lines():
        echo(line)
    return None


@click.option(
    "--ratio",
    type=click.FloatRange(0, 1),
    metavar="R",
    help="From 0, the first model, to 1, the second; overrides CONFIG.",
)
@click.option("--sweep", is_flag=True, help="Merge at each ratio of merge.sweep, measure each, and say which to take.")
@config_command("sdft-merge", "merge", "Example: axolotl sdft-merge config.yml --sweep")
def sdft_merge(cfg: Any, ratio: float | None, sweep: bool) -> None:
    """Merge the two models that CONFIG names, such as the seed model and what was trained from it, into one.

    Full checkpoints of one architecture, two LoRA adapters of one base, or an adapter and its base. A sweep measures
    perplexity on held-out rows and the divergence from the seed model on general prompts, as the recovery_report block
    says; what was merged or measured before is found again.
    """
    if sweep and ratio is not None:
        raise click.UsageError("--sweep tries the ratios of merge.sweep; leave out --ratio, or leave out --sweep")
    from axolotl_sdft.integrations.axolotl.merging import merge_alone, sweep_alone

    for line in sweep_alone(cfg) if sweep else merge_alone(cfg, ratio):
        echo(line)


@_as_json
@config_command("recovery-report", "recovery_report", "Example: axolotl recovery-report config.yml")
def recovery_report(cfg: Any, as_json: bool) -> Any:
    """Measure what pruning took from the model of CONFIG and training gave back.

    Seed, pruned and trained model side by side: size, speed, the task, everything else. Written as report.html,
    report.json and a section for the model card. What was measured before is found again.
    """
    from axolotl_sdft.integrations.axolotl.recovery import report_alone, report_record

    if as_json:
        return report_record(cfg)
    for line in report_alone(cfg):
        echo(line)
    return None


@click.group("sdft-configs", epilog="Example: axolotl sdft-configs copy today/llama-3.2-3b-24gb my.yml")
def sdft_configs() -> None:
    """Ready configurations: the papers' settings and today's models, to list, read, copy, and check before sharing."""


@sdft_configs.command("list", cls=SdftCommand)
@click.option("--filter", "word", metavar="WORD", default="", help="Only those whose name or description holds WORD.")
@_as_json
def list_configs(word: str, as_json: bool) -> None:
    """List the configurations: name, what it takes, and what it does."""
    from axolotl_sdft.configs.catalogue import shared_configs

    chosen = [config for config in shared_configs() if word.lower() in _searched(config)]
    if as_json:
        with result_alone() as show:
            show(json_text([{"name": config.name, **config.description()} for config in chosen]))
        return
    for line in _list_lines(chosen):
        echo(line)
    if not chosen:
        echo(f"none of the {len(shared_configs())} configurations holds {word!r}")


def _searched(config: "SharedConfig") -> str:
    return " ".join([config.name, *config.description().values()]).lower()


def _list_lines(configs: list["SharedConfig"]) -> Iterator[str]:
    """Yield what each configuration takes, and below it what it does."""
    widest = max((len(config.name) for config in configs), default=0)
    for config in configs:
        described = config.description()
        needs = described.get("needs", "").partition(";")[0]
        yield from fact_lines([(config.name, needs)], label_width=widest)
        yield f"    {described.get('title', '')}"


@sdft_configs.command("show", cls=SdftCommand)
@click.argument("name")
def show_config(name: str) -> None:
    """Print the configuration NAME as it is.

    Below axolotl, its banner is on standard output before this command begins. The program axolotl-sdft prints the file
    alone, and copy writes it.
    """
    from axolotl_sdft.configs.catalogue import find_config

    text = find_config(name).text()
    with result_alone() as show:
        show(printable(text))


@sdft_configs.command("copy", cls=SdftCommand)
@click.argument("name")
@click.argument("dest", required=False, type=click.Path(), default="")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
def copy_named(name: str, dest: str, force: bool) -> None:
    """Copy the configuration NAME, and the small files that it names, to DEST: a file, or a folder that is there or
    whose name ends in a slash.

    It runs from the folder that it is copied to.
    """
    from axolotl_sdft.configs.catalogue import copy_config, find_config

    config = find_config(name)
    is_folder = dest.endswith(("/", os.sep))
    target, *data = copy_config(config, Path(dest) / config.path.name if is_folder else Path(dest), force)
    for path in (target, *data):
        echo(f"written: {path}")
    into = "" if target.parent == Path() else f"cd {target.parent} && "
    echo(f"run it: {into}axolotl train {target.name}")


@sdft_configs.command("check", cls=SdftCommand)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_as_json
def check_config(file: Path, as_json: bool) -> None:
    """Say whether FILE would run for others: no local paths, no secrets, pinned revisions, a description, known keys.

    Where the model's config.json is at hand, also say how much memory each stage needs, beside the GPU that the
    description names.

    Exits with 1 if there is a fault; advice alone leaves it at 0.
    """
    from axolotl_sdft.config.yaml_file import read_yaml_file
    from axolotl_sdft.configs.checking import check_file, check_memory

    content = read_yaml_file(file)  # once: a pipe has nothing to say a second time
    folder = file.parent if file.is_file() else Path()
    with result_alone() if as_json else contextlib.nullcontext(echo) as show:
        plan, about_memory = check_memory(content)
        findings = [*check_file(content, folder), *about_memory]
        memory = [*plan.lines()] if plan is not None else []
        if as_json:
            told = [asdict(finding) for finding in findings]
            show(json_text({"file": str(file), "findings": told, "memory": memory}))
    num_faults = sum(finding.level == "fault" for finding in findings)
    if as_json:
        raise SystemExit(int(num_faults > 0))
    for line in (*(finding.line() for finding in findings), *memory):
        echo(line)
    if num_faults:
        echo(f"{file}: {num_faults} to mend before others can use it")
        raise SystemExit(1)
    echo(f"{file}: fit to share" + (f"; {len(findings)} to consider" if findings else ""))


@click.group("axolotl-sdft", epilog="Example: axolotl-sdft sdft-configs show today/llama-3.2-3b-24gb > my.yml")
def main() -> None:
    """The plugin's commands, as below axolotl, without its banner on standard output."""


for _command in (prune_layers, self_distill, sdft_summary, sdft_merge, recovery_report, sdft_configs):
    main.add_command(_command)
