"""The commands that the package adds to ``axolotl``; no logic of their own.

``axolotl --help`` imports these modules, so whatever is heavy is imported inside the commands.
"""

from axolotl_sdft.cli.commands import (
    prune_layers,
    recovery_report,
    sdft_configs,
    sdft_merge,
    sdft_summary,
    self_distill,
)
from axolotl_sdft.cli.publish import sdft_publish

__all__ = [
    "prune_layers",
    "recovery_report",
    "sdft_configs",
    "sdft_merge",
    "sdft_publish",
    "sdft_summary",
    "self_distill",
]
