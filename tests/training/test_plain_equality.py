"""Twenty steps without influence are twenty steps of the parent trainer, for decoders; encoders and TRL: see there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.training.trainers import DynSDPBTrainer, axolotl_trainer_class
from tests.training.micro_batches import EPOCH, Epochs, MicroBatches, make_llama, train
from tests.training.test_trainers import assert_same_parameters, joined_by_hand

ADAM = {"optim": "adamw_torch", "learning_rate": 0.01, "lr_scheduler_type": "linear", "max_grad_norm": 1.0}


def test_transformers_trainer(tmp_path: Path):
    epochs = [EPOCH] * 4
    plain = train(Trainer, make_llama(), joined_by_hand(epochs, 1), tmp_path, **ADAM)
    trainer = train(DynSDPBTrainer, make_llama(), epochs, tmp_path, dynsdpb=DynSDPBConfig(alpha=0.0), **ADAM)
    assert trainer.state.global_step == plain.state.global_step == 20
    assert_same_parameters(trainer.model, plain.model, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_axolotls_trainer(tmp_path: Path, accumulation: int):
    pytest.importorskip("axolotl")
    from axolotl.core.trainers.base import AxolotlTrainer
    from axolotl.core.training_args import AxolotlTrainingArguments

    epochs = [EPOCH] * 7

    def run(trainer_class: type[Any], given: list[MicroBatches], **own: Any) -> Any:
        quiet = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "max_steps": 20}
        args = AxolotlTrainingArguments(
            output_dir=str(tmp_path), gradient_accumulation_steps=accumulation, **quiet, **ADAM
        )
        trainer = trainer_class(model=make_llama(), args=args, train_dataset=given[0], **own)
        trainer.get_train_dataloader = lambda: Epochs(given)
        trainer.train()
        return trainer

    plain = run(AxolotlTrainer, joined_by_hand(epochs, accumulation))
    trainer = run(axolotl_trainer_class(), epochs, dynsdpb=DynSDPBConfig(alpha=0.0))
    assert trainer.state.global_step == plain.state.global_step == 20
    assert_same_parameters(trainer.model, plain.model, rtol=0.0, atol=0.0)
    changed = run(axolotl_trainer_class(), epochs, dynsdpb=DynSDPBConfig(alpha=1.0))
    assert not torch.allclose(next(changed.model.parameters()), next(plain.model.parameters()), atol=1e-3)
