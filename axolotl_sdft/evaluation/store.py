"""Keeps what was measured, so that a report that was killed, or is asked for again, measures only what is missing."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_sdft.core.artifacts import fingerprint, write_json
from axolotl_sdft.core.identity import model_identity
from axolotl_sdft.core.trained_on import weights_dir
from axolotl_sdft.evaluation.spec import ReportedModel

_FORMAT = 2
"""Counts up when a measure changes what it measures, or a default that is left out of what shaped it means another."""


@dataclass(frozen=True)
class FigureStore:
    """One JSON file for each measured value, named by the measure and a fingerprint of everything that shaped it."""

    folder: Path

    def find(self, measure: str, shaped_by: Any) -> Any | None:
        """Return a value that was measured before; None where there is none, or its file can't be read."""
        path = self._path(measure, shaped_by)
        try:
            return json.loads(path.read_text(encoding="utf-8"))["value"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, measure: str, shaped_by: Any, value: Any) -> None:
        """Write a value; its file is there whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._path(measure, shaped_by), {"measure": measure, "shaped_by": shaped_by, "value": value})

    def _path(self, measure: str, shaped_by: Any) -> Path:
        return self.folder / f"{measure}-{fingerprint([_FORMAT, measure, shaped_by])}.json"


def write_whole(path: Path, content: Any) -> None:
    """Write a text, or another value as JSON, so that a reader finds the old file or the new one and never a part."""
    temporary = path.with_name(f".{path.name}.unfinished")
    if isinstance(content, str):
        temporary.write_text(content, encoding="utf-8")
    else:
        write_json(temporary, content)
    os.replace(temporary, path)


def model_fingerprint(model: ReportedModel) -> str:
    """Return hex digits that change when any byte does that shapes what a model says, or an adapter's base says."""
    own = model_identity(model.folder)
    return fingerprint([own, model_identity(weights_dir(model.folder))]) if model.is_adapter else own
