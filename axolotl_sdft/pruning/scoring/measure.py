"""Scores the layers of a seed model as its settings ask for, and keeps the scores. No torch until something is
scored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.config.block import identified
from axolotl_sdft.core.artifacts import (
    atomic_folder,
    ensure_writable,
    find_or_make,
    package_versions,
    read_json,
    replace_json,
    write_json,
)
from axolotl_sdft.core.errors import ArtifactError, error_context
from axolotl_sdft.core.model_folder import read_config
from axolotl_sdft.pruning.checkpoint.cut import SCORES_FILE
from axolotl_sdft.pruning.scoring.loading import MEMORY_SHORTAGE, check_loading, load_for_scoring, load_structure
from axolotl_sdft.pruning.scoring.scores import (
    Batch,
    LayerScores,
    metric_code,
    metric_is_greedy,
    metric_needs_text,
    metric_tries_blocks,
    score_layers,
)

SCORING_FILE = "scoring.json"
"""What the scores were made from: seed model, metric, calibration, package versions."""


@dataclass(frozen=True)
class ScoreCache:
    """The folder of one scoring. A greedy metric's scores in it are replaced when more layers are asked for."""

    folder: Path
    provenance: dict[str, Any]

    def read(self) -> LayerScores | None:
        """Return the scores, or None when there are none.

        Raises:
            ArtifactError: The file is broken.
        """
        path = self.folder / SCORES_FILE
        if not path.is_file():
            return None
        try:
            return LayerScores.from_json(read_json(path))
        except (KeyError, TypeError, AttributeError) as err:
            raise ArtifactError(f"{path} holds no scores ({type(err).__name__}: {err}); delete {self.folder}") from err

    def find_or_make(self, num_layers: int, make: Callable[[LayerScores | None], LayerScores]) -> LayerScores:
        """Return scores that serve to remove so many layers, made unless they are there. Of several processes one does.

        Args:
            num_layers: How many layers are to go.
            make: Gets scores that serve to remove fewer, if there are any.

        Raises:
            ArtifactError: The folder can't be written, or holds a broken file.
        """

        def is_ready() -> bool:
            return _serve(self.read(), num_layers)

        if not is_ready():  # else the folder may be one that can only be read
            ensure_writable(self.folder.parent, "layer_pruning (its scores)")

        def write() -> None:
            scores = make(self.read())
            if (self.folder / SCORES_FILE).is_file():
                replace_json(self.folder / SCORES_FILE, scores.to_json())
                return
            with atomic_folder(self.folder) as folder:
                write_json(folder / SCORES_FILE, scores.to_json())
                write_json(folder / SCORING_FILE, self.provenance | _versions())

        find_or_make(self.folder, write, is_ready)
        scores = self.read()
        if scores is None:
            raise ArtifactError(f"{self.folder / SCORES_FILE} vanished while it was read; run again")
        return scores


def _serve(scores: LayerScores | None, num_layers: int) -> bool:
    """Whether scores are enough to remove so many layers.

    Costs of blocks always are, an order is if it is long enough, blocks that were tried are if one has that length.
    """
    if scores is None:
        return False
    if scores.divergences:
        return any(block.end - block.start == num_layers for block in scores.divergences)
    return not scores.removal_order or len(scores.removal_order) >= num_layers


def _versions() -> dict[str, Any]:
    return {"package_versions": package_versions("transformers", "torch")}


_FORMAT = 2
"""Counts up when the same settings give other scores, or a setting that is left out as its default means another."""


def scoring_identity(seed_fingerprint: str, config: LayerPruningConfig, calibration_fingerprint: str) -> dict[str, Any]:
    """Return all that shapes the scores. The number of layers does not: a greedy order serves for fewer, too."""
    identity: dict[str, Any] = {"format": _FORMAT, "seed": seed_fingerprint, "metric": identified(config.metric)}
    identity |= metric_code(config.metric)
    if metric_is_greedy(config.metric) or metric_tries_blocks(config.metric):
        identity |= {"protect_first": config.protect_first, "protect_last": config.protect_last}
    if not metric_needs_text(config.metric):
        return identity
    return identity | {
        "token_reduction": config.token_reduction,
        "calibration": config.calibration.model_dump(
            mode="json", exclude={"batch_size", "general_share"}, exclude_defaults=True
        ),
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
