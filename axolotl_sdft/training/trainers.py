"""Trainers that distil: for transformers, and for Axolotl. Those for TRL: ``trl_trainer``."""

from functools import cache
from typing import Any

from transformers import Trainer

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.core.errors import ConfigError, MissingExtraError
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


@cache
def axolotl_trainer_class() -> type[Any]:
    """Return Axolotl's trainer with DynSDPB, its settings read from the ``dynsdpb`` block.

    Made on demand, because Axolotl's plugins are imported before its trainers may be.

    Raises:
        MissingExtraError: Axolotl is not installed.
    """
    try:
        from axolotl.core.trainers.base import AxolotlTrainer
    except ModuleNotFoundError as err:
        raise MissingExtraError(
            f"the Axolotl trainer needs the module {err.name!r}; pip install 'axolotl-sdft[axolotl]', or use "
            "DynSDPBTrainer"
        ) from err

    class DynSDPBAxolotlTrainer(DynSDPBMixin, AxolotlTrainer):
        """Axolotl's trainer that distils each mini-batch from the logits of the iteration before."""

        # Newer Axolotl logs exp(loss) as perplexity, which the distillation term would falsify.
        reports_token_perplexity = False

        def _dynsdpb_settings(self) -> DynSDPBConfig:
            if self._dynsdpb_given is not None:
                return self._dynsdpb_given
            if self.axolotl_cfg is None:
                raise ConfigError(
                    "dynsdpb: the settings were asked for before trainer.axolotl_cfg was set; set it, or pass "
                    "dynsdpb=DynSDPBConfig(...) to the trainer"
                )
            return DynSDPBConfig.model_validate(dict(self.axolotl_cfg.dynsdpb or {}))

    return DynSDPBAxolotlTrainer
