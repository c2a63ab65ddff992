"""The figures of a recovery report, and the files that keep each one that was measured. Imports no torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from axolotl_sdft.core.artifacts import fingerprint, replace_json
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
    """How a model predicts given answers, token by token, beside the seed model."""

    nll: Estimate
    """Mean negative log-likelihood of the answers, in nats per token."""

    perplexity: Estimate
    """``exp(nll)``."""

    kl_to_seed: Estimate
    """Mean of ``KL(seed || model)`` at each answer token, in nats per token. 0 for the seed model itself."""

    agreement: Estimate
    """Share of the answer tokens at which model and seed model hold the same token most likely. 1 for the seed model
    itself."""


@dataclass(frozen=True)
class SpeedFigures:
    """How a model generates, measured in a process of its own, in turn with the others.

    Models of one shape share theirs: whatever their weights, they take the same time, and the rounds of all tell it.
    """

    tokens_per_second: float
    """New tokens per second of one sequence, the prompt's time included; median over rounds."""

    speeds: tuple[float, ...]
    """The same of each round."""

    peak_bytes: int
    """Peak memory of the process while it generates: of the device where there is one, else resident."""

    prompt_tokens: int
    new_tokens: int
    device: str
    """Such as ``cpu, 2 threads`` or the name of a GPU."""


@dataclass(frozen=True)
class DraftFigures:
    """A model as draft of the seed model in speculative decoding."""

    acceptance: float
    """Share of the draft's tokens that the seed model accepted; those after a rejected one count as rejected too."""

    tokens_per_step: float
    """New tokens per forward pass of the seed model. 1 without a draft."""

    tokens_per_second: float
    """With the draft."""

    tokens_per_second_alone: float
    """The seed model without a draft, on the same prompts."""

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
    """On the seed model's own answers to general prompts: its KL is what the model has forgotten."""

    exact_match: Estimate | None = None
    """Share of the held-out prompts answered rightly."""

    pass_at: Mapping[str, Estimate] = field(default_factory=dict)
    """By k: chance that one of k sampled answers to a held-out prompt is right (arXiv 2107.03374, equation 1)."""

    repetition: Mapping[str, Estimate] = field(default_factory=dict)
    """Share of the greedy answers that run in circles, by prompts: ``general``, ``held_out``."""

    refusals: Estimate | None = None
    """Share of the greedy answers to general prompts that refuse."""

    tool_calls: Estimate | None = None
    """Share of the held-out prompts answered by the very calls of the reference, of those whose reference calls."""

    tasks: Mapping[str, Estimate] = field(default_factory=dict)
    """Scores of lm-evaluation-harness by task, from 0 to 1."""

    speed: SpeedFigures | None = None
    drafting: DraftFigures | None = None

    relative_to_seed: Mapping[str, Estimate] = field(default_factory=dict)
    """In percent of the seed model, by source: ``tasks`` (the mean score), ``exact_match``, ``tool_calls``,
    ``held_out`` (the seed model's perplexity divided by the model's) and ``general`` (the same on the seed model's own
    answers). Above 100 the model is better than the seed model on this measure."""

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class SideBySide:
    """What the models answer to one prompt, greedily."""

    prompt: str
    kind: str
    """``yours``, ``general`` or ``held out``."""

    answers: Mapping[str, str]
    """By the model's name; without those that could not answer."""

    reference: str | None = None
    """Of a held-out row."""


@dataclass(frozen=True)
class Curve:
    """What the trainer logged of a model, step by step."""

    model: str
    key: str
    """As the trainer calls it: ``loss``, ``eval_loss``."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class TriedRemoval:
    """What removing so many layers costs, by the best choice of them that the pruning tried."""

    num_layers: int
    bare: float
    """Of the bare cut."""

    patched: float | None = None
    """Of the patched one; None where no patch was tried."""


@dataclass(frozen=True)
class RecoveryReport:
    """The models side by side, the seed model first."""

    models: tuple[ModelFigures, ...]
    settings: Mapping[str, Any]
    """The ``recovery_report`` block, defaults written out."""

    notes: tuple[str, ...] = ()
    """What was not measured, and why."""

    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Package versions, where the rows come from, the machine."""

    answers: tuple[SideBySide, ...] = ()
    curves: tuple[Curve, ...] = ()
    removals: tuple[TriedRemoval, ...] = ()
    """In ascending order of the number of layers."""

    removal_measure: str = ""
    """What the removals are measured in, with its unit."""

    task_kinds: Mapping[str, str] = field(default_factory=dict)
    """By the name of a task of lm-evaluation-harness: ``multiple_choice``, ``generate_until`` or as it calls others."""

    unmeasured: Mapping[str, str] = field(default_factory=dict)
    """By capability: why nothing of it was measured, and which key to set."""

    harness: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What lm-evaluation-harness itself says of each model, as its results files hold it; a file of its own."""

    def __repr__(self) -> str:
        names = ", ".join(model.name for model in self.models)
        return f"<RecoveryReport of {names}, {self.provenance.get('created', 'not dated')}>"

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values, without what has files of its own."""
        return {key: value for key, value in asdict(self).items() if key != "harness"}


_FORMAT = 4
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
        replace_json(self._path(measure, shaped_by), {"measure": measure, "shaped_by": shaped_by, "value": value})

    def _path(self, measure: str, shaped_by: Any) -> Path:
        return self.folder / f"{measure}-{fingerprint([_FORMAT, measure, shaped_by])}.json"


def model_fingerprint(model: ReportedModel) -> str:
    """Return hex digits that change when any byte does that shapes what a model says, or an adapter's base says."""
    own = model_identity(model.folder)
    return fingerprint([own, model_identity(weights_dir(model.folder))]) if model.is_adapter else own
