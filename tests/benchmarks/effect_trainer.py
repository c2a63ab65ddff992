"""Makes trainers that spend the same compute on the same rows, plainly or with DynSDPB."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from axolotl_sdft import DynSDPBConfig, DynSDPBTrainer


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a run. Every row goes through the model ``passes`` times, whichever way it is trained."""

    dynsdpb: dict[str, Any] | None
    """Settings of DynSDPB; None trains plainly."""
    batch_rows: int
    """New rows of a step."""
    num_rows: int
    passes: int
    learning_rate: float
    seed: int
    """Draws whatever is drawn."""

    @property
    def epochs(self) -> int:
        """How often the rows are gone through: an epoch of DynSDPB makes two passes."""
        return self.passes if self.dynsdpb is None else self.passes // 2

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return -(-self.num_rows // self.batch_rows) * self.epochs

    def settings(self) -> dict[str, Any]:
        """Return all of it, by which a finished run is found again."""
        return asdict(self)


def trainer_for(model: Any, rows: Sequence[Any], recipe: Recipe, collator: Any = None, **arguments: Any) -> Trainer:
    """Return a trainer that follows the recipe: over a tenth of the steps the rate warms up, then it falls to 0.

    Args:
        model: Is trained.
        rows: What the model takes, one row each, with labels.
        recipe: How.
        collator: Makes batches; the default one needs rows of one length.
        **arguments: Further ones for ``TrainingArguments``.
    """
    tenth = max(1, recipe.steps // 10)
    args = TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=recipe.batch_rows,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        seed=recipe.seed,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **{"warmup_steps": tenth, "logging_steps": tenth} | arguments,
    )
    extra = {} if recipe.dynsdpb is None else {"dynsdpb": DynSDPBConfig(**recipe.dynsdpb)}
    kind = Trainer if recipe.dynsdpb is None else DynSDPBTrainer
    return kind(model=model, args=args, train_dataset=rows, data_collator=collator, **extra)
