"""The command that publishes what a run made."""

from typing import Any

import click

from axolotl_sdft.cli.commands import config_command, echo, main

_KINDS = ("checkpoint", "dataset", "report", "model")  # repeated here, since importing them would import torch


@click.option("--repo-id", metavar="NAME", help="Where on the Hub, such as you/model. Made if it is not there.")
@click.option(
    "--what",
    type=click.Choice(_KINDS),
    default="model",
    show_default=True,
    help="The pruned checkpoint, a self-distilled dataset, the recovery report, or what was trained.",
)
@click.option("--private", is_flag=True, help="Make a new repository private; one that is public already is refused.")
@click.option("--dry-run", is_flag=True, help="List files, sizes and the card. Asks nothing of the Hub.")
@click.option("--base-repo-id", metavar="NAME", help="Where on the Hub the checkpoint is that an adapter stands on.")
@click.option("--license", "licence", metavar="NAME", help="The Hub's name of a licence for the card, such as mit.")
@click.option("--index", type=click.IntRange(0), metavar="N", help="Which of several datasets, counted from 0.")
@config_command(
    "sdft-publish", None, "Example: axolotl sdft-publish config.yml --what dataset --repo-id you/rows --dry-run"
)
def sdft_publish(
    cfg: Any,
    repo_id: str | None,
    what: Any,
    private: bool,
    dry_run: bool,
    base_repo_id: str | None,
    licence: str | None,
    index: int | None,
) -> None:
    """Publish on the Hub what the stages of CONFIG made, with a card.

    A pruned checkpoint, a self-distilled dataset (as parquet), the recovery report, or the trained model, merged where
    it was merged. Nothing is published that names a folder of this machine or looks like a key. Log in with:
    hf auth login.
    """
    if repo_id is None and not dry_run:
        raise click.UsageError("--repo-id is missing; name a repository such as you/model, or look first: --dry-run")
    from axolotl_sdft.config import RecoveryReportConfig
    from axolotl_sdft.evaluation.publishing import plan_upload, publish
    from axolotl_sdft.integrations.axolotl.blocks import read_blocks
    from axolotl_sdft.integrations.axolotl.commands import find_artifacts
    from axolotl_sdft.integrations.axolotl.recovery import report_dir

    report = report_dir(cfg, read_blocks(cfg).recovery_report or RecoveryReportConfig())
    upload = plan_upload(find_artifacts(cfg), what, report, base_repo_id, licence, index)
    for line in upload.lines():
        echo(line)
    if dry_run or repo_id is None:
        echo("nothing was uploaded: this was a dry run")
    else:
        echo(f"published: {publish(upload, repo_id, private)}")


main.add_command(sdft_publish)
