"""Which model a configuration starts from, before and after pruning."""

from pathlib import Path
from typing import Any

from axolotl_sdft.host.blocks import SEED_KEY


def seed_of(cfg: Any) -> tuple[str, str | None]:
    """Return the seed model and its revision, whether or not ``base_model`` is the pruned checkpoint by now."""
    return cfg.get(SEED_KEY) or cfg.base_model, cfg.get("revision_of_model")


def seed_dir_of(cfg: Any) -> Path:
    """Return the folder of the seed model; a Hub id is downloaded."""
    from axolotl_sdft.pruning.seed import resolve_seed

    return resolve_seed(*seed_of(cfg))
