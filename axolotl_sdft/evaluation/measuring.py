"""Takes the measures of a recovery report in turn: what was kept from before is found, and the rest is measured."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from typing import Any

from axolotl_sdft.config import LmEvalConfig
from axolotl_sdft.core.artifacts import fingerprint
from axolotl_sdft.core.errors import SdftError
from axolotl_sdft.core.model_folder import slug
from axolotl_sdft.core.runtime import local_device
from axolotl_sdft.core.texts import evenly_spaced
from axolotl_sdft.core.trained_on import weights_dir
from axolotl_sdft.evaluation.answering import Answering
from axolotl_sdft.evaluation.figures import (
    DraftFigures,
    Estimate,
    FigureStore,
    ModelFigures,
    SideBySide,
    SpeedFigures,
    model_fingerprint,
)
from axolotl_sdft.evaluation.loading import LoadedModels, notes_of_template
from axolotl_sdft.evaluation.measures.bootstrap import Resampler
from axolotl_sdft.evaluation.measures.likelihood import (
    MeasuredRows,
    RowSums,
    answer_statistics,
    encode_targets,
    likelihood_figures,
    relative_to_seed,
    require_shared_vocabulary,
    scored_answers,
)
from axolotl_sdft.evaluation.measures.own_answers import JudgedAnswers
from axolotl_sdft.evaluation.measures.speed import described_device, measure_speed, shared_by_shape
from axolotl_sdft.evaluation.measures.task_scores import joined_results, task_fingerprint, task_kind, task_scores
from axolotl_sdft.evaluation.spec import RecoverySpec, ReportedModel
from axolotl_sdft.inference.likelihood import ScoredIds
from axolotl_sdft.inference.prompts import load_tokenizer, prompt_ids
from axolotl_sdft.pruning.planning.savings import Footprint, read_footprint

LOG = logging.getLogger(__name__)


def footprint(model: ReportedModel) -> Footprint:
    """Return how large a model is, from its ``config.json`` and tensor headers; no weights are read.

    A LoRA adapter counts as merged: its base model's layers, parameters and costs, and nothing for the adapter itself.

    Raises:
        CheckpointError: The checkpoint, or an adapter's base model, is missing or incomplete.
    """
    figures, note = read_footprint(weights_dir(model.folder))
    if note is not None:
        LOG.info("%s: %s", model.name, note)
    return figures


FIGURES_FOLDER = "figures"


class Measuring:
    """One run of a :class:`~axolotl_sdft.evaluation.spec.RecoverySpec`.

    The seed model stays loaded beside one other model at a time, and each only where something of it is missing. Tasks
    and speed load their models themselves, after these are gone.
    """

    def __init__(self, spec: RecoverySpec) -> None:
        self._spec, self._config = spec, spec.config
        self._store = FigureStore(spec.output_dir / FIGURES_FOLDER)
        self._resampler = Resampler(spec.config.bootstrap_samples)
        self._load = LoadedModels(spec)
        self._not_measured: dict[tuple[str, str], list[str]] = {}  # measures, by the model's name and the reason
        self._answering = Answering(spec, lambda: self._tokenizer, self._load, self._value)
        self.notes: list[str] = []
        """What could not be measured, and why."""
        self.fingerprints: dict[str, str] = {}
        """Of each model that can be measured, by its name."""
        self.harness: dict[str, dict[str, Any]] = {}
        """What lm-evaluation-harness itself says of each model."""
        self.task_kinds: dict[str, str] = {}
        """What each of its tasks asks for, by the task's name."""
        self.answers: tuple[SideBySide, ...] = ()
        """What the models write, side by side."""

    @cached_property
    def device(self) -> str:
        """What the models run on in this process."""
        return described_device(local_device())

    def figures(self) -> list[ModelFigures]:
        """Return the figures of each model that can be read, the seed model first.

        Raises:
            SdftError: The seed model can't be measured.
        """
        models = [model for model in self._spec.models if self._is_readable(model)]
        beside = {model.name: self._beside_seed(model) for model in models}
        self.answers = self._answering.side_by_side(models)
        self._load.clear()
        tasks = {model.name: self._tasks(model) for model in models}
        footprints = {model.name: self._footprint(model) for model in models}
        speeds = shared_by_shape(self._speeds(models), {model.name: self._shape(model, footprints) for model in models})
        seed_rows = beside[self._spec.seed.name].rows(tasks[self._spec.seed.name])
        self._note_worthless_sources(seed_rows)
        for model in models[1:]:
            self.notes += notes_of_template(model, self._tokenizer, self._spec)
        self.notes += [
            f"{name}: {', '.join(measures)}: not measured: {reason}"
            for (name, reason), measures in self._not_measured.items()
        ]
        self.notes += self._left_out()
        return [
            dataclasses.replace(
                self._model_figures(model, beside[model.name], tasks[model.name], seed_rows),
                footprint=footprints[model.name],
                speed=speeds.get(model.name),
            )
            for model in models
        ]

    def _model_figures(
        self,
        model: ReportedModel,
        beside: "_BesideSeed",
        tasks: Mapping[str, Sequence[float]],
        seed_rows: MeasuredRows,
    ) -> ModelFigures:
        judged = beside.judged
        return ModelFigures(
            name=model.name,
            folder=str(model.folder),
            held_out=likelihood_figures(beside.held_out, self._resampler) if beside.held_out else None,
            general=likelihood_figures(beside.general, self._resampler) if beside.general else None,
            exact_match=self._mean(judged.right),
            pass_at={str(k): figure for k, rates in judged.pass_at.items() if (figure := self._mean(rates))},
            repetition={of: figure for of, repeats in judged.repetition.items() if (figure := self._mean(repeats))},
            refusals=self._mean(judged.refusals),
            tool_calls=self._mean(judged.tool_calls),
            tasks={name: figure for name, scores in tasks.items() if (figure := self._mean(scores))},
            drafting=beside.drafting,
            relative_to_seed=relative_to_seed(seed_rows, beside.rows(tasks), self._resampler),
        )

    def _mean(self, values: Sequence[float]) -> Estimate | None:
        return self._resampler.ratio(values, [1] * len(values)) if values else None

    def _is_readable(self, model: ReportedModel) -> bool:
        try:
            self.fingerprints[model.name] = model_fingerprint(model)
        except SdftError as err:
            self._warn(model, str(err), err)
            self.notes.append(f"{model.name}: {err}")
        return model.name in self.fingerprints

    def _footprint(self, model: ReportedModel) -> Footprint | None:
        try:
            return footprint(model)
        except SdftError as err:
            self.notes.append(f"{model.name}: its size can't be told: {err}")
            return None

    def _shape(self, model: ReportedModel, footprints: Mapping[str, Footprint | None]) -> Footprint | None:
        """Return what models that take the same time share; None where an adapter stays beside its base model."""
        return None if model.is_adapter and self._config.load_in_4bit else footprints[model.name]

    def _beside_seed(self, model: ReportedModel) -> "_BesideSeed":
        return _BesideSeed(
            held_out=self._likelihoods(model, "held_out", self._held_out_answers),
            general=self._likelihoods(model, "general", self._general_answers),
            judged=self._answering.judged(model),
            drafting=self._drafting(model),
        )

    def _likelihoods(self, model: ReportedModel, measure: str, answers: Sequence[ScoredIds]) -> list[RowSums]:
        if not answers:
            return []

        def make() -> list[Any]:
            (own, tokenizer), (seed, seed_tokenizer) = self._load(model), self._load(self._spec.seed)
            if own is not seed:
                require_shared_vocabulary(tokenizer, seed_tokenizer, model.name)
            return [astuple(row) for row in answer_statistics(own, seed, answers)]

        answered = fingerprint([[answer.ids, answer.num_answer] for answer in answers])
        return [RowSums(*row) for row in self._value(model, measure, {"answers": answered}, make) or ()]

    @cached_property
    def _tokenizer(self) -> Any:
        """The seed model's: it encodes the text that all models see."""
        spec = self._spec
        return load_tokenizer(
            spec.seed.folder, trust_remote_code=spec.trust_remote_code, chat_template=spec.chat_template
        )

    @cached_property
    def _held_out_answers(self) -> list[ScoredIds]:
        answers, num_left_out = encode_targets(
            self._tokenizer,
            self._spec.held_out,
            self._config.held_out.sequence_len,
            self._spec.template_arguments,
        )
        if num_left_out:
            self.notes.append(
                f"held-out rows: {num_left_out} of {len(self._spec.held_out)} are left out, whose answer is empty or "
                f"lies beyond recovery_report.held_out.sequence_len ({self._config.held_out.sequence_len} tokens)"
            )
        return answers

    @cached_property
    def _general_answers(self) -> list[ScoredIds]:
        return scored_answers(self._answering.general(self._spec.seed))

    def _drafting(self, model: ReportedModel) -> DraftFigures | None:
        config, seed = self._config.drafting, self._spec.seed
        if config is None or model == seed:
            return None
        prompts = [self._spec.prompts[place] for place in evenly_spaced(len(self._spec.prompts), config.num_prompts)]
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        encoded = [prompt_ids(self._tokenizer, chat, self._spec.template_arguments) for chat in chats]

        def make() -> Any:
            from axolotl_sdft.evaluation.measures.drafting import measure_drafting

            return asdict(measure_drafting(self._load(seed), self._load(model), encoded, config))

        settings = config.model_dump(mode="json", exclude_defaults=True)
        shaped_by = settings | {"prompts": fingerprint(encoded), "device": self.device}
        found = self._value(model, "drafting", shaped_by, make)
        return None if found is None else DraftFigures(**found)

    def _tasks(self, model: ReportedModel) -> dict[str, list[float]]:
        """Return the score of each question, by task. Each task is kept by itself, since one may take an hour."""
        config, trusts = self._config.lm_eval, self._spec.trust_remote_code
        scores: dict[str, list[float]] = {}
        if config is None:
            return scores
        for task in config.tasks:
            alone = config.model_copy(update={"tasks": (task,)})

            def make(alone: LmEvalConfig = alone, name: str = task.task) -> dict[str, Any]:
                scored = task_scores(
                    model,
                    alone,
                    self._config.dtype,
                    self._resampler,
                    trust_remote_code=trusts,
                    placement=self._config.placement,
                )
                return {"questions": list(scored[name].questions), "results": scored[name].results}

            own = task_fingerprint(task, config.include_path)
            shaped_by = alone.model_dump(mode="json", exclude_defaults=True) | ({"files": own} if own else {})
            found = self._value(model, f"task_{slug(task.task)}", shaped_by, make)
            if found is not None:
                scores[task.task] = found["questions"]
                self.task_kinds[task.task] = task_kind(found["results"])
                self.harness[model.name] = joined_results([self.harness.get(model.name, {}), found["results"]])
        return scores

    def _speeds(self, models: Sequence[ReportedModel]) -> dict[str, SpeedFigures]:
        """Return the speed of each model. They are timed in turn, so all together or not at all."""
        config = self._config.speed
        if not config.rounds:
            return {}
        together = {model.name: self.fingerprints[model.name] for model in models}
        settings = config.model_dump(mode="json", exclude_defaults=True)
        shaped_by = settings | {"models": together, "dtype": self._config.number_format, "device": self.device}
        found = self._store.find("speed", shaped_by)
        if found is None:
            failures: list[str] = []
            speeds = measure_speed(
                models,
                config,
                self._config.dtype,
                failures.append,
                trust_remote_code=self._spec.trust_remote_code,
                placement=self._config.placement,
            )
            self.notes += failures
            found = {name: asdict(speed) for name, speed in speeds.items()}
            if not failures:
                self._store.keep("speed", shaped_by, found)
        return {name: SpeedFigures(**speed | {"speeds": tuple(speed["speeds"])}) for name, speed in found.items()}

    def _value(self, model: ReportedModel, measure: str, settings: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """Return what a measure says of a model: kept from before, else measured now and kept; None where it can't be.

        Raises:
            SdftError: The seed model can't be measured.
        """
        own, seed = self.fingerprints[model.name], self.fingerprints[self._spec.seed.name]
        shaped_by = {"model": own, "seed": seed, "dtype": self._config.number_format, "settings": dict(settings)}
        found = self._store.find(measure, shaped_by)
        if found is not None:
            LOG.info("%s: %s: known from before", model.name, _spoken(measure))
            return found
        LOG.info("%s: measuring: %s", model.name, _spoken(measure))
        try:
            value = make()
        except SdftError as err:
            measures = self._not_measured.setdefault((model.name, str(err)), [])
            if not measures:
                self._warn(model, f"{_spoken(measure)}: not measured: {err}", err)
            if _spoken(measure) not in measures:
                measures.append(_spoken(measure))
            return None
        self._store.keep(measure, shaped_by, value)
        return value

    def _warn(self, model: ReportedModel, text: str, err: SdftError) -> None:
        """Say what is wrong with a model; with the seed model, nothing is left to compare."""
        if model == self._spec.seed:
            raise err
        LOG.warning("%s: %s", model.name, text)

    def _note_worthless_sources(self, seed_rows: MeasuredRows) -> None:
        if seed_rows.exact_match and not any(seed_rows.exact_match):
            self.notes.append(
                "exact_match: the seed model answers none of the held-out prompts rightly, so there is no share of it; "
                "choose other recovery_report.exact_match.checks"
            )
        if seed_rows.tool_calls and not any(seed_rows.tool_calls):
            self.notes.append(
                "tool calls: the seed model makes none of the references' calls, so no share of it can be told"
            )

    def _left_out(self) -> Iterator[str]:
        """Say which held-out prompts are not answered, or not judged."""
        exact_match, held_out = self._config.exact_match, self._config.held_out
        unanswerable = list(self._answering.unanswerable.values())
        if unanswerable:
            yield (
                f"held-out prompts: {len(unanswerable)} of {len(self._answering.held_out_targets)} are left out, which "
                f"the seed model can't answer, such as: {unanswerable[0]}"
            )
        if exact_match is None:
            return
        references = [target.reference for target in self._spec.held_out]
        num_empty = sum(not reference.strip() for reference in references)
        if num_empty:
            yield f"exact_match: {num_empty} of {len(references)} held-out rows are left out, whose answer is empty"
        if exact_match.num_samples > held_out.num_samples:
            yield (
                f"recovery_report.exact_match.num_samples is {exact_match.num_samples}, but only "
                f"{held_out.num_samples} held-out rows are read (held_out.num_samples); raise that, too"
            )


@dataclass(frozen=True)
class _BesideSeed:
    """What was measured of a model with the seed model at hand; empty where something was not."""

    held_out: Sequence[RowSums]
    general: Sequence[RowSums]
    judged: JudgedAnswers
    drafting: DraftFigures | None

    def rows(self, tasks: Mapping[str, Sequence[float]]) -> MeasuredRows:
        """Return all that is known row by row, for a comparison with the seed model."""
        return MeasuredRows(self.held_out, self.general, self.judged.right, self.judged.tool_calls, tasks)


def _spoken(measure: str) -> str:
    return measure.replace("_", " ")
