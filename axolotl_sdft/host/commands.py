"""One stage alone, for the command line: each function yields the lines that a person reads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from axolotl_sdft.distillation.build import read_summary
from axolotl_sdft.distillation.texts import shortened
from axolotl_sdft.errors import ConfigError
from axolotl_sdft.host.blocks import Blocks, read_blocks
from axolotl_sdft.host.rules import check_rules
from axolotl_sdft.host.stages import distillation_tasks, pruning_task, seed_dir_of
from axolotl_sdft.recovery.summary import Artifacts

_SHOWN_CHARS = 600


def prune_alone(cfg: Any, dry_run: bool) -> Iterator[str]:
    """Prune the base model; yield the plan and the folder.

    Raises:
        ConfigError: The configuration has no ``layer_pruning`` block.
    """
    config = _checked_blocks(cfg).layer_pruning
    if config is None:
        raise ConfigError("there is no layer_pruning block; add one, such as layer_pruning: {num_layers: 2}")
    task = pruning_task(cfg, config)
    if dry_run:
        plan = task.plan()
        yield f"{len(plan.drop_layers)} of {plan.num_layers} layers would go: {_listed(plan.drop_layers)}"
        if plan.cost is not None:
            yield f"{plan.metric}: {plan.cost:.4f}"
        return
    yield f"pruned checkpoint: {task.run()}"


def distill_alone(cfg: Any, num_previews: int | None) -> Iterator[str]:
    """Rewrite the datasets, or show some rows; yield counts and folders.

    Raises:
        ConfigError: The configuration has no ``self_distillation`` block.
    """
    from axolotl_sdft.distillation.preview import preview

    config = _checked_blocks(cfg).self_distillation
    if config is None:
        raise ConfigError("there is no self_distillation block; an empty one will do: self_distillation: {}")
    for _, task in distillation_tasks(cfg, config):
        if num_previews is None:
            folder = task.run()
            summary = read_summary(folder)
            yield f"{task.where}: {summary['turns_distilled']} of {summary['turns']} answers rewritten: {folder}"
            continue
        for shown in preview(task, num_previews):
            yield f"--- {task.where}, row {shown.row}: {shown.verdict}"
            yield f"prompt:    {shortened(shown.target.instruction, _SHOWN_CHARS)}"
            yield f"reference: {shortened(shown.target.reference, _SHOWN_CHARS)}"
            yield f"rewritten: {shortened(shown.answer.text, _SHOWN_CHARS)}"


def find_artifacts(cfg: Any) -> Artifacts:
    """Return what the stages of a configuration have made so far; makes nothing."""
    blocks = _checked_blocks(cfg)
    pruned = pruning_task(cfg, blocks.layer_pruning) if blocks.layer_pruning is not None else None
    tasks = distillation_tasks(cfg, blocks.self_distillation) if blocks.self_distillation is not None else []
    return Artifacts(
        seed_dir=seed_dir_of(cfg),
        pruned_dir=pruned.output_dir if pruned is not None and pruned.is_done else None,
        distilled_dirs=[task.dataset_dir for _, task in tasks if task.is_done],
        output_dir=Path(cfg.get("output_dir") or "./model-out"),
    )


def _checked_blocks(cfg: Any) -> Blocks:
    blocks = read_blocks(cfg)
    check_rules(cfg, blocks, other_trainers={})
    return blocks


def _listed(layers: tuple[int, ...]) -> str:
    return ", ".join(str(layer) for layer in layers)
