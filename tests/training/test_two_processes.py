"""What two processes train together is what one process trains by accumulating the micro-batches of both."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from axolotl_sdft.training.trainers import DynSDPBTrainer
from tests.forks import run_ranks
from tests.training.losses.test_loss_without_logits import without_logits
from tests.training.micro_batches import STATIC, DynSDPBMeanTrainer, MicroBatches, make_llama, rows, train, train_logs

EPOCH = [rows(7, 4, seed=1), rows(3, 8, seed=2), rows(5, 5, seed=3), rows(9, 6, seed=4, prompt=3)]
SHARDS_ON_A_CPU = hasattr(torch.cpu.Stream, "record_event")
TRAINERS = {"window": DynSDPBTrainer, "micro_batch": DynSDPBMeanTrainer}


class ShardedTrainer(DynSDPBTrainer):
    """Trains a model whose weights are spread over the ranks by FSDP2, which accelerate itself does on GPUs only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.accelerator.prepare_model = lambda model, **_: model

    def _dynsdpb_reader(self) -> Any:
        self.is_fsdp_enabled = True  # to all else of the trainer that means accelerate's own plugin
        try:
            return super()._dynsdpb_reader()
        finally:
            self.is_fsdp_enabled = False


def sharded(model: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def result_of(mean_over: str, epochs: list[MicroBatches], folder: Path, **settings: Any) -> dict[str, Any]:
    return result_from(train(TRAINERS[mean_over], make_llama(), epochs, folder, dynsdpb=STATIC, **settings))


def result_from(trainer: Any) -> dict[str, Any]:
    figures = [{key: log[key] for key in log if key == "loss" or "dynsdpb" in key} for log in train_logs(trainer)]
    parameters = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    whole = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in parameters.items()
    }
    return {"parameters": whole, "figures": figures}


def run_rank(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    epochs = [EPOCH[rank::2], EPOCH[::-1][rank::2]]
    results = {name: result_of(name, epochs, folder) for name in TRAINERS}
    without = train(DynSDPBTrainer, without_logits(make_llama()), epochs, folder / "without_logits", dynsdpb=STATIC)
    results["without_logits"] = result_from(without)
    results["saving"] = result_of("window", epochs, folder, save_strategy="epoch")
    checkpoint = folder / "checkpoint-2"
    again = {"resume_from_checkpoint": str(checkpoint), "num_train_epochs": 2}
    results["resumed"] = result_of("window", epochs[1:], folder / "resumed", **again)
    if rank == 1:
        (checkpoint / "dynsdpb_memory_1.pt").unlink()
    results["torn"] = result_of("window", epochs[1:], folder / "torn", **again)
    if SHARDS_ON_A_CPU:
        over_ranks = train(ShardedTrainer, sharded(make_llama()), epochs, folder / "sharded", dynsdpb=STATIC)
        assert all(type(parameter).__name__ == "DTensor" for parameter in over_ranks.model.parameters())
        results["sharded"] = result_from(over_ranks)
    torch.save(results, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def results_of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(run_rank, folder)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("mean_over", list(TRAINERS))
def test_two_processes_train_what_one_does_with_twice_the_accumulation(
    results_of_ranks: list[dict[str, Any]], tmp_path: Path, mean_over: str
):
    alone = result_of(mean_over, [EPOCH, EPOCH[::-1]], tmp_path, gradient_accumulation_steps=2)
    for result in results_of_ranks:
        torch.testing.assert_close(result[mean_over]["parameters"], alone["parameters"], rtol=1e-4, atol=1e-5)
    # The log of the main process speaks for all.
    torch.testing.assert_close(results_of_ranks[0][mean_over]["figures"], alone["figures"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["sharded", "without_logits"])
def test_two_processes_that_share_the_weights_or_make_no_logits_train_what_one_does_alone(
    results_of_ranks: list[dict[str, Any]], tmp_path: Path, way: str
):
    if way == "sharded" and not SHARDS_ON_A_CPU:
        pytest.skip("this torch shards on GPUs only")
    alone = result_of("window", [EPOCH, EPOCH[::-1]], tmp_path, gradient_accumulation_steps=2)
    for result in results_of_ranks:
        torch.testing.assert_close(result[way]["parameters"], alone["parameters"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results_of_ranks[0][way]["figures"], alone["figures"], rtol=1e-4, atol=1e-5)


def test_two_processes_resume_as_if_they_had_never_stopped(results_of_ranks: list[dict[str, Any]]):
    for result in results_of_ranks:
        whole, resumed = result["saving"], result["resumed"]
        torch.testing.assert_close(resumed["parameters"], whole["parameters"], rtol=0.0, atol=0.0)
    assert resumed["figures"] == whole["figures"]


def test_where_one_rank_has_lost_its_memory_none_repeats_anything(results_of_ranks: list[dict[str, Any]]):
    for result in results_of_ranks:
        assert ["dynsdpb/kl" in figures for figures in result["torn"]["figures"]] == [False, True, False, True]
    torch.testing.assert_close(*(result["torn"]["parameters"] for result in results_of_ranks), rtol=0.0, atol=0.0)
