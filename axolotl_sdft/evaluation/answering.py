"""Lets the models of a report answer prompts, keeps what they write, judges it, and puts it side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from axolotl_sdft.config import ExactMatchConfig
from axolotl_sdft.core.artifacts import fingerprint
from axolotl_sdft.core.texts import evenly_spaced
from axolotl_sdft.evaluation.figures import SideBySide
from axolotl_sdft.evaluation.measures.answer_accuracy import (
    Written,
    answered_rightly,
    right_answer_checks,
    sampled_answers,
    written_answers,
)
from axolotl_sdft.evaluation.measures.own_answers import (
    JudgedAnswers,
    general_target,
    judged_calls,
    judged_form,
    makes_calls,
    pass_rates,
)
from axolotl_sdft.evaluation.spec import RecoverySpec, ReportedModel
from axolotl_sdft.inference.interfaces import Answer, Target

_NUM_HELD_OUT_SHOWN = 2

Value = Callable[[ReportedModel, str, Mapping[str, Any], Callable[[], Any]], Any]
"""Gives what a measure says of a model: kept from before, else made now; None where that can't be."""


class Answering:
    """The answers that the models of one report write themselves.

    Args:
        spec: What is asked.
        tokenizer: Gives the seed model's, whose chat template wraps all prompts.
        load: Gives a model and its tokenizer.
        value: Keeps the answers.
    """

    def __init__(
        self,
        spec: RecoverySpec,
        tokenizer: Callable[[], Any],
        load: Callable[[ReportedModel], tuple[Any, Any]],
        value: Value,
    ) -> None:
        self._spec, self._config = spec, spec.config
        self._tokenizer, self._load, self._value = tokenizer, load, value
        self._general_targets = [general_target(prompt) for prompt in spec.prompts]
        self._your_targets = [general_target(prompt) for prompt in spec.config.prompts]

    @cached_property
    def held_out_targets(self) -> list[Target]:
        """The held-out prompts that the models answer: those of ``exact_match``, else those whose reference calls."""
        if self._config.exact_match is not None:
            return self._spec.exact_match_targets
        calling = [target for target in self._spec.held_out if makes_calls(target.reference)]
        return [calling[place] for place in evenly_spaced(len(calling), ExactMatchConfig().num_samples)]

    @cached_property
    def unanswerable(self) -> dict[int, str]:
        """Why the seed model can't answer a held-out prompt, by its place. No model is judged by these."""
        written = self._held_out(self._spec.seed)
        return {place: answer.error for place, answer in enumerate(written) if answer.error is not None}

    def general(self, model: ReportedModel) -> list[Written]:
        """Return the greedy answers to the general prompts; empty where the model can't be asked."""
        return self._written(model, "general_answers", self._general_targets, self._general_length)

    def judged(self, model: ReportedModel) -> JudgedAnswers:
        """Return what is said of each answer of a model."""
        general = [written.answer for written in self.general(model)] if self._spec.has_answers else []
        if self._spec.has_answers:
            self._yours(model)  # while the model is loaded; shown later
        held_out = [written.answer for written in self._answered(self._held_out(model))]
        forms = {}
        refusals: list[bool] = []
        if general:
            forms["general"], refusals = judged_form(general, self._general_targets)
        if held_out:
            forms["held_out"], _ = judged_form(held_out, self._answerable)
        return JudgedAnswers(
            right=self._right(held_out),
            tool_calls=judged_calls(held_out, self._answerable) if held_out else [],
            pass_at=self._pass_at(model),
            repetition={prompts: repeats for prompts, repeats in forms.items() if repeats},
            refusals=refusals,
        )

    def side_by_side(self, models: Sequence[ReportedModel]) -> tuple[SideBySide, ...]:
        """Return what all models answer to the user's prompts, to some general ones and to some held-out ones."""
        if not self._spec.has_answers:
            return ()
        yours, general, held_out = (
            {model.name: answers(model) for model in models} for answers in (self._yours, self.general, self._held_out)
        )
        shown = range(len(self._your_targets)), self._spec.shown_prompts
        last = evenly_spaced(len(self.held_out_targets), _NUM_HELD_OUT_SHOWN)
        return (
            *(_beside("yours", self._your_targets[place], yours, place) for place in shown[0]),
            *(_beside("general", self._general_targets[place], general, place) for place in shown[1]),
            *(_beside("held out", self.held_out_targets[place], held_out, place) for place in last),
        )

    @property
    def _general_length(self) -> int:
        return self._config.general_prompts.max_new_tokens

    @property
    def _answers_config(self) -> ExactMatchConfig:
        return self._config.exact_match or ExactMatchConfig()

    def _yours(self, model: ReportedModel) -> list[Written]:
        return self._written(model, "your_answers", self._your_targets, self._general_length)

    def _held_out(self, model: ReportedModel) -> list[Written]:
        length = self._answers_config.max_new_tokens
        return self._written(model, "held_out_answers", self.held_out_targets, length)

    @property
    def _answerable(self) -> list[Target]:
        return self._answered(self.held_out_targets)

    def _answered(self, of_prompts: Sequence[Any]) -> list[Any]:
        """Return what there is of the held-out prompts that can be answered."""
        return [one for place, one in enumerate(of_prompts) if place not in self.unanswerable]

    def _right(self, answers: Sequence[Answer]) -> list[bool]:
        if self._config.exact_match is None or not answers:
            return []
        return answered_rightly(answers, self._answerable, right_answer_checks(self._config.exact_match))

    def _pass_at(self, model: ReportedModel) -> dict[int, Sequence[float]]:
        config = self._config.exact_match
        if config is None or not config.pass_at:
            return {}
        targets = self._answerable

        def make() -> list[Any]:
            chats = [target.context for target in targets]
            arguments = self._spec.template_arguments
            sampled = sampled_answers(self._load(model)[0], self._tokenizer(), chats, config, arguments)
            return [[asdict(answer) for answer in answers] for answers in sampled]

        settings = {"temperature": config.temperature, "num_answers": config.num_answers}
        found = self._value(model, "sampled_answers", settings | self._shaped_by(targets, config.max_new_tokens), make)
        answers = [[Answer(**answer) for answer in answers] for answers in found or ()]
        return pass_rates(answers, targets, right_answer_checks(config), config.pass_at) if answers else {}

    def _written(
        self, model: ReportedModel, measure: str, targets: Sequence[Target], max_new_tokens: int
    ) -> list[Written]:
        if not targets:
            return []

        def make() -> list[Any]:
            chats = [target.context for target in targets]
            description, arguments = f"answers of {model.name}", self._spec.template_arguments
            loaded, _ = self._load(model)
            written = written_answers(loaded, self._tokenizer(), chats, max_new_tokens, description, arguments)
            return [asdict(answer) for answer in written]

        found = self._value(model, measure, self._shaped_by(targets, max_new_tokens), make)
        return [Written(**answer) for answer in found or ()]

    def _shaped_by(self, targets: Sequence[Target], max_new_tokens: int) -> dict[str, Any]:
        return {
            "prompts": fingerprint([list(target.context) for target in targets]),
            "max_new_tokens": max_new_tokens,
            "template_arguments": self._spec.template_identity,
        }


def _beside(kind: str, target: Target, answers: Mapping[str, Sequence[Written]], place: int) -> SideBySide:
    """Return the answers of all models to one prompt; of a model that has none, none."""
    texts = {name: written[place].text for name, written in answers.items() if written and written[place].error is None}
    return SideBySide(target.instruction, kind, texts, target.reference or None)
