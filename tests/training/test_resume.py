"""A run that is stopped and resumed trains what an uninterrupted one trains."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.training.trainers import DynSDPBTrainer
from tests.training.losses.test_loss_without_logits import without_logits
from tests.training.micro_batches import make_llama, rows

# Rows that differ in length and batches that don't divide the epoch: 7 micro-batches, 4 steps of up to two.
SAMPLES = [{name: value[0] for name, value in rows(4 + seed % 5, seed=seed).items()} for seed in range(13)]


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    fillings = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {
        name: nn.utils.rnn.pad_sequence([sample[name] for sample in samples], batch_first=True, padding_value=filling)
        for name, filling in fillings.items()
    }


def run(model: nn.Module, folder: Path, resume: bool | str = False, **settings: Any) -> DynSDPBTrainer:
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "save_strategy": "steps"}
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2, "save_steps": 1}
    config = settings.pop("dynsdpb", DynSDPBConfig(alpha=0.8))
    args = TrainingArguments(str(folder), learning_rate=0.02, **quiet, **sizes, **settings)
    trainer = DynSDPBTrainer(model=model, args=args, train_dataset=SAMPLES, data_collator=collate, dynsdpb=config)
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def full() -> nn.Module:
    return make_llama(attention_dropout=0.2)


def lora() -> nn.Module:
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    adapter = peft.LoraConfig(r=2, lora_dropout=0.2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    return peft.get_peft_model(make_llama(), adapter)


def parameters(trainer: DynSDPBTrainer) -> dict[str, torch.Tensor]:
    return dict(trainer.model.named_parameters())


# In the middle of an epoch, after its shorter last step, and just after the start of the next.
@pytest.mark.parametrize(("step", "num_micro_batches"), [(2, 2), (4, 1), (5, 2)])
@pytest.mark.parametrize(
    ("make", "memory", "kept"),
    [
        (full, "auto", "raw"),
        (lora, "auto", "hidden"),
        (full, "top_k", "log_probs"),
        (lambda: without_logits(full()), "auto", "raw"),
        (lambda: without_logits(lora()), "auto", "hidden"),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, make: Any, memory: str, kept: str, step: int, num_micro_batches: int
):
    config = DynSDPBConfig(alpha=0.8, teacher_storage=memory, top_k=5)
    whole = run(make(), tmp_path, dynsdpb=config)
    checkpoint = tmp_path / f"checkpoint-{step}"
    saved = torch.load(checkpoint / "dynsdpb_memory.pt")
    resumed = run(make(), tmp_path / "resumed", str(checkpoint), dynsdpb=config)
    assert [kept in micro_batch["kept"] for micro_batch in saved["micro_batches"]] == [True] * num_micro_batches
    torch.testing.assert_close(parameters(resumed), parameters(whole), rtol=0.0, atol=0.0)
    assert [entry["loss"] for entry in resumed.state.log_history if "loss" in entry] == [
        entry["loss"] for entry in whole.state.log_history if "loss" in entry
    ]


def test_a_checkpoint_without_memory_is_resumed_with_a_first_step_that_repeats_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    run(full(), tmp_path, max_steps=2)
    checkpoint = get_last_checkpoint(str(tmp_path))
    (Path(checkpoint) / "dynsdpb_memory.pt").unlink()
    with caplog.at_level(logging.WARNING, logger="axolotl_sdft"):
        resumed = run(full(), tmp_path, checkpoint, max_steps=4)
    assert "dynsdpb_memory.pt is missing" in caplog.text
    logs = [entry for entry in resumed.state.log_history if entry.get("step", 0) > 2 and "loss" in entry]
    assert ["dynsdpb/kl" in entry for entry in logs] == [False, True]


def test_a_model_saved_alone_takes_no_memory_along(tmp_path: Path):
    run(full(), tmp_path, max_steps=1, save_only_model=True)
    assert not list(tmp_path.rglob("dynsdpb_memory*"))
