"""Training on micro-batches that are written down, epoch by epoch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.training.trainers import DynSDPBTrainer

MicroBatches = list[dict[str, Tensor]]
_OF_THE_TRAINER = ("dynsdpb", "logit_distillation", "seed_model", "eval_dataset", "processing_class")
STATIC = DynSDPBConfig(alpha=0.8, temperature=2.0, dynamic_alpha=False, dynamic_temperature=False)


def make_llama(**settings: Any) -> LlamaForCausalLM:
    """Return a random Llama with 64 tokens and 2 layers, the same one each time; keywords go to its config."""
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    # Weights larger than usual, so that predictions are far from even and the terms differ visibly.
    config = LlamaConfig(**{**sizes, **heads, "initializer_range": 0.3, "pad_token_id": 0, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return LlamaForCausalLM(config)


class Epochs:
    """A loader that gives the micro-batches of one epoch after another."""

    def __init__(self, epochs: list[MicroBatches]) -> None:
        self._epochs = iter(epochs)
        self._length = len(epochs[0])

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(next(self._epochs))


def rows(*lengths: int, seed: int = 0, prompt: int = 1) -> dict[str, Tensor]:
    """A padded micro-batch of random tokens; the first ``prompt`` of each row are not trained."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(1, 64, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    labels = input_ids.masked_fill(~mask, -100)
    labels[:, :prompt] = -100
    return {"input_ids": input_ids.masked_fill(~mask, 0), "labels": labels, "attention_mask": mask.long()}


# Five micro-batches: with two per step, the last step of an epoch has only one; its last batch is uneven.
EPOCH = [rows(7, 4, seed=1), rows(3, 8, seed=2), rows(5, 5, seed=3), rows(9, 6, seed=4), rows(4, seed=5)]


def train(
    trainer_class: type[Trainer], model: torch.nn.Module, epochs: list[MicroBatches], tmp_path: Path, **settings: Any
) -> Trainer:
    """Train on what is given; keywords of the trainer itself are told from those of its arguments by name."""
    own = {name: settings.pop(name) for name in _OF_THE_TRAINER if name in settings}
    checkpoint = settings.pop("resume_from_checkpoint", None)
    quiet = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
    plain = {"optim": "sgd", "learning_rate": 0.3, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    args = TrainingArguments(str(tmp_path), **{"num_train_epochs": len(epochs), **quiet, **plain, **settings})
    trainer = trainer_class(model=model, args=args, train_dataset=epochs[0], **own)
    trainer.get_train_dataloader = lambda: Epochs(epochs)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def train_logs(trainer: Trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


class MeanPerMicroBatch:
    """Goes before a trainer whose parent averages each micro-batch, as for models whose loss takes no token count."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


class DynSDPBMeanTrainer(MeanPerMicroBatch, DynSDPBTrainer):
    pass
