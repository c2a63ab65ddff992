"""``axolotl sdft-merge``."""

from typing import Any

import click

from axolotl_sdft.cli.command import config_command, echo


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
