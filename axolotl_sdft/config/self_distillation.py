"""The settings of the self-distilled dataset."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from axolotl_sdft.config.backends import Generation, TransformersGeneration
from axolotl_sdft.config.block import Block, CheckSetting, TemplateSetting, check_name
from axolotl_sdft.core.artifacts import DEFAULT_ROOT


class ExampleConfig(Block):
    """One worked example of a rewritten answer, shown to the seed model before each request."""

    instruction: str = Field(min_length=1)
    """What a user might ask."""

    reference: str = Field(min_length=1)
    """The original answer to it."""

    answer: str = Field(min_length=1)
    """How the seed model should rewrite it."""


class SelfDistillationConfig(Block):
    """How the seed model rewrites the answers of the training set in its own words."""

    template: TemplateSetting | tuple[TemplateSetting, ...] = "reference"
    """How the seed model is asked: ``reference`` (the same facts in other words), ``notes`` (more freely, for models
    that can be trusted with facts), ``mathematics`` (a worked solution), ``function_calls``, ``code``, ``self_data``
    (an answer of the model's own, for pruned models), ``unaided`` (the question alone, for self-training), what a
    plugin registers, or a Jinja text of your own that uses ``{{ instruction }}`` and ``{{ reference }}``; from Python
    also a function. A list is tried in turn, each with ``max_attempts``: what none of its answers passes is asked
    with the next one, such as ``[unaided, reference]``."""

    answer_prefix: str = ""
    """How each rewritten answer begins, such as ``"Let's think step by step.\\n"``: the seed model is given this
    beginning and goes on behind it. A part of the answer that is checked and trained. Servers must be able to go on in
    a turn (vLLM and SGLang are); one that can't is refused."""

    examples: tuple[ExampleConfig, ...] = ()
    """Worked examples that come before each request as earlier turns of the chat, in the form of the same template:
    each has an ``instruction``, a ``reference`` and an ``answer``."""

    checks: tuple[CheckSetting, ...] = ("empty", "truncated", "leak", "repetition", "refusal")
    """What a rewritten answer must pass, in this order: ``empty``, ``truncated``, ``leak``, ``repetition``,
    ``refusal``, ``language``, ``length_ratio``, ``numeric_answer``, ``arithmetic``, ``function_call``, ``code``,
    ``exact_match``, ``normalized_match``, or what a plugin registers. A check with options is written as
    ``length_ratio: {min: 0.5, max: 2.0}``; from Python it may be a function, too."""

    max_attempts: int = Field(4, ge=1, le=128)
    """How many answers the seed model may be asked for until one passes the checks. All but the first are sampled, even
    where ``generation.temperature`` is 0. 1 asks once, as the papers do."""

    selection: Literal["first", "max_logprob"] = "first"
    """Which answer is taken: the ``first`` that passes the checks; or, with ``max_logprob``, all are asked for, and of
    those that pass the one with the highest mean log-probability per token under the seed model is taken."""

    min_attempts: int | None = Field(None, ge=2, le=128)
    """With ``selection: max_logprob``: how many answers are asked for in any case; further ones, up to
    ``max_attempts``, only where none of them passes. Unset: all ``max_attempts``."""

    on_reject: Literal["original", "drop"] = "original"
    """What becomes of a row none of whose answers passes: it keeps its original answer, or is left out."""

    general_rows: int = Field(0, ge=0, le=128)
    """Adds so many rows to those of the datasets: prompts from outside the task, which come with the package, with the
    seed model's own answers. They hold on to what it says elsewhere. Answers that are cut off or run in circles are
    left out. Only at the top level; a dataset of its own kind, ``type: chat_template``."""

    generation: Generation = TransformersGeneration()
    """How the seed model writes its answers."""

    gap_samples: int = Field(256, ge=0)
    """Rows, spread evenly, on which the distribution gap is measured before and after; 0 leaves it out."""

    output_dir: str | None = None
    """Folder that holds the distilled datasets and their journals. Unset: ``sdft_prepared``."""

    @model_validator(mode="after")
    def _templates_are_names_or_show_the_reference(self) -> "SelfDistillationConfig":
        if not self.templates:
            raise ValueError("template is an empty list; name one, such as reference")
        if len(set(self.templates)) < len(self.templates):
            raise ValueError(f"template names one twice: {list(self.templates)}; raise max_attempts to ask it again")
        for template in self.templates:
            if isinstance(template, str) and "{" in template and "reference" not in template:
                raise ValueError(
                    "template is a Jinja text without {{ reference }}; the seed model would never see the answer"
                )
        return self

    @property
    def templates(self) -> tuple[Any, ...]:
        """The templates, in the order in which they are tried."""
        return self.template if isinstance(self.template, tuple) else (self.template,)

    @property
    def root(self) -> Path:
        """The folder of ``output_dir``, written out in full."""
        return Path(self.output_dir or DEFAULT_ROOT).expanduser().absolute()

    @field_validator("answer_prefix")
    @classmethod
    def _answer_prefix_ends_where_a_word_may_begin(cls, prefix: str) -> str:
        if prefix and not prefix.strip():
            raise ValueError(f"answer_prefix is {prefix!r}, without a word; give one, or remove the key")
        if prefix.endswith((" ", "\t")):
            raise ValueError(
                f"answer_prefix is {prefix!r}, with a space at its end, which belongs to the next word's token; end it "
                "with the last word, a mark or a line break"
            )
        return prefix

    @field_validator("checks", mode="before")
    @classmethod
    def _a_check_without_options_is_its_name(cls, checks: Any) -> Any:
        if not isinstance(checks, list | tuple):
            return checks
        return tuple(next(iter(check)) if _is_name_without_options(check) else check for check in checks)

    @model_validator(mode="after")
    def _max_logprob_has_answers_to_compare(self) -> "SelfDistillationConfig":
        if self.selection == "first":
            if self.min_attempts is not None:
                raise ValueError(
                    f"min_attempts is {self.min_attempts}, but selection is first, which asks again only after a "
                    "rejection; set selection: max_logprob, or remove min_attempts"
                )
            return self
        if self.max_attempts == 1:
            raise ValueError(
                "selection is max_logprob, but max_attempts is 1; set max_attempts above 1, or remove selection"
            )
        if self.generation.temperature == 0.0:  # what is sampled is rarely more likely than what was taken greedily
            raise ValueError(
                "selection is max_logprob, but generation.temperature is 0.0, whose first answer takes the most likely "
                "token each time; set generation.temperature, such as 1.0, or selection: first"
            )
        if self.min_attempts is not None and self.min_attempts > self.max_attempts:
            raise ValueError(
                f"min_attempts is {self.min_attempts}, above max_attempts {self.max_attempts}; lower min_attempts, or "
                "raise max_attempts"
            )
        return self

    @model_validator(mode="after")
    def _checks_are_distinct(self) -> "SelfDistillationConfig":
        for check in self.checks:
            if isinstance(check, dict) and len(check) != 1:
                raise ValueError(f"checks holds {check}, not one name with its options; give each its own '- '")
        names = [check_name(check) for check in self.checks]
        if len(set(names)) != len(names):
            raise ValueError(f"checks names one twice: {names}")
        return self

    def __hash__(self) -> int:  # options are mappings, which pydantic's own hash of a frozen model can't take
        return hash(self.model_dump_json())


def _is_name_without_options(check: Any) -> bool:
    """Say whether a check is written with a colon and nothing behind it, as in ``- leak:``."""
    return isinstance(check, dict) and len(check) == 1 and next(iter(check.values())) in (None, {})
