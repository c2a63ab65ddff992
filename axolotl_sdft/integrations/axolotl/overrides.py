"""What single datasets change about the ``self_distillation`` block.

An entry of ``datasets`` may hold a block of its own, which is laid over the top-level one: what it names counts, the
rest stays, also inside ``generation``; where it names another backend, what that one doesn't have is left out.
Axolotl's schema knows no such key in an entry and drops it without a word. So ``register`` takes the blocks out before
Axolotl validates, and keeps them under a key that the plugin declares; every command, rank and Ray worker finds them
there.
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from axolotl_sdft.config import SelfDistillationConfig, overridden
from axolotl_sdft.core.errors import ConfigError, Explain, SdftError, keyed
from axolotl_sdft.integrations.axolotl.blocks import fault_line, plain
from axolotl_sdft.integrations.axolotl.datasets import OVERRIDE

OVERRIDES_KEY = "sdft_datasets"
"""Where the plugin keeps the blocks: one for each entry of ``datasets``, empty where it has none."""


class DatasetConfig(SelfDistillationConfig):
    """How one dataset is rewritten: the top-level block with what the dataset's own block changes."""

    enabled: bool = True
    """``false`` leaves this dataset as it is."""

    prompt_field: str | None = None
    """For ``type: completion``: the column that holds the beginning of each text. What follows it is rewritten."""

    def settings(self) -> SelfDistillationConfig:
        """Return the settings that a dataset shares with the top-level block."""
        own = set(type(self).model_fields) - set(SelfDistillationConfig.model_fields)
        return SelfDistillationConfig.model_validate(self.model_dump(exclude=own, exclude_unset=True))


def check_overrides(cfg: Mapping[str, Any]) -> None:
    """Refuse blocks of single datasets that can't work, all at once. The top-level block is right already.

    Raises:
        ConfigError: One line per fault, each with a key such as ``datasets[0].self_distillation.template``.
    """
    faults = [fault for index in range(len(_overrides(cfg))) for fault in _merged(cfg, index)[1]]
    faults += [
        f"test_datasets[{index}].{OVERRIDE} is set, but test sets are never rewritten; remove it"
        for index, entry in enumerate(_entries(cfg, "test_datasets"))
        if OVERRIDE in entry
    ]
    if faults:
        raise ConfigError("\n".join(faults))


def take_out_overrides(cfg: Any) -> None:
    """Move the blocks out of the entries of ``datasets`` to the plugin's own key. Can be called again."""
    if cfg.get(OVERRIDES_KEY) is not None:
        return
    overrides = _overrides(cfg)
    if not any(OVERRIDE in entry for entry in _entries(cfg)):
        return
    for entry in _entries(cfg):
        entry.pop(OVERRIDE, None)
    cfg[OVERRIDES_KEY] = overrides


def dataset_config(cfg: Mapping[str, Any], index: int) -> DatasetConfig:
    """Return how an entry of ``datasets`` is rewritten.

    Raises:
        ConfigError: Its block is wrong.
    """
    merged, faults = _merged(cfg, index)
    if merged is None:
        raise ConfigError("\n".join(faults))
    return merged


def own_key(cfg: Mapping[str, Any], index: int) -> Explain:
    """Let errors about a key of ``self_distillation`` name the dataset's own block where that has set the key.

    Returns:
        What :func:`error_context` takes.
    """

    def prefix(err: SdftError) -> str:
        found = re.match(rf"{OVERRIDE}\.(\w+)", str(err))
        return "" if found is None or found[1] not in _overrides(cfg)[index] else f"datasets[{index}]."

    return keyed(prefix)


def _merged(cfg: Mapping[str, Any], index: int) -> tuple[DatasetConfig | None, list[str]]:
    """Return a dataset's settings, or None and what is wrong with its block."""
    where, own, common = f"datasets[{index}].{OVERRIDE}", _overrides(cfg)[index], cfg.get(OVERRIDE)
    if own and common is None:
        return None, [f"{where} is set, but there is no top-level block; an empty one will do: {OVERRIDE}: {{}}"]
    if not isinstance(own, Mapping):
        return None, [f"{where} is {own!r}; write its keys under it, such as enabled: false"]
    base = plain(common or {})
    merged = {**base, **own}
    if isinstance(base.get("generation"), Mapping) and isinstance(own.get("generation"), Mapping):
        merged["generation"] = overridden(base["generation"], own["generation"])
    try:
        return DatasetConfig.model_validate(merged), []
    except ValidationError as err:
        return None, [fault_line(where, error) for error in err.errors()]


def _overrides(cfg: Mapping[str, Any]) -> list[Any]:
    kept = cfg.get(OVERRIDES_KEY)
    if kept is None:
        kept = [entry.get(OVERRIDE) for entry in _entries(cfg)]
    return [{} if own is None else plain(own) for own in kept]


def _entries(cfg: Mapping[str, Any], key: str = "datasets") -> list[Any]:
    entries = cfg.get(key)
    return [entry if isinstance(entry, Mapping) else {} for entry in entries] if isinstance(entries, list) else []
