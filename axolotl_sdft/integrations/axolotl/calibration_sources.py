"""The texts of a calibration: one dataset, or a mixture with shares, the seed model's own answers among them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_sdft.config import CalibrationConfig, LayerPruningConfig
from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.integrations.axolotl.blocks import missing_chat_template
from axolotl_sdft.integrations.axolotl.calibration import calibration_entries, calibration_texts
from axolotl_sdft.integrations.axolotl.datasets import entry_fingerprint
from axolotl_sdft.pruning.general_answers import GeneralText, calibration_prompts

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where some of the calibration text comes from: entries of datasets."""

    config: CalibrationConfig
    """How many rows are read."""
    entries: tuple[tuple[str, Any], ...] = ()

    @property
    def identity(self) -> Any:
        """What changes with the text."""
        return [entry_fingerprint(entry) for _, entry in self.entries]


def calibration_sources(cfg: Any, calibration: CalibrationConfig) -> list[Source]:
    """Return what is read; no rows are read yet. General prompts are no part of it."""
    if not calibration.parts:
        return [Source(calibration, tuple(calibration_entries(cfg, calibration)))]
    sources = []
    for number, (part, config) in enumerate(zip(calibration.parts, calibration.sources, strict=True)):
        if not part.general_prompts:
            where = f"layer_pruning.calibration[{number}]"
            sources.append(Source(config, tuple(calibration_entries(cfg, config, where))))
    return sources


def source_texts(cfg: Any, sources: Sequence[Source], seed_dir: Path) -> list[str]:
    """Return the texts of all sources.

    Raises:
        DatasetError: A source names no dataset, or one that can't be read.
    """
    texts: list[str] = []
    for source in sources:
        if not source.entries:
            raise DatasetError(
                "neither datasets, pretraining_dataset nor layer_pruning.calibration.path is set; set the last, or "
                "layer_pruning.patch: none"
            )
        texts += calibration_texts(cfg, source.entries, source.config, seed_dir)
    return texts


def general_text(cfg: Any, config: LayerPruningConfig, seed_dir: Path) -> GeneralText | None:
    """Return what the seed model writes itself for the patch, by default or as a part; None where it writes nothing.

    Nothing is generated yet.
    """
    calibration = config.calibration
    num_prompts = calibration.num_general_prompts
    if config.patch == "none":
        if num_prompts:
            LOG.warning(
                "layer_pruning.patch is none, so the part of layer_pruning.calibration with general_prompts is without "
                "effect: layers are scored on the other parts"
            )
        return None
    if not (num_prompts or calibration.asks_by_default):
        return None
    available = len(calibration_prompts())
    if num_prompts > available:
        LOG.info("layer_pruning.calibration asks for %d general prompts; there are %d", num_prompts, available)
    return GeneralText(
        share=None if num_prompts else calibration.general_share,
        num_prompts=num_prompts or None,
        chat_template=missing_chat_template(cfg, seed_dir),
    )
