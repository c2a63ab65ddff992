"""A short account, for a person, of what the stages made."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from axolotl_sdft.core.artifacts import read_json
from axolotl_sdft.core.errors import DatasetError, SdftError, error_context, failure
from axolotl_sdft.core.model_folder import holds_model
from axolotl_sdft.core.terminal import fact_lines
from axolotl_sdft.core.texts import shortened
from axolotl_sdft.core.trained_on import PROVENANCE_FILE
from axolotl_sdft.distillation.output.dataset import read_summary
from axolotl_sdft.distillation.output.gap import gap_text, is_pure_sample
from axolotl_sdft.distillation.output.report import REPORT_FILE
from axolotl_sdft.distillation.rows.left_alone import reasons_named
from axolotl_sdft.evaluation.records import log_history

LOG = logging.getLogger(__name__)

_SHOWN_CHARS = 400

Fact = tuple[str, str]
"""A label, and what there is to say."""


@dataclass(frozen=True)
class Artifacts:
    """Where the parts of a run are; None or empty where a stage is off or has not run."""

    seed_dir: Path | None
    """None where the seed model is gone."""
    pruned_dir: Path | None
    distilled_dirs: Sequence[Path]
    output_dir: Path
    seed_name: str | None = None
    """What the configuration calls the seed model."""


@dataclass(frozen=True)
class RunSummary:
    """What the stages made. Printing it gives the account."""

    artifacts: Artifacts
    prompt: str | None = None
    answers: Mapping[str, str] = field(default_factory=dict)
    """What each model answers to the prompt."""

    @classmethod
    def of(cls, artifacts: Artifacts, prompt: str | None = None, max_new_tokens: int = 48) -> "RunSummary":
        """Return the account; with a prompt, each model answers it greedily, which takes a while.

        A model that can't is left out with a warning.
        """
        answers: dict[str, str] = {}
        for name, folder in _models(artifacts) if prompt is not None else ():
            try:
                answers[name] = answer_of(folder, str(prompt), max_new_tokens)
            except SdftError as err:
                LOG.warning("the %s model can't answer the prompt: %s", name, err)
        return cls(artifacts, prompt, answers)

    def __repr__(self) -> str:
        parts = [f"{len(self.artifacts.distilled_dirs)} distilled datasets", str(self.artifacts.output_dir)]
        if self.artifacts.pruned_dir is not None:
            dropped = read_json(self.artifacts.pruned_dir / PROVENANCE_FILE)["drop_layers"]
            parts.insert(0, f"{len(dropped)} layers removed")
        return f"<RunSummary {', '.join(parts)}>"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """Yield the account line by line."""
        yield from fact_lines(self._facts(), label_width=17)

    def _facts(self) -> Iterator[Fact]:
        artifacts = self.artifacts
        if artifacts.pruned_dir is not None:
            yield from _pruning_facts(read_json(artifacts.pruned_dir / PROVENANCE_FILE))
        for folder in artifacts.distilled_dirs:
            yield from _distillation_facts(read_summary(folder))
        yield from _training_facts(artifacts.output_dir)
        if self.prompt is not None:
            yield "Prompt", self.prompt
            for name, answer in self.answers.items():
                yield f"  {name}", shortened(answer, _SHOWN_CHARS) or "(nothing)"
        yield from _path_facts(artifacts)

    def to_json(self) -> dict[str, Any]:
        """Return the account as JSON values: what was recorded of each stage, and the paths."""
        from axolotl_sdft.evaluation.pipeline import finite

        made = self.artifacts
        pruned = read_json(made.pruned_dir / PROVENANCE_FILE) if made.pruned_dir is not None else None
        losses = TrainingLoss.of(made.output_dir)
        return {
            "seed_model": None if made.seed_dir is None else str(made.seed_dir),
            "pruned_model": None if made.pruned_dir is None else str(made.pruned_dir),
            "layer_pruning": pruned and {key: value for key, value in pruned.items() if key != "scores"},
            "datasets": [{"path": str(folder), **read_summary(folder)} for folder in made.distilled_dirs],
            "trained_model": str(made.output_dir) if holds_model(made.output_dir) else None,
            "training_loss": losses and finite(asdict(losses)),
            "prompt": self.prompt,
            "answers": dict(self.answers),
        }


def summarize_run(
    output_dir: str | Path,
    *,
    seed_model: str | Path | None = None,
    pruned_model: str | Path | None = None,
    datasets: Sequence[str | Path] = (),
    prompt: str | None = None,
) -> RunSummary:
    """Return an account of what was made: layers, rows, losses, and answers side by side.

    Args:
        output_dir: Folder of the trained model.
        seed_model: Folder of the seed model.
        pruned_model: Folder of the pruned checkpoint.
        datasets: Folders of the distilled datasets.
        prompt: Let each model answer this greedily, which takes a while.

    Example:
        >>> print(summarize_run("outputs/my-model", pruned_model="sdft_prepared/Qwen3-8B-drop6-0123456789ab"))
    """
    seed, pruned = (None if path is None else Path(path) for path in (seed_model, pruned_model))
    return RunSummary.of(Artifacts(seed, pruned, [Path(folder) for folder in datasets], Path(output_dir)), prompt)


def _pruning_facts(provenance: dict[str, Any]) -> Iterator[Fact]:
    dropped, before = provenance["drop_layers"], provenance["num_layers_before"]
    parameters = [provenance[key] for key in ("parameters_before", "parameters_after")]
    yield "Layers dropped", f"{len(dropped)} of {before}: {', '.join(str(layer) for layer in dropped)}"
    yield (
        "Parameters",
        f"{parameters[0] / 1e6:.1f}M before, {parameters[1] / 1e6:.1f}M after "
        f"({100 * (1 - parameters[1] / parameters[0]):.1f} % fewer)",
    )
    if provenance.get("patch") is not None:
        yield from _patch_facts(provenance["patch"])


def _patch_facts(patch: dict[str, Any]) -> Iterator[Fact]:
    bare, patched = patch["divergence_bare"], patch["divergence_patched"]
    for cut in patch["cuts"]:
        if not cut["applied"]:
            removed = ", ".join(str(layer) for layer in cut["removed"])
            yield "Patch", f"none before layers {removed}: {cut['reason']}"
    if bare is not None and patched is not None and patched < bare:
        yield "Patch", f"KL to the seed model {bare:.3g} nats per token without it, {patched:.3g} with it"


def _distillation_facts(summary: dict[str, Any]) -> Iterator[Fact]:
    rejections = ", ".join(f"{name} {count}" for name, count in summary["rejections"].items())
    kept = summary["rows"] - summary["rows_dropped"]
    yield (
        "Rows",
        f"{kept} kept of {summary['rows']}, {summary['rows_distilled']} with rewritten answers; "
        f"{summary['turns_distilled']} of {summary['turns']} answers accepted"
        + (f" (rejected: {rejections})" if rejections else "")
        + (f"; left alone: {reasons_named(summary['left_alone'])}" if summary["left_alone"] else ""),
    )
    if summary["gap"] is not None:
        gap, is_pure = summary["gap"], is_pure_sample(summary["provenance"]["settings"]["generation"])
        told = gap_text(gap["nats_per_token_before"], gap["nats_per_token_after"], is_pure)
        yield "Distribution gap", f"{told} (answers under the seed model)"


def _training_facts(output_dir: Path) -> Iterator[Fact]:
    losses = TrainingLoss.of(output_dir)
    if losses is not None:
        ends = f"means of {losses.averaged} of {losses.logged} logged"
        yield "Training loss", f"{losses.first:.3f} first, {losses.last:.3f} last ({ends})"


@dataclass(frozen=True)
class TrainingLoss:
    """How the training loss began and ended, in nats per token; a single step says little of either."""

    first: float
    last: float
    averaged: int
    """How many logged values each of the two is the mean of: a fifth."""

    logged: int

    @classmethod
    def of(cls, output_dir: Path) -> "TrainingLoss | None":
        """Return that of a folder; None where nothing is logged."""
        losses = [float(entry["loss"]) for entry in log_history(output_dir) if "loss" in entry]
        if not losses:
            return None
        count = max(1, len(losses) // 5)
        return cls(fmean(losses[:count]), fmean(losses[-count:]), count, len(losses))


def _models(artifacts: Artifacts) -> Iterator[tuple[str, Path]]:
    if artifacts.seed_dir is not None:
        yield "seed", artifacts.seed_dir
    if artifacts.pruned_dir is not None:
        yield "pruned", artifacts.pruned_dir
    if holds_model(artifacts.output_dir):
        yield "trained", artifacts.output_dir


def answer_of(model_dir: Path, prompt: str, max_new_tokens: int) -> str:
    """Return a model's greedy answer to a prompt; a folder with a LoRA adapter loads with its base model.

    Raises:
        SdftError: The model can't be loaded or asked, or the prompt leaves no room for an answer.
    """
    from axolotl_sdft.config import TransformersGeneration
    from axolotl_sdft.core.runtime import compute_dtype, local_device
    from axolotl_sdft.inference.interfaces import Prompt
    from axolotl_sdft.inference.loading import load_checkpoint
    from axolotl_sdft.inference.local.backend import TransformersBackend

    greedy = TransformersGeneration(max_new_tokens=max_new_tokens, temperature=0.0)
    with error_context(failure(f"{model_dir} can't be loaded", None)):
        model = load_checkpoint(model_dir, compute_dtype(greedy.dtype, local_device()))
    backend = TransformersBackend(model_dir, greedy, model)
    batches = backend.batches([Prompt((0, 0), ({"role": "user", "content": prompt},))])
    answer = next(iter(backend.generate(batches)))[1][0]
    backend.close()
    if answer.error is not None:
        raise DatasetError(answer.error)
    return answer.text


def _path_facts(artifacts: Artifacts) -> Iterator[Fact]:
    yield "Seed model", "gone" if artifacts.seed_dir is None else _shown(artifacts.seed_dir)
    if artifacts.pruned_dir is not None:
        yield "Pruned model", _shown(artifacts.pruned_dir)
    for folder in artifacts.distilled_dirs:
        yield "Distilled dataset", f"{_shown(folder)}, see {REPORT_FILE} in it"
    none_yet = "" if holds_model(artifacts.output_dir) else " (holds no model yet)"
    yield "Trained model", f"{_shown(artifacts.output_dir)}{none_yet}"


def _shown(path: Path) -> str:
    """Return a path relative to the current folder where it lies below it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
