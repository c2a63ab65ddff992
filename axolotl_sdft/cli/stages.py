"""The commands that run a stage: ``prune-layers``, ``self-distill``, ``sdft-summary``, ``sdft-merge``,
``recovery-report``.
"""

import contextlib
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from axolotl_sdft.cli.command import config_command, echo


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
@config_command("prune-layers", "layer_pruning", "Example: axolotl prune-layers config.yml --num-layers 6 --dry-run")
def prune_layers(cfg: Any, dry_run: bool, num_layers: int | float | None) -> None:
    """Write the pruned checkpoint that CONFIG asks for, as training would.

    Before that, print which layers go, what that saves and what else could go, and draw the scores.
    """
    from axolotl_sdft.integrations.axolotl.commands import prune_alone

    for line in prune_alone(cfg, dry_run, num_layers):
        echo(line)


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

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in distill_alone(cfg, num_previews=dry_run, width=width, corrections=corrections, logits=logits):
        echo(line)


@click.option("--prompt", help="Let the seed, the pruned and the trained model answer this.")
@config_command("sdft-summary", None, "Example: axolotl sdft-summary config.yml --prompt 'What is a glacier?'")
def sdft_summary(cfg: Any, prompt: str | None) -> None:
    """Say what the stages of CONFIG made: layers, rows, losses, paths."""
    from axolotl_sdft.evaluation.summary import summary_lines
    from axolotl_sdft.integrations.axolotl.commands import find_artifacts

    for line in list(summary_lines(find_artifacts(cfg), prompt)):  # all at once, after what loading models prints
        echo(line)


@click.option(
    "--ratio",
    type=click.FloatRange(0, 1),
    metavar="R",
    help="From 0, the first model, to 1, the second; overrides CONFIG.",
)
@click.option("--sweep", is_flag=True, help="Merge at each ratio of merge.sweep, measure each, and say which to take.")
@config_command("sdft-merge", "merge", "Example: axolotl sdft-merge config.yml --sweep")
def sdft_merge(cfg: Any, ratio: float | None, sweep: bool) -> None:
    """Merge the two models that CONFIG names, such as the seed and what was trained from it, into one.

    Full checkpoints of one architecture, two LoRA adapters of one base, or an adapter and its base. A sweep measures
    perplexity on held-out rows and the divergence from the seed on general prompts, as the recovery_report block says;
    what was merged or measured before is found again.
    """
    if sweep and ratio is not None:
        raise click.UsageError("--sweep tries the ratios of merge.sweep; leave out --ratio, or leave out --sweep")
    from axolotl_sdft.integrations.axolotl.merging import merge_alone, sweep_alone

    for line in sweep_alone(cfg) if sweep else merge_alone(cfg, ratio):
        echo(line)


@config_command("recovery-report", "recovery_report", "Example: axolotl recovery-report config.yml")
def recovery_report(cfg: Any) -> None:
    """Measure what pruning took from the model of CONFIG and training gave back.

    Seed, pruned and trained model side by side: size, speed, quality kept, forgetting. Written as report.html,
    report.json and a section for the model card. What was measured before is found again.
    """
    from axolotl_sdft.integrations.axolotl.recovery import report_alone

    for line in report_alone(cfg):
        echo(line)
