"""What DynSDPB can't work with, told before it would train something else than what was asked for.

What the trainer or the model's adapter tells is refused before the first step, what only a pass shows at that step: a
term of the loss that no parameter can learn from changes nothing, while all that is logged looks well.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from axolotl_sdft.core.errors import ConfigError

_INTO_THE_ROW = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "CPT")
"""PEFT's ways of prompt tuning that put virtual tokens before those of the row; others put them into the cache."""


@contextmanager
def errors_of(block: str) -> Iterator[None]:
    """Let errors that speak of ``dynsdpb`` name another block while this is open, and that block's trainers.

    Raises:
        ConfigError: The same as inside, with the names of this block.
    """
    try:
        yield
    except ConfigError as err:
        title = "".join(part.capitalize() for part in block.split("_")) if block != "dynsdpb" else "DynSDPB"
        raise type(err)(str(err).replace("dynsdpb", block).replace("DynSDPB", title)) from err


def refuse_prompt_tuning(model: Any) -> None:
    """Refuse an adapter that lengthens each row by virtual tokens, which have no labels.

    Raises:
        ConfigError: The model has such an adapter; others can be used instead.
    """
    adapter = getattr(model, "active_peft_config", None)
    kind = getattr(adapter, "peft_type", "")
    fault = prompt_tuning_fault("peft_type", str(getattr(kind, "value", kind)))
    if fault:
        raise ConfigError(fault)


def prompt_tuning_fault(key: str, kind: str, block: str = "dynsdpb") -> str | None:
    """Return why this kind of adapter can't be trained with a block, and the way out; None where it can."""
    if re.sub(r"\W", "_", kind).upper() not in _INTO_THE_ROW:
        return None
    return (
        f"{block}: {key} is {kind}, which puts virtual tokens before each row, so its predictions no longer lie where "
        f"its labels do; use LoRA or PREFIX_TUNING, or train without the {block} block"
    )


def refuse_parallelism(args: Any, accelerator: Any) -> None:
    """Refuse what gives a process other rows, or other parts of them, than the trainer sees.

    Raises:
        ConfigError: Several GPUs hang on one process, or a sequence is spread over ranks.
    """
    if args.n_gpu > 1:
        raise ConfigError(
            f"dynsdpb: one process drives {args.n_gpu} GPUs, which cuts each batch apart behind the trainer; "
            "start one process per GPU with torchrun or accelerate launch; or let it see one GPU, in a notebook by "
            "os.environ['CUDA_VISIBLE_DEVICES'] = '0' before torch is imported"
        )
    parallelism = getattr(accelerator, "parallelism_config", None)
    for name in ("cp_size", "sp_size"):
        if (getattr(parallelism, name, 1) or 1) > 1:
            raise ConfigError(
                f"dynsdpb: {name} is {getattr(parallelism, name)}, so each rank holds only a part of every "
                "sequence and can't tell which label its logits belong to; set it to 1"
            )


def refuse_vain_distillation(trainer: Any, parent: type, loss: Tensor, prediction: Tensor | None, alpha: float) -> None:
    """Refuse a prediction whose gradient reaches nothing that the loss trains.

    Args:
        trainer: Named in the error.
        parent: The class whose ``compute_loss`` gave both; its package is named, too.
        loss: The parent's loss.
        prediction: Logits or hidden states that the distillation is computed from.
        alpha: Its influence.

    Raises:
        ConfigError: The loss leads to trained parameters, and the prediction to none of them.
    """
    trained = _leaves(loss)
    if not trained or (prediction is not None and trained & _leaves(prediction)):
        return
    raise ConfigError(
        f"dynsdpb.alpha is {alpha}, but the distillation would have no gradient: {_described(trainer, parent)} shows "
        "predictions of another pass than the one that its loss trains (a second pass under torch.no_grad, or one of "
        "another model). Let compute_loss call the model that it is given, once, with gradients, and return what that "
        "gave; or use DynSDPBTrainer or DynSDPBSFTTrainer, another version, or alpha: 0"
    )


def refuse_bypassed_loss(trainer: type) -> None:
    """Refuse a trainer whose own ``compute_loss`` takes the place of the one that distils.

    Raises:
        ConfigError: Always; the message names the class that has it.
    """
    owner = next(kind for kind in trainer.__mro__ if "compute_loss" in vars(kind))
    if owner.__module__.startswith("axolotl_sdft."):
        raise ConfigError(
            "dynsdpb: the model stayed in evaluation mode while it was trained, so nothing is distilled; let its "
            "train() switch the mode, and set dropout to 0 where there is to be none"
        )
    raise ConfigError(
        f"dynsdpb: compute_loss of {owner.__name__} does not call super().compute_loss, so nothing is distilled; "
        f"let it add to what that returns, pass the trainer a compute_loss_func instead, or put {owner.__name__} "
        "behind the mixin: class MyTrainer(DynSDPBMixin, MyTrainerWithItsLoss)"
    )


def parent_of(trainer: Any, mixin: type) -> type:
    """Return the class that computes the loss once ``mixin``, and others of this package below it, are left aside."""
    after = type(trainer).__mro__[type(trainer).__mro__.index(mixin) + 1 :]
    kinds = [kind for kind in after if "compute_loss" in vars(kind)]
    return next((kind for kind in kinds if not kind.__module__.startswith("axolotl_sdft.")), kinds[0])


def _described(trainer: Any, parent: type) -> str:
    packages = dict.fromkeys([parent.__module__.partition(".")[0], "transformers", "torch"])
    versions = ", ".join(f"{name} {found}" for name in packages if (found := _version(name)))
    return f"{type(trainer).__name__} (compute_loss of {parent.__module__}.{parent.__qualname__}; {versions})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _leaves(value: Tensor) -> set[int]:
    """Return what the gradient of a tensor would be added to, as identities; parameters of the model among them.

    Sharding and checkpointing hide which of these are parameters, but not whether two tensors share any.
    """
    if value.grad_fn is None:
        return {id(value)} if value.requires_grad else set()
    seen = {value.grad_fn}
    waiting = [value.grad_fn]
    while waiting:
        fresh = set(_inputs(waiting.pop())) - seen
        seen |= fresh
        waiting += fresh
    return {id(getattr(node, "variable", node)) for node in seen if not any(_inputs(node))}


def _inputs(node: Any) -> Iterator[torch.autograd.graph.Node]:
    return (source for source, _ in node.next_functions if source is not None)
