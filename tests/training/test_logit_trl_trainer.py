"""TRL's trainer with the seed model as teacher, on batches that TRL itself makes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytest.importorskip("peft")

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from axolotl_sdft.config import DynSDPBConfig, LogitDistillationConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.training.logit_mixin import LogitDistillationMixin
from axolotl_sdft.training.mixin import DynSDPBMixin
from axolotl_sdft.training.trl_trainer import (
    DynSDPBSFTConfig,
    LogitDistillationSFTConfig,
    LogitDistillationSFTTrainer,
)
from tests.training.micro_batches import train_logs
from tests.training.teachers.students import load, prune
from tests.training.test_trl_trainer import DATASETS, HAS_CHUNKED_LOSS, as_in_a_search, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.(loss_type|compute_loss_func):FutureWarning")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prune(tmp_path_factory.mktemp("models"))


def trained(kind: type[Any], pruned: Path, folder: Path, rows: str = "text", own: Any = None, **settings: Any) -> Any:
    quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "logging_steps": 1}
    plain = {"disable_tqdm": True, "learning_rate": 0.01, "per_device_train_batch_size": 2, "num_train_epochs": 1}
    config = LogitDistillationSFTConfig if kind is LogitDistillationSFTTrainer else SFTConfig
    torch.manual_seed(2)
    trainer = kind(
        model=load(pruned),
        args=config(str(folder), **{**quiet, **plain, **settings}),
        train_dataset=Dataset.from_dict(DATASETS[rows]),
        processing_class=make_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        **(own or {}),
    )
    trainer.train()
    return trainer


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("rows", DATASETS)
def test_without_alpha_it_is_trls_trainer_to_the_bit(pruned: Path, tmp_path: Path, rows: str):
    plain = trained(SFTTrainer, pruned, tmp_path, rows)
    own = trained(LogitDistillationSFTTrainer, pruned, tmp_path, rows, logit_distillation_alpha=0.0)
    torch.testing.assert_close(weights(own), weights(plain), rtol=0.0, atol=0.0)
    taught = trained(LogitDistillationSFTTrainer, pruned, tmp_path, rows, logit_distillation_alpha=0.9)
    assert taught._logit_plan.is_shared
    assert all(entry["logit_distillation/kl"] > 0.01 for entry in train_logs(taught))
    plain_weights = weights(plain)
    assert any((plain_weights[name] - weight).abs().max() > 1e-3 for name, weight in weights(taught).items())


@pytest.mark.skipif(not HAS_CHUNKED_LOSS, reason="this TRL has no loss without logits of its own")
def test_trls_loss_without_logits_trains_the_same_student(pruned: Path, tmp_path: Path):
    runs = [trained(LogitDistillationSFTTrainer, pruned, tmp_path, loss_type=kind) for kind in ("nll", "chunked_nll")]
    torch.testing.assert_close(weights(runs[1]), weights(runs[0]), rtol=1e-3, atol=1e-4)
    kls = [[entry["logit_distillation/kl"] for entry in train_logs(run)] for run in runs]
    assert kls[1] == pytest.approx(kls[0], rel=1e-3)


@pytest.mark.parametrize("tokens", ["answers", "all"])
def test_packed_and_padding_free_batches_are_taught(pruned: Path, tmp_path: Path, tokens: Any):
    settings = {"packing": True, "max_length": 16, "packing_strategy": "bfd", "logit_distillation_tokens": tokens}
    trainer = trained(LogitDistillationSFTTrainer, pruned, tmp_path, **settings)
    assert all(entry["logit_distillation/kl"] > 0.01 for entry in train_logs(trainer))


def test_settings_are_told_in_one_place(pruned: Path, tmp_path: Path):
    given = LogitDistillationConfig(alpha=0.2)
    with pytest.raises(ConfigError, match=r"logit_distillation is .*alpha=0.2.*logit_distillation_\* of args say"):
        trained(
            LogitDistillationSFTTrainer,
            pruned,
            tmp_path,
            own={"logit_distillation": given},
            logit_distillation_alpha=0.3,
        )
    trainer = trained(LogitDistillationSFTTrainer, pruned, tmp_path, own={"logit_distillation": given})
    assert trainer.logit_distillation_config.alpha == 0.2


def test_each_run_takes_the_settings_that_args_hold_as_it_begins(pruned: Path, tmp_path: Path):
    trainer = trained(LogitDistillationSFTTrainer, pruned, tmp_path, logit_distillation_alpha=0.0)
    assert "logit_distillation/kl" not in train_logs(trainer)[-1]
    trainer.args.logit_distillation_alpha = 1.0
    trainer.args.logit_distillation_teacher = "own"
    trainer.train()
    # The loss need not be the term alone: transformers 5.0 divides it by the first label too, which nothing predicts.
    assert train_logs(trainer)[-1]["logit_distillation/kl"] > 0
    assert trainer.logit_distillation_config.alpha == 1.0
    assert not trainer._logit_plan.is_shared


def test_a_trial_of_a_search_trains_with_what_it_proposes(pruned: Path, tmp_path: Path):
    trainer = trained(LogitDistillationSFTTrainer, pruned, tmp_path, logit_distillation_alpha=0.5)
    as_in_a_search(trainer)
    trainer.train(trial={"logit_distillation_alpha": 0.0})
    assert "logit_distillation/kl" not in train_logs(trainer)[-1]


def test_a_trainer_made_of_both_mixins_reads_the_flat_settings_of_both(pruned: Path, tmp_path: Path):
    @dataclass
    class BothConfig(DynSDPBSFTConfig, LogitDistillationSFTConfig):
        pass

    class Both(DynSDPBMixin, LogitDistillationMixin, SFTTrainer):
        pass

    settings = {"dynsdpb_alpha": 3.0, "logit_distillation_alpha": 0.9, "use_cpu": True, "bf16": False}
    trainer = Both(
        load(pruned),
        BothConfig(str(tmp_path), report_to="none", **settings),
        train_dataset=Dataset.from_dict(DATASETS["text"]),
        processing_class=make_tokenizer(),
    )
    assert trainer.dynsdpb_config == DynSDPBConfig(alpha=3.0)
    assert trainer.logit_distillation_config == LogitDistillationConfig(alpha=0.9)


def test_a_flat_setting_out_of_its_bounds_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"logit_distillation_alpha is 1\.5: Input should be less than or equal to 1"):
        LogitDistillationSFTConfig(str(tmp_path), logit_distillation_alpha=1.5)
