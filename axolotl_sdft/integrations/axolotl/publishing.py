"""Publishes what the stages of a configuration made."""

from collections.abc import Iterator
from typing import Any

from axolotl_sdft.config import RecoveryReportConfig
from axolotl_sdft.evaluation.publishing import Hub, Kind, plan_upload, publish
from axolotl_sdft.integrations.axolotl.blocks import read_blocks
from axolotl_sdft.integrations.axolotl.commands import find_artifacts
from axolotl_sdft.integrations.axolotl.recovery import report_dir


def publish_alone(
    cfg: Any,
    repo_id: str | None,
    kind: Kind,
    *,
    private: bool = False,
    dry_run: bool = False,
    base_repo: str | None = None,
    licence: str | None = None,
    index: int | None = None,
    hub: Hub | None = None,
) -> Iterator[str]:
    """Yield what is published and under which card; then publish it, unless ``dry_run``, and yield the address.

    Args:
        cfg: The raw configuration.
        repo_id: Where on the Hub, such as ``name/model``. It is made if it is not there. None only in a dry run.
        kind: What is published.
        private: Make a new repository private.
        dry_run: Ask nothing of the Hub.
        base_repo: Where on the Hub the checkpoint is that an adapter was trained on.
        licence: The Hub's name of a licence, for the card.
        index: Which of several self-distilled datasets.
        hub: Takes the place of ``huggingface_hub.HfApi``.

    Raises:
        SdftError: There is nothing to publish, something must not be published, or the Hub refused.
    """
    config = read_blocks(cfg).recovery_report or RecoveryReportConfig()
    upload = plan_upload(find_artifacts(cfg), kind, report_dir(cfg, config), base_repo, licence, index)
    yield from upload.lines()
    if dry_run or repo_id is None:
        yield "nothing was uploaded: this was a dry run"
        return
    yield f"published: {publish(upload, repo_id, private, hub)}"
