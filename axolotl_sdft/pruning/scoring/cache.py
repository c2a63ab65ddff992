"""Keeps scores apart from the pruned checkpoints: another number of layers needs no second scoring. No torch here."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_sdft.core.artifacts import (
    atomic_folder,
    ensure_writable,
    find_or_make,
    package_versions,
    read_json,
    write_json,
)
from axolotl_sdft.core.errors import ArtifactError
from axolotl_sdft.pruning.checkpoint.cut import SCORES_FILE
from axolotl_sdft.pruning.scoring.scores import LayerScores

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
        ensure_writable(self.folder.parent, "layer_pruning (its scores)")

        def write() -> None:
            scores = make(self.read())
            if (self.folder / SCORES_FILE).is_file():
                _replace_json(self.folder / SCORES_FILE, scores.to_json())
                return
            with atomic_folder(self.folder) as folder:
                write_json(folder / SCORES_FILE, scores.to_json())
                write_json(folder / SCORING_FILE, self.provenance | _versions())

        find_or_make(self.folder, write, lambda: _serve(self.read(), num_layers))
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


def _replace_json(path: Path, value: Any) -> None:
    """Write a file anew beside the old one, then let it take its place: a reader sees one or the other."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        write_json(Path(folder) / path.name, value)
        os.replace(Path(folder) / path.name, path)
