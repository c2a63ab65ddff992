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
    r_drop: float | None = None
    """Weight of the divergence in R-Drop, which then is how rows are trained."""

    @property
    def epochs(self) -> int:
        """How often the rows are gone through: an epoch of DynSDPB or R-Drop makes two passes."""
        return self.passes if self.dynsdpb is None and self.r_drop is None else self.passes // 2

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
    extra: dict[str, Any] = {}
    kind: type[Trainer] = Trainer
    if recipe.r_drop is not None:
        kind, extra = RDropTrainer, {"weight": recipe.r_drop}
    elif recipe.dynsdpb is not None:
        kind, extra = DynSDPBTrainer, {"dynsdpb": DynSDPBConfig(**recipe.dynsdpb)}
    return kind(model=model, args=args, train_dataset=rows, data_collator=collator, **extra)


class RDropTrainer(Trainer):
    """Has each row predicted twice under dropout, and keeps the two predictions together (R-Drop, arXiv 2106.14448).

    The loss is the mean cross-entropy of the two and ``weight`` times the mean of KL(first || second) and KL(second ||
    first), over the label tokens of a causal model or the rows of a classifier.
    """

    def __init__(self, *args: Any, weight: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._weight = weight

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a batch, which goes through the model twice in one pass."""
        doubled = {name: torch.cat([values, values]) for name, values in inputs.items()}
        outputs = model(**doubled)
        logits = outputs.logits
        if logits.dim() == 3:  # [rows, tokens, vocabulary]; both halves have the same label tokens
            logits = logits[:, :-1][doubled["labels"][:, 1:] != -100]
        first, second = logits.log_softmax(-1).chunk(2)
        apart = ((first.exp() - second.exp()) * (first - second)).sum(-1).mean() / 2
        return outputs.loss + self._weight * apart
