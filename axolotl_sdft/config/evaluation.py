"""The blocks of evaluation: ``recovery_report`` and ``merge``."""

import os
from typing import Any, Literal

from pydantic import ByteSize, Field, field_validator, model_validator

from axolotl_sdft.config.block import Block, CheckSetting, Size

OPEN_LLM_V1_SHOTS = {
    "arc_challenge": 25,
    "hellaswag": 10,
    "mmlu": 5,
    "truthfulqa_mc2": 0,
    "winogrande": 5,
    "gsm8k": 5,
}
"""The six tasks of the OpenLLM Leaderboard v1, which arXiv 2410.09982 reports, with their numbers of shots."""


class RowsConfig(Block):
    """Rows with a prompt and a reference answer. Of a conversation the last trained answer counts."""

    path: str | None = None
    """Dataset to read: a file, a folder or a Hub id. Unset: ``test_datasets``, else the rows of ``val_set_size``."""

    name: str | None = None
    """Configuration (subset) of the dataset."""

    split: str = "train"
    """Split to read."""

    type: str | dict[str, Any] | None = None
    """Row format, as in ``datasets``. Unset: the first format whose fields are there."""

    num_samples: int = Field(200, ge=1)
    """How many rows are read, spread evenly over the dataset."""

    sequence_len: int = Field(1024, ge=8)
    """Longest prompt with its answer, in tokens. Longer rows are cut at their end."""


class GeneralPromptsConfig(Block):
    """Prompts from outside the task. The seed model's own answers to them show what a trained model has forgotten."""

    path: str | None = None
    """A text file with one prompt per line, or rows of JSON with a ``prompt``. Unset: 64 prompts that come with the
    package, about everyday knowledge, writing, reasoning and code."""

    num_samples: int = Field(64, ge=1)
    """How many prompts are used, spread evenly. With fewer than 50 the report has no headline for everything else."""

    max_new_tokens: int = Field(96, ge=1)
    """Longest answer of each model, in tokens. All models answer, to see which repeat themselves or refuse."""


class ExactMatchConfig(Block):
    """Answers that each model writes to held-out prompts, judged by the checks of the self-distilled dataset."""

    checks: tuple[CheckSetting, ...] = Field(("normalized_match",), min_length=1)
    """What an answer must pass to count as right, such as ``numeric_answer`` or ``function_call``."""

    num_samples: int = Field(50, ge=1)
    """How many held-out rows are answered, spread evenly. Fewer than 50 give no headline."""

    max_new_tokens: int = Field(256, ge=1)
    """Longest answer, in tokens."""

    pass_at: tuple[int, ...] = ()
    """The k of pass@k, such as ``[1, 5]``: the chance that one of k sampled answers is right (arXiv 2107.03374)."""

    num_answers: int = Field(10, ge=1)
    """Answers sampled for each prompt where ``pass_at`` is set."""

    temperature: float = Field(0.8, gt=0, le=5.0)
    """Temperature of these answers."""

    @field_validator("pass_at")
    @classmethod
    def _pass_at_counts_answers(cls, pass_at: tuple[int, ...]) -> tuple[int, ...]:
        if any(k < 1 for k in pass_at):
            raise ValueError(f"pass_at is {list(pass_at)}; name numbers of answers from 1 on, such as [1, 5]")
        return tuple(sorted(set(pass_at)))

    @model_validator(mode="after")
    def _enough_answers_are_sampled(self) -> "ExactMatchConfig":
        if self.pass_at and max(self.pass_at) > self.num_answers:
            raise ValueError(
                f"pass_at names {max(self.pass_at)}, but num_answers is {self.num_answers}; raise num_answers to at "
                f"least {max(self.pass_at)}"
            )
        return self


class TaskConfig(Block):
    """One task of lm-evaluation-harness."""

    task: str
    """Its name, or that of a group of tasks."""

    num_fewshot: int | None = Field(None, ge=0)
    """How many solved examples each question is preceded by. Unset: as the task says."""

    metric: str | None = None
    """Which of its metrics counts, such as ``acc_norm``. Unset: the first of ``acc_norm``, ``exact_match`` and ``acc``
    that it has."""


class LmEvalConfig(Block):
    """Tasks of lm-evaluation-harness. Present: they are run, which takes the data of the tasks, and hours."""

    tasks: tuple[TaskConfig, ...] = Field(
        tuple(TaskConfig(task=task, num_fewshot=shots) for task, shots in OPEN_LLM_V1_SHOTS.items()), min_length=1
    )
    """Names of tasks, or ``{task: gsm8k, num_fewshot: 5, metric: exact_match}``. Unset: the six of the OpenLLM
    Leaderboard v1 that arXiv 2410.09982 reports, with their numbers of shots."""

    include_path: str | None = None
    """Folder with task files of your own."""

    limit: int | None = Field(None, ge=1)
    """Questions of each task. Unset: all."""

    batch_size: int | str = "auto"
    """As lm-evaluation-harness takes it: a number, or ``auto``."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _a_name_is_a_task(cls, tasks: Any) -> Any:
        if not isinstance(tasks, list | tuple):
            return tasks
        return tuple(
            {"task": task, "num_fewshot": OPEN_LLM_V1_SHOTS.get(task)} if isinstance(task, str) else task
            for task in tasks
        )


class SpeedConfig(Block):
    """How fast each model generates, and what memory that takes."""

    prompt_tokens: int = Field(128, ge=1)
    """Tokens before the first new one."""

    new_tokens: int = Field(64, ge=2)
    """Tokens that are generated."""

    rounds: int = Field(3, ge=0)
    """How often each model is timed, in turn with the others; medians count. 0 leaves it out."""


class DraftingConfig(Block):
    """The smaller models as drafts of the seed model in speculative decoding (arXiv 2410.09982, its second
    extension)."""

    num_prompts: int = Field(16, ge=1)
    """General prompts that are answered with and without a draft."""

    max_new_tokens: int = Field(96, ge=2)
    """Longest answer, in tokens."""

    num_draft_tokens: int = Field(5, ge=1)
    """Tokens that the draft proposes before the seed model checks them."""


class RecoveryReportConfig(Block):
    """What ``axolotl recovery-report`` measures: seed, pruned and trained models side by side."""

    models: dict[str, str] = Field(default_factory=dict)
    """Further models by name, such as ``{original rows: ./outputs/plain}``: folders of checkpoints or LoRA adapters.
    Seed, pruned and trained model of this configuration are in the report anyway, if they are there."""

    held_out: RowsConfig = RowsConfig()
    """Rows of the task that no model was trained on."""

    general_prompts: GeneralPromptsConfig = GeneralPromptsConfig()
    """Prompts from outside the task."""

    exact_match: ExactMatchConfig | None = None
    """Present: each model answers held-out prompts, and checks say how many answers are right."""

    lm_eval: LmEvalConfig | None = None
    """Present: tasks of lm-evaluation-harness are run (``pip install "axolotl-sdft[lm-eval]"``)."""

    speed: SpeedConfig = SpeedConfig()
    """How fast each model generates, and what memory that takes."""

    drafting: DraftingConfig | None = None
    """Present: each smaller model is tried as draft of the seed model in speculative decoding."""

    prompts: tuple[str, ...] = Field((), max_length=5)
    """Up to five prompts of your own, whose answers by all models the report shows side by side. Some of the general
    prompts are shown anyway."""

    bootstrap_samples: int = Field(1000, ge=0)
    """Resamples of the rows behind each confidence interval of 95 %; 0 leaves the intervals out."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of all models while they are measured. ``auto``: the checkpoint's on an accelerator, float32 on a
    CPU."""

    load_in_4bit: bool = False
    """Measure all models in 4 bits (bitsandbytes, nf4), where the seed model and one other do not fit side by side."""

    device_map: str | None = None
    """Spreads each model over all GPUs (``auto``), or over a GPU and the memory of the CPU. Needs accelerate."""

    chat_template_kwargs: dict[str, Any] | None = None
    """Further arguments of the seed model's chat template, such as ``{enable_thinking: false}``, for all models alike.
    Unset: as ``self_distillation.generation`` says."""

    output_dir: str | None = None
    """Folder of the report. Unset: ``recovery_report`` in ``output_dir``."""

    @property
    def placement(self) -> dict[str, Any]:
        """How each model is held in memory, beside its dtype."""
        return {"load_in_4bit": self.load_in_4bit, "device_map": self.device_map}

    @property
    def number_format(self) -> str:
        """What figures depend on: the dtype, and whether the weights were quantized."""
        return f"{self.dtype}, 4 bits" if self.load_in_4bit else self.dtype

    @model_validator(mode="after")
    def _models_have_names_of_their_own(self) -> "RecoveryReportConfig":
        taken = sorted({"seed", "pruned", "trained"} & self.models.keys())
        if taken:
            raise ValueError(f"models names one {taken[0]!r}, which the report calls one of its own; take another name")
        return self

    def __hash__(self) -> int:  # models is a mapping, which pydantic's own hash of a frozen model can't take
        return hash(self.model_dump_json())


class MergeConfig(Block):
    """Two models of the same shape become one, by spherical linear interpolation of their weights."""

    models: tuple[str, ...] = ("base_model", "output_dir")
    """The two: folders of checkpoints or of LoRA adapters, Hub ids, or the words ``base_model`` (what training starts
    from: the pruned model where layers are pruned) and ``output_dir`` (what it ends with).
    Settings and tokenizer come from the first."""

    method: Literal["slerp", "linear"] = "slerp"
    """``slerp`` keeps the length of the weights on the way from one model to the other; ``linear`` averages them."""

    ratio: float = Field(0.5, ge=0.0, le=1.0)
    """How far to go from the first model, 0, to the second, 1."""

    sweep: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Ratios that ``axolotl sdft-merge --sweep`` tries and measures as ``recovery_report`` says. 0 and 1 are the
    models themselves; the others are written beside the merged model's folder, to one whose name ends in
    ``_sweep``."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the merged weights. ``auto``: that of the first model. Computed in float32 in any case."""

    max_shard_size: Size = ByteSize(5 * 10**9)
    """Largest weight file of the merged model, such as ``500MB`` or ``5GB``."""

    output_dir: str | None = None
    """Folder of the merged model. Unset: ``sdft_merged`` in ``output_dir``."""

    @field_validator("models")
    @classmethod
    def _two_models_are_merged(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        if len(models) != 2:
            raise ValueError(f"models names {len(models)}, but two are merged at a time; merge the result with a third")
        if os.path.normpath(models[0]) == os.path.normpath(models[1]):  # ./outputs/a is outputs/a
            raise ValueError(f"models is {list(models)}, which is one model twice; name two models")
        return models

    @field_validator("sweep")
    @classmethod
    def _sweep_holds_ratios(cls, sweep: tuple[float, ...]) -> tuple[float, ...]:
        wrong = [ratio for ratio in sweep if not 0.0 <= ratio <= 1.0]
        if wrong or not sweep:
            raise ValueError(f"sweep is {list(sweep)}; name ratios from 0 to 1, such as [0.25, 0.5, 0.75]")
        return tuple(sorted(set(sweep)))
