import math

import pytest
import torch

from axolotl_sdft.training.losses.dynsdpb import DynSDPBTerms
from axolotl_sdft.training.student import RunningFigures
from axolotl_sdft.training.trainers import DynSDPBTrainer, LogitDistillationTrainer
from tests.training.micro_batches import EPOCH, Epochs, make_llama, train, train_logs
from tests.training.teachers.students import load

CPU = torch.device("cpu")


def terms(num_tokens: int, *figures: float) -> DynSDPBTerms:
    """Sums of divergence, alpha, temperature, uncertainty and agreement."""
    kl_sum, *sums = (torch.tensor(value) for value in (99.0, *figures))
    return DynSDPBTerms(kl_sum, num_tokens, *sums)


def test_figures_are_means_over_the_tokens_of_all_micro_batches():
    figures = RunningFigures()
    figures.add_cross_entropy(torch.tensor(6.0), 2)
    figures.add_cross_entropy(torch.tensor(2.0), 6)
    figures.add_distillation(terms(1, 0.5, 1.0, 2.0, 0.1, 1.0))
    figures.add_distillation(terms(3, 0.3, 0.2, 4.0, 0.7, 2.0))
    assert figures.take(CPU, lambda sums: sums) == {
        "dynsdpb/ce": pytest.approx(1.0),
        "dynsdpb/kl": pytest.approx(0.2),
        "dynsdpb/alpha": pytest.approx(0.3),
        "dynsdpb/temperature": pytest.approx(1.5),
        "dynsdpb/uncertainty": pytest.approx(0.2),
        "dynsdpb/agreement": pytest.approx(0.75),
    }


def test_taking_the_figures_starts_them_again():
    figures = RunningFigures()
    figures.add_cross_entropy(torch.tensor(6.0), 2)
    figures.take(CPU, lambda sums: sums)
    assert figures.take(CPU, lambda sums: sums) == {}


@pytest.mark.parametrize("kind", [DynSDPBTrainer, LogitDistillationTrainer])
def test_a_second_run_of_a_trainer_logs_figures_of_its_own(tmp_path, kind):
    make_llama().save_pretrained(tmp_path / "seed")
    # The third of three steps is not logged.
    settings = {"logging_steps": 2, "learning_rate": 0.0, "max_steps": 3}
    trainer = train(kind, load(tmp_path / "seed"), [EPOCH], tmp_path, **settings)
    first = figures_of(trainer)
    trainer.get_train_dataloader = lambda: Epochs([EPOCH])
    trainer.train()
    assert figures_of(trainer) == first


def figures_of(trainer):
    (logs,) = train_logs(trainer)
    return {name: value for name, value in logs.items() if "/" in name}


def test_sums_not_means_are_added_up_over_ranks():
    figures = RunningFigures()
    figures.add_cross_entropy(torch.tensor(6.0), 2)
    other_rank = torch.tensor([10.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert figures.take(CPU, lambda sums: sums + other_rank) == {"dynsdpb/ce": 2.0}


def test_a_rank_that_counted_nothing_still_takes_part():
    other_rank = torch.tensor([10.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert RunningFigures().take(CPU, lambda sums: sums + other_rank) == {"dynsdpb/ce": 2.0}


def test_the_undefined_mean_of_a_micro_batch_without_labels_is_left_out():
    figures = RunningFigures()
    figures.add_cross_entropy(torch.tensor(math.nan), 0)
    figures.add_cross_entropy(torch.tensor(6.0), 2)
    assert figures.take(CPU, lambda sums: sums) == {"dynsdpb/ce": 3.0}
