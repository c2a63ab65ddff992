"""Trainers that distil: for transformers, and for Axolotl. Those for TRL: ``trl_trainer``."""

import math
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from torch import nn
from transformers import Trainer

from axolotl_sdft.config import DynSDPBConfig, LogitDistillationConfig
from axolotl_sdft.core.errors import ConfigError, MissingExtraError
from axolotl_sdft.core.model_folder import resolve_seed
from axolotl_sdft.training.batching import IGNORED_LABEL
from axolotl_sdft.training.logit_mixin import LogitDistillationMixin
from axolotl_sdft.training.mixin import DynSDPBMixin


class DynSDPBTrainer(DynSDPBMixin, Trainer):
    """``transformers.Trainer`` that distils each mini-batch from the logits of the iteration before.

    For causal language models, and for token and sequence classification (BERT, RoBERTa, DeBERTa and others), where
    what is distilled are the probabilities of the classes.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
        >>> from axolotl_sdft import DynSDPBConfig, DynSDPBTrainer
        >>> sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))
        >>> rows = [{"input_ids": [1, 5, 9, 3], "labels": [-100, 5, 9, 3]}] * 8
        >>> trainer = DynSDPBTrainer(
        ...     model=model,
        ...     args=TrainingArguments("out", per_device_train_batch_size=2, report_to="none", use_cpu=True),
        ...     train_dataset=rows,
        ...     dynsdpb=DynSDPBConfig(alpha=0.5, temperature=3.0),
        ... )
        >>> trainer.train().global_step
        12
    """


class LogitDistillationTrainer(LogitDistillationMixin, Trainer):
    """``transformers.Trainer`` in which the unpruned seed model teaches the student. For causal language models.

    With LoRA and other adapters the teacher shares the student's layers, and needs only the memory of those that were
    removed.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
        >>> from axolotl_sdft import LogitDistillationConfig, LogitDistillationTrainer
        >>> sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))
        >>> rows = [{"input_ids": [1, 5, 9, 3], "labels": [-100, 5, 9, 3]}] * 8
        >>> trainer = LogitDistillationTrainer(
        ...     model=get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"])),
        ...     args=TrainingArguments("out", per_device_train_batch_size=2, report_to="none", use_cpu=True),
        ...     train_dataset=rows,
        ...     logit_distillation=LogitDistillationConfig(alpha=0.5),
        ... )
        >>> trainer.train().global_step
        12
    """


class _DynSDPBFromConfig(DynSDPBMixin):
    """Takes its settings from Axolotl's configuration."""

    def _dynsdpb_settings(self) -> DynSDPBConfig:
        return self._dynsdpb_given or _from_axolotl(self, "dynsdpb", DynSDPBConfig)


class _LogitDistillationFromConfig(LogitDistillationMixin):
    """Takes its settings and the seed model from Axolotl's configuration."""

    def _logit_settings(self) -> LogitDistillationConfig:
        return self._logit_given or _from_axolotl(self, "logit_distillation", LogitDistillationConfig)

    def _logit_settings_are_known(self) -> bool:
        return self._logit_given is not None  # Axolotl sets its configuration once the trainer is made

    def _logit_named_seed(self) -> str | Path | None:
        named = super()._logit_named_seed()
        cfg = getattr(self, "axolotl_cfg", None) or {}
        if named is not None or not cfg.get("sdft_seed_model"):
            return named
        return resolve_seed(cfg["sdft_seed_model"], cfg.get("revision_of_model"))

    def _logit_complete(self, teacher: nn.Module) -> nn.Module:
        return undo_lora_kernels(teacher, self.accelerator.unwrap_model(self.model))


_Config = TypeVar("_Config", bound=BaseModel)


def _from_axolotl(trainer: Any, block: str, kind: type[_Config]) -> _Config:
    if trainer.axolotl_cfg is None:
        raise ConfigError(
            f"{block}: the settings were asked for before trainer.axolotl_cfg was set; set it, or pass "
            f"{block}={kind.__name__}(...) to the trainer"
        )
    return kind.model_validate(dict(trainer.axolotl_cfg.get(block) or {}))


_FROM_CONFIG = {"dynsdpb": _DynSDPBFromConfig, "logit_distillation": _LogitDistillationFromConfig}


class _PlainTokenCounts(Trainer):
    """Goes before all others: ``include_tkps`` counts the tokens of new samples, as training without the block does.

    Axolotl 0.19 counts in ``compute_loss`` itself, later versions by a method that it calls.
    """

    _new_samples: dict[str, Any] | None = None

    def _accumulate_token_counts(self, inputs: dict[str, Any]) -> None:
        new = inputs if self._new_samples is None else self._new_samples
        super()._accumulate_token_counts(new)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        labels = inputs.get("labels", inputs.get("input_ids"))
        if hasattr(super(), "_accumulate_token_counts"):
            self._new_samples = {"labels": labels}
            return super().compute_loss(model, inputs, *args, **kwargs)
        is_counted = getattr(self.args, "include_tkps", False) and model.training
        before = {"trainable": torch.zeros(1), "total": torch.zeros(1), **getattr(self.state, "tokens", {})}
        result = super().compute_loss(model, inputs, *args, **kwargs)
        if is_counted and labels is not None:
            new = torch.tensor([int((labels != IGNORED_LABEL).sum()), labels.numel()], device=labels.device)
            new = self.accelerator.reduce(new, "sum") if self.accelerator.num_processes > 1 else new
            added = dict(zip(("trainable", "total"), new.cpu(), strict=True))
            self.state.tokens = {name: before[name] + added[name] for name in before}
        return result


class _PlainPerplexity(Trainer):
    """Goes after Axolotl's trainer, which logs ``exp(loss)`` as perplexity, whatever was added to the loss."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            shown = {name: value for name, value in logs.items() if name != "ppl"}
            logs = shown | _perplexity(logs)
        if "eval_loss" in logs:
            logs = {"eval_ppl": _exp(logs["eval_loss"])} | logs
        super().log(logs, *args, **kwargs)


def _perplexity(logs: dict[str, float]) -> dict[str, float]:
    """Return the perplexity of the training rows: a name of its own where repeated rows are a part of it."""
    # With both blocks only the latter is cross-entropy alone: the loss below DynSDPB has the seed model's share in it.
    ce = logs.get("logit_distillation/ce", logs.get("dynsdpb/ce"))
    if ce is not None:
        return {"dynsdpb/ppl" if "dynsdpb/ce" in logs else "ppl": _exp(ce)}
    return {"ppl": logs.get("ppl", _exp(logs["loss"]))}


def _exp(loss: float) -> float:
    try:
        return round(math.exp(loss), 5)
    except OverflowError:
        return math.inf


@cache
def axolotl_trainer_class(*blocks: str) -> type[Any]:
    """Return Axolotl's trainer with DynSDPB, logit distillation or both, set up by the blocks of its configuration.

    Made on demand, because Axolotl's plugins are imported before its trainers may be.

    Args:
        blocks: ``dynsdpb``, ``logit_distillation`` or both; the previous when none is named.

    Raises:
        MissingExtraError: Axolotl is not installed.
    """
    try:
        from axolotl.core.trainers.base import AxolotlTrainer
    except ModuleNotFoundError as err:
        raise MissingExtraError(
            f"the Axolotl trainer needs the module {err.name!r}; pip install 'axolotl-sdft[axolotl]', or use "
            "DynSDPBTrainer or LogitDistillationTrainer"
        ) from err
    named = [name for name in _FROM_CONFIG if name in (blocks or ("dynsdpb",))]
    title = "".join("DynSDPB" if name == "dynsdpb" else "LogitDistillation" for name in named)
    # Newer Axolotl logs exp(loss) as perplexity unless this is set; _PlainPerplexity tells it in its place.
    content = {"reports_token_perplexity": False, "__doc__": f"Axolotl's trainer with {' and '.join(named)}."}
    bases = (_PlainTokenCounts, *(_FROM_CONFIG[name] for name in named), AxolotlTrainer, _PlainPerplexity)
    return type(f"{title}AxolotlTrainer", bases, content)


def undo_lora_kernels(teacher: nn.Module, student: nn.Module) -> nn.Module:
    """Give a teacher's attention the plain projections that Axolotl's LoRA kernels have replaced in the student.

    They rewrite the forward pass of the class, which then asks each instance how to project. Returns the teacher.
    """
    rewritten = {type(module) for module in student.modules() if "apply_qkv" in vars(module)}
    for module in teacher.modules():
        if type(module) in rewritten:
            from axolotl.monkeypatch import lora_kernels

            plain = lora_kernels.original_apply_qkv
            if getattr(module, "v_proj", None) is None:
                plain = lora_kernels.original_apply_qkv_optional_v
            methods = {"apply_qkv": plain, "apply_o": lora_kernels.original_apply_o}
            vars(module).update({name: MethodType(function, module) for name, function in methods.items()})
    return teacher
