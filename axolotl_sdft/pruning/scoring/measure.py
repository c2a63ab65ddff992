"""Scores the layers of a seed model as its settings ask for. torch comes with :func:`measured_scores`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.config.functions import identified
from axolotl_sdft.core.errors import error_context
from axolotl_sdft.core.model_folder import read_config
from axolotl_sdft.pruning.scoring.loading import MEMORY_SHORTAGE, check_loading, load_for_scoring, load_structure
from axolotl_sdft.pruning.scoring.scores import (
    Batch,
    LayerScores,
    metric_is_greedy,
    metric_needs_text,
    metric_tries_blocks,
    score_layers,
)

_FORMAT = 2
"""Counts up when the same settings give other scores, or a setting that is left out as its default means another."""


def scoring_identity(seed_fingerprint: str, config: LayerPruningConfig, calibration_fingerprint: str) -> dict[str, Any]:
    """Return all that shapes the scores. The number of layers does not: a greedy order serves for fewer, too."""
    identity: dict[str, Any] = {"format": _FORMAT, "seed": seed_fingerprint, "metric": identified(config.metric)}
    if metric_is_greedy(config.metric) or metric_tries_blocks(config.metric):
        identity |= {"protect_first": config.protect_first, "protect_last": config.protect_last}
    if not metric_needs_text(config.metric):
        return identity
    return identity | {
        "token_reduction": config.token_reduction,
        "calibration": config.calibration.model_dump(mode="json", exclude={"batch_size"}, exclude_defaults=True),
        "calibration_text": calibration_fingerprint,
        "dtype": config.dtype,
        "load_in_4bit": config.load_in_4bit,
    }


def measured_scores(
    seed_dir: Path,
    config: LayerPruningConfig,
    load_batches: Callable[[], Sequence[Batch]],
    num_layers: int,
    *,
    trust_remote_code: bool = False,
    may_go: Callable[[Sequence[int]], bool],
    known: LayerScores | None = None,
) -> LayerScores:
    """Load the seed model, score its layers, and free it. The text is read first: its faults cost no model.

    Args:
        seed_dir: Folder of the seed model.
        config: The metric and how the model is loaded.
        load_batches: Gives the calibration text; not called for a metric that reads none.
        num_layers: How many layers are to go.
        trust_remote_code: Run code that comes with the seed model.
        may_go: Whether layers can be removed together, which greedy metrics need to know.
        known: Scores of a greedy metric for fewer layers.

    Raises:
        SdftError: The text, the model or the metric is at fault, or memory ran out.
    """
    from axolotl_sdft.inference.forwarding import free_memory

    reads_text = metric_needs_text(config.metric)
    if reads_text:
        check_loading(read_config(seed_dir), config)
    batches = load_batches() if reads_text else []
    with error_context(MEMORY_SHORTAGE):
        if reads_text:
            model = load_for_scoring(seed_dir, config, trust_remote_code)
        else:
            model = load_structure(seed_dir, trust_remote_code)
        protected = {"protect_first": config.protect_first, "protect_last": config.protect_last}
        scores = score_layers(
            model,
            batches,
            config.metric,
            config.token_reduction,
            num_layers=num_layers,
            **protected,
            may_go=may_go,
            known=known,
        )
    del model
    free_memory()
    return scores
