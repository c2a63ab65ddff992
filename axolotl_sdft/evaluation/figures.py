"""The figures of a recovery report, and the files that keep each one that was measured. Imports no torch."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from axolotl_sdft.core.artifacts import fingerprint, write_json
from axolotl_sdft.core.identity import model_identity
from axolotl_sdft.core.trained_on import weights_dir
from axolotl_sdft.evaluation.spec import ReportedModel
from axolotl_sdft.pruning.planning.savings import Footprint


@dataclass(frozen=True)
class Estimate:
    """A measured value with what it was measured on."""

    value: float

    low: float | None
    """Lower end of the 95 % confidence interval, by bootstrap over rows; None where it was left out."""

    high: float | None
    """Upper end of it."""

    rows: int
    """Over so many rows, questions or answers."""


@dataclass(frozen=True)
class LikelihoodFigures:
    """How a model predicts given answers, token by token, beside the seed."""

    nll: Estimate
    """Mean negative log-likelihood of the answers, in nats per token."""

    perplexity: Estimate
    """``exp(nll)``."""

    kl_to_seed: Estimate
    """Mean of ``KL(seed || model)`` at each answer token, in nats per token. 0 for the seed itself."""

    agreement: Estimate
    """Share of the answer tokens at which model and seed hold the same token most likely. 1 for the seed itself."""


@dataclass(frozen=True)
class SpeedFigures:
    """How a model generates, measured in a process of its own, in turn with the others."""

    tokens_per_second: float
    """New tokens per second of one sequence, the prompt's time included; median over rounds."""

    peak_bytes: int
    """Peak memory of the process while it generates: of the device where there is one, else resident."""

    prompt_tokens: int
    new_tokens: int
    rounds: int
    device: str
    """Such as ``cpu, 2 threads`` or the name of a GPU."""


@dataclass(frozen=True)
class DraftFigures:
    """A model as draft of the seed in speculative decoding."""

    acceptance: float
    """Share of the draft's tokens that the seed accepted; those after a rejected one count as rejected too."""

    tokens_per_step: float
    """New tokens per forward pass of the seed. 1 without a draft."""

    tokens_per_second: float
    """With the draft."""

    tokens_per_second_alone: float
    """The seed without a draft, on the same prompts."""

    same_answers: float
    """Share of the prompts answered exactly as without a draft. 1 unless rounding decides a near-tie."""

    prompts: int


@dataclass(frozen=True)
class ModelFigures:
    """All that was measured of one model; None or empty where something was left out or does not apply."""

    name: str
    """``seed``, ``pruned``, ``trained``, or what the configuration calls it."""

    folder: str
    footprint: Footprint | None = None
    held_out: LikelihoodFigures | None = None
    """On the reference answers of held-out rows."""

    general: LikelihoodFigures | None = None
    """On the seed's own answers to general prompts: its KL is what the model has forgotten."""

    exact_match: Estimate | None = None
    """Share of the held-out prompts answered rightly."""

    tasks: Mapping[str, Estimate] = field(default_factory=dict)
    """Scores of lm-evaluation-harness by task, from 0 to 1."""

    speed: SpeedFigures | None = None
    drafting: DraftFigures | None = None

    quality_kept: Mapping[str, Estimate] = field(default_factory=dict)
    """In percent of the seed, by source: ``tasks`` (the mean score), ``exact_match``, ``held_out`` (the seed's
    perplexity divided by the model's) and ``general`` (the same on the seed's own answers)."""

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class RecoveryReport:
    """The models side by side, the seed first."""

    models: tuple[ModelFigures, ...]
    settings: Mapping[str, Any]
    """The ``recovery_report`` block, defaults written out."""

    notes: tuple[str, ...] = ()
    """What was not measured, and why."""

    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Package versions, where the rows come from, the machine."""

    harness: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What lm-evaluation-harness itself says of each model, as its results files hold it; a file of its own."""

    def __repr__(self) -> str:
        names = ", ".join(model.name for model in self.models)
        return f"<RecoveryReport of {names}, {self.provenance.get('created', 'not dated')}>"

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values, without what has files of its own."""
        return {key: value for key, value in asdict(self).items() if key != "harness"}


_FORMAT = 3
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
