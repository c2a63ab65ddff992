"""How large the models of a recovery report are, and what one token costs them."""

import logging

from axolotl_sdft.evaluation.loading import weights_dir
from axolotl_sdft.evaluation.spec import ReportedModel
from axolotl_sdft.pruning.planning.savings import Footprint, read_footprint

LOG = logging.getLogger(__name__)


def footprint(model: ReportedModel) -> Footprint:
    """Return how large a model is, from its ``config.json`` and tensor headers; no weights are read.

    A LoRA adapter counts as merged: its base model's layers, parameters and costs, and nothing for the adapter itself.

    Raises:
        CheckpointError: The checkpoint, or an adapter's base model, is missing or incomplete.
    """
    figures, note = read_footprint(weights_dir(model))
    if note is not None:
        LOG.info("%s: %s", model.name, note)
    return figures
