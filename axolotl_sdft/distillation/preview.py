"""Shows what rewriting would do to a few rows, before hours are spent on all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from axolotl_sdft.distillation.checks import first_rejection
from axolotl_sdft.distillation.interfaces import Answer, Prompt, Target
from axolotl_sdft.sampling import evenly_spaced

if TYPE_CHECKING:
    from axolotl_sdft.distillation.transform import DistillationTask


@dataclass(frozen=True)
class PreviewedAnswer:
    """One answer, before and after."""

    row: int
    target: Target
    answer: Answer
    verdict: str
    """``accepted``, or the check that rejects it and why."""


def preview(task: "DistillationTask", num_rows: int) -> Iterator[PreviewedAnswer]:
    """Yield the first trained answer of up to ``num_rows`` rows, spread over the dataset; nothing is written."""
    rows = {index: task.dataset[index] for index in evenly_spaced(len(task.dataset), num_rows)}
    targets = {index: task.row_format.target(row, 0) for index, row in rows.items() if task.row_format.num_targets(row)}
    prompts = [Prompt((index, 0), tuple(task.template(target))) for index, target in targets.items()]
    backend = task.backend_factory(task.seed_dir, task.config.generation)
    backend.check()
    try:
        for batch, answers in backend.generate(backend.batches(prompts)):
            for prompt, answer in zip(batch, answers, strict=True):
                target = targets[prompt.key[0]]
                rejection = first_rejection(answer, target, task.checks)
                verdict = "accepted" if rejection is None else f"rejected by {rejection[0]}: {rejection[1]}"
                yield PreviewedAnswer(prompt.key[0], target, answer, verdict)
    finally:
        backend.close()
