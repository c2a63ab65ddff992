"""What Axolotl's trainer logs of tokens and perplexity: the figures of plain training, or figures of another name."""

import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("axolotl")
pytest.importorskip("peft")

import torch
from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.core.training_args import AxolotlTrainingArguments
from axolotl.utils.dict import DictDefault

from axolotl_sdft.training.trainers import axolotl_trainer_class
from tests.training.micro_batches import EPOCH, Epochs, train_logs
from tests.training.teachers.students import prune
from tests.training.test_logit_distillation import student

NUM_LABELS = [int((batch["labels"] != -100).sum()) for batch in EPOCH]
NUM_PLACES = [batch["labels"].numel() for batch in EPOCH]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prune(tmp_path_factory.mktemp("models"))


def trained(kind: type[Any], pruned: Path, folder: Path, **cfg: Any) -> Any:
    quiet = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
    args = AxolotlTrainingArguments(
        output_dir=str(folder), learning_rate=0.01, num_train_epochs=1, include_tkps=True, **quiet
    )
    trainer = kind(model=student(pruned), args=args, train_dataset=EPOCH)
    trainer.axolotl_cfg = DictDefault({"sdft_seed_model": str(pruned.parent / "seed"), **cfg})
    trainer.get_train_dataloader = lambda: Epochs([EPOCH])
    trainer.train()
    return trainer


@pytest.mark.parametrize("blocks", [("dynsdpb",), ("logit_distillation",), ("logit_distillation", "dynsdpb")])
@pytest.mark.parametrize("alpha", [0, 0.5])
def test_repeated_rows_are_not_counted_as_trained_tokens(
    pruned: Path, tmp_path: Path, blocks: tuple[str, ...], alpha: float
):
    trainer = trained(axolotl_trainer_class(*blocks), pruned, tmp_path, **{block: {"alpha": alpha} for block in blocks})
    logs = train_logs(trainer)
    assert [entry["tokens/trainable"] for entry in logs] == torch.tensor(NUM_LABELS).cumsum(0).tolist()
    assert [entry["tokens/total"] for entry in logs] == torch.tensor(NUM_PLACES).cumsum(0).tolist()


def test_without_alpha_logit_distillation_logs_the_tokens_and_perplexity_of_plain_training(
    pruned: Path, tmp_path: Path
):
    plain = trained(AxolotlTrainer, pruned, tmp_path)
    own = trained(axolotl_trainer_class("logit_distillation"), pruned, tmp_path, logit_distillation={"alpha": 0})
    names = ("loss", "ppl", "tokens/trainable", "tokens/total")
    logged = [[[entry[name] for name in names] for entry in train_logs(trainer)] for trainer in (plain, own)]
    assert logged[0] == logged[1]


def test_the_perplexity_leaves_out_what_the_seed_model_adds_to_the_loss(pruned: Path, tmp_path: Path):
    kind = axolotl_trainer_class("logit_distillation")
    plain = train_logs(trained(AxolotlTrainer, pruned, tmp_path))[0]
    logged = train_logs(trained(kind, pruned, tmp_path, logit_distillation={"alpha": 0.9}))[0]
    assert logged["ppl"] == pytest.approx(plain["ppl"], rel=1e-4)  # of the model before its first step
    assert abs(logged["loss"] - plain["loss"]) > 0.01


def test_beside_both_blocks_the_perplexity_is_that_of_cross_entropy_alone(pruned: Path, tmp_path: Path):
    blocks = {"dynsdpb": {"alpha": 0}, "logit_distillation": {"alpha": 0.9}}
    logged = train_logs(trained(axolotl_trainer_class(*blocks), pruned, tmp_path, **blocks))[0]
    plain = train_logs(trained(AxolotlTrainer, pruned, tmp_path))[0]
    assert logged["dynsdpb/ppl"] == pytest.approx(plain["ppl"], rel=1e-4)  # of the model before its first step
    assert "ppl" not in logged


def test_a_perplexity_that_repeated_rows_are_a_part_of_has_a_name_of_its_own(pruned: Path, tmp_path: Path):
    logs = train_logs(trained(axolotl_trainer_class(), pruned, tmp_path, dynsdpb={"alpha": 0.5}))
    assert not any("ppl" in entry for entry in logs)
    assert logs[-1]["dynsdpb/ppl"] == pytest.approx(math.exp(logs[-1]["dynsdpb/ce"]), rel=1e-4)
