"""``axolotl recovery-report``."""

from typing import Any

from axolotl_sdft.cli.command import config_command, echo


@config_command("recovery-report", "recovery_report", "Example: axolotl recovery-report config.yml")
def recovery_report(cfg: Any) -> None:
    """Measure what pruning took from the model of CONFIG and training gave back.

    Seed, pruned and trained model side by side: size, speed, quality kept, forgetting. Written as report.html,
    report.json and a section for the model card. What was measured before is found again.
    """
    from axolotl_sdft.integrations.axolotl.recovery import report_alone

    for line in report_alone(cfg):
        echo(line)
