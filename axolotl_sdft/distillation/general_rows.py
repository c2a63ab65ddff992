"""Rows from outside the task: general prompts with the seed model's own answers, trained beside those of the datasets.

What a model is not trained on, it forgets; a few dozen of its own answers to other prompts hold on to much of it. The
prompts are those of the calibration text, none of which the recovery report measures on.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from axolotl_sdft.config import SelfDistillationConfig
from axolotl_sdft.distillation.interfaces import RowLimit
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.spec import DistillationSpec
from axolotl_sdft.pruning.general_answers import calibration_prompts

if TYPE_CHECKING:
    from datasets import Dataset

KEY = "self_distillation.general_rows"
ROW_FORMAT = {"type": "chat_template"}

NO_REFERENCE = "(None: the seed model writes this answer itself.)"
"""Stands where other rows have their original answer. It is never shown to the model, and never trained."""

_CHECKS = ("empty", "truncated", "repetition")
_IF_REJECTED = (
    "nothing stands in their place; where answers are cut off, raise self_distillation.generation.max_new_tokens; "
    "where they run in circles, lower generation.temperature; or remove general_rows"
)
_MIN_NEW_TOKENS = 256  # general answers are longer than those of most tasks, and one that is cut off is left out


def distill_general_rows(
    config: SelfDistillationConfig, *, seed_model: str | Path, revision: str | None = None
) -> "Dataset":
    """Return ``config.general_rows`` general prompts with the seed model's own answers, as rows of ``messages``.

    Answers that are empty, cut off or run in circles are left out with their prompts, and counted in the log. For
    training with the rows of the task: ``concatenate_datasets([distilled, general])``, once both have the same columns.

    Args:
        config: How the answers are generated. ``template``, ``checks``, ``examples`` and ``answer_prefix`` are for the
            task, and do not count here.
        seed_model: Folder or Hub id of the model that answers.
        revision: Its revision on the Hub.

    Raises:
        ConfigError: The seed model has no chat template.
        DatasetError: ``general_rows`` is 0.

    Example:
        >>> config = SelfDistillationConfig(general_rows=48)
        >>> general = distill_general_rows(config, seed_model="HuggingFaceTB/SmolLM2-135M-Instruct")
    """
    from datasets import load_from_disk

    from axolotl_sdft.core.model_folder import seed_dir_of_call

    spec = general_spec(config, seed_dir_of_call(seed_model, revision), str(seed_model))
    return load_from_disk(str(run_distillation(spec)))


def general_spec(
    config: SelfDistillationConfig, seed_dir: Path, seed_name: str, row_limit: RowLimit | None = None
) -> DistillationSpec:
    """Return what is asked of the seed model.

    Raises:
        DatasetError: ``general_rows`` is 0.
    """
    return DistillationSpec(
        general_prompts(config.general_rows),
        answering(config),
        seed_dir,
        ROW_FORMAT,
        seed_name,
        KEY,
        row_limit,
        if_rejected=_IF_REJECTED,
        if_unanswered="To train without such rows, remove general_rows",
    )


def general_prompts(count: int) -> "Dataset":
    """Return so many rows, [count], with a prompt and :data:`NO_REFERENCE`."""
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "messages": [
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": NO_REFERENCE}]
                for prompt in calibration_prompts()[:count]
            ]
        }
    )


def answering(config: SelfDistillationConfig) -> SelfDistillationConfig:
    """Return how general prompts are answered: as the rows of the task, without what is for the task alone."""
    generation = config.generation
    room = {"max_new_tokens": max(generation.max_new_tokens, _MIN_NEW_TOKENS)}
    changes = {
        "template": "unaided",
        "answer_prefix": "",
        "examples": (),
        "checks": _CHECKS,
        "on_reject": "drop",
        "gap_samples": 0,  # there is no answer to compare with
        "generation": generation.model_copy(update=room),
    }
    return config.model_copy(update=changes)
