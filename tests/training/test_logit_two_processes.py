"""Two processes learn from the seed model what one learns by accumulating the micro-batches of both."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from axolotl_sdft.config import DynSDPBConfig, LogitDistillationConfig
from axolotl_sdft.training.trainers import LogitDistillationTrainer
from tests.forks import run_ranks
from tests.training.micro_batches import rows, train, train_logs
from tests.training.teachers.students import load, prune
from tests.training.test_logit_distillation import Both, LogitDistillationMeanTrainer, student

pytest.importorskip("peft")

EPOCH = [rows(7, 4, seed=1), rows(3, 8, seed=2), rows(5, 5, seed=3), rows(9, 6, seed=4, prompt=3)]
ANSWERS = LogitDistillationConfig(alpha=0.6, temperature=2.0)
WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "window": (LogitDistillationTrainer, {"logit_distillation": ANSWERS}),
    "micro-batch": (LogitDistillationMeanTrainer, {"logit_distillation": ANSWERS}),
    "all tokens": (LogitDistillationTrainer, {"logit_distillation": LogitDistillationConfig(alpha=0.6, tokens="all")}),
    "own teacher": (LogitDistillationTrainer, {"logit_distillation": ANSWERS, "learning_rate": 0.02}),
    "checkpointing": (LogitDistillationTrainer, {"logit_distillation": ANSWERS, "gradient_checkpointing": True}),
    "dynsdpb": (Both, {"logit_distillation": ANSWERS, "dynsdpb": DynSDPBConfig(alpha=0.8)}),
}


def result_of(way: str, pruned: Path, epochs: list[Any], **more: Any) -> dict[str, Any]:
    kind, settings = WAYS[way]
    model = load(pruned).train() if way == "own teacher" else student(pruned)
    if settings.get("gradient_checkpointing"):
        more["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    trainer = train(kind, model, epochs, pruned.parent / "out", **settings, **more)
    figures = [{key: log[key] for key in log if key == "loss" or "/" in key} for log in train_logs(trainer)]
    weights = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    return {
        "figures": figures,
        "weights": {name: weight.detach().clone() for name, weight in weights if weight.requires_grad},
    }


def run_rank(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    epochs = [EPOCH[rank::2], EPOCH[::-1][rank::2]]
    torch.save({way: result_of(way, folder / "pruned", epochs) for way in WAYS}, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prune(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def results_of_ranks(pruned: Path) -> list[dict[str, Any]]:
    run_ranks(run_rank, pruned.parent)
    return [torch.load(pruned.parent / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_learn_what_one_does_with_twice_the_accumulation(
    results_of_ranks: list[dict[str, Any]], pruned: Path, way: str
):
    alone = result_of(way, pruned, [EPOCH, EPOCH[::-1]], gradient_accumulation_steps=2)
    for result in results_of_ranks:
        torch.testing.assert_close(result[way]["weights"], alone["weights"], rtol=1e-3, atol=1e-5)
    # The log of the main process speaks for all.
    torch.testing.assert_close(results_of_ranks[0][way]["figures"], alone["figures"], rtol=1e-3, atol=1e-4)
