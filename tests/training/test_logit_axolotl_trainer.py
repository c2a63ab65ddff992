"""Axolotl's trainer with the seed model as teacher, and what Axolotl does to a student's modules."""

from pathlib import Path
from types import MethodType
from typing import Any

import pytest

pytest.importorskip("axolotl")
pytest.importorskip("peft")

import torch
from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.core.training_args import AxolotlTrainingArguments
from axolotl.monkeypatch import lora_kernels
from axolotl.utils.dict import DictDefault
from transformers.models.llama.modeling_llama import LlamaAttention

from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.training.trainers import axolotl_trainer_class, undo_lora_kernels
from tests.training.micro_batches import EPOCH, Epochs, train_logs
from tests.training.teachers.students import load, logits, prune
from tests.training.teachers.test_shared_layers import teacher_of
from tests.training.test_logit_distillation import student
from tests.training.test_trainers import assert_same_parameters

BLOCKS = ("logit_distillation", "dynsdpb")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prune(tmp_path_factory.mktemp("models"))


def trained(kind: type[Any], pruned: Path, folder: Path, **cfg: Any) -> Any:
    quiet = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
    args = AxolotlTrainingArguments(output_dir=str(folder), learning_rate=0.01, num_train_epochs=2, **quiet)
    epochs = [EPOCH, EPOCH]
    trainer = kind(model=student(pruned), args=args, train_dataset=epochs[0])
    trainer.axolotl_cfg = DictDefault(cfg)
    trainer.get_train_dataloader = lambda: Epochs(epochs)
    trainer.train()
    return trainer


def test_without_alpha_it_is_axolotls_trainer_to_the_bit(pruned: Path, tmp_path: Path):
    plain = trained(AxolotlTrainer, pruned, tmp_path)
    kind = axolotl_trainer_class("logit_distillation")
    own = trained(kind, pruned, tmp_path, logit_distillation={"alpha": 0})
    assert_same_parameters(own.model, plain.model, rtol=0.0, atol=0.0)


def test_both_blocks_make_one_trainer(pruned: Path, tmp_path: Path):
    kind = axolotl_trainer_class(*BLOCKS)
    assert kind.__name__ == "DynSDPBLogitDistillationAxolotlTrainer"
    seed = str(pruned.parent / "seed")
    cfg = {"logit_distillation": {"alpha": 0.7}, "dynsdpb": {"alpha": 2.0}, "sdft_seed_model": seed}
    trainer = trained(kind, pruned, tmp_path, **cfg)
    assert (trainer.logit_distillation_config.alpha, trainer.dynsdpb_config.alpha) == (0.7, 2.0)
    assert {"logit_distillation/kl", "dynsdpb/kl"} <= set(train_logs(trainer)[-1])


def test_settings_are_not_guessed_before_the_configuration_is_there(pruned: Path, tmp_path: Path):
    args = AxolotlTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = axolotl_trainer_class("logit_distillation")(model=student(pruned), args=args, train_dataset=EPOCH)
    with pytest.raises(
        ConfigError, match=r"logit_distillation: the settings were asked for before trainer.axolotl_cfg"
    ):
        trainer.train()


def test_attention_that_lora_kernels_have_rewritten_is_plain_in_the_teacher(
    pruned: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = logits(load(pruned.parent / "seed").eval())
    forward = LlamaAttention.forward
    monkeypatch.setattr(LlamaAttention, "_original_forward", None, raising=False)
    monkeypatch.delattr(LlamaAttention, "_original_forward")
    monkeypatch.setattr(LlamaAttention, "forward", forward)
    lora_kernels.patch_self_attn_lora(DictDefault({"base_model": str(pruned), "base_model_config": str(pruned)}))
    assert LlamaAttention.forward is not forward
    taught = student(pruned)
    for module in taught.modules():
        if isinstance(module, LlamaAttention):
            module.apply_qkv = MethodType(lambda *_: pytest.fail("the student's projections were called"), module)
    teacher = undo_lora_kernels(teacher_of(taught, pruned), taught)
    assert torch.equal(logits(teacher), expected)
