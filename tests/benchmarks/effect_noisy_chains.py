"""One run of the study on made data: a tiny causal model, trained far too long on a few chains of tokens with noise.

Each token has one successor, which follows it with a known probability; else any token does. What can't be predicted
is known exactly then, and so is how much of it a model has memorised.
"""

import math
import random
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.benchmarks.effect_trainer import Recipe, trainer_for

_VOCAB, _TOKENS, _RULE = 64, 24, 0.7
_HELD_OUT_ROWS, _HELD_OUT_SEED = 256, 999


@dataclass(frozen=True, kw_only=True)
class ChainTraining(Recipe):
    """The settings of a run; its seed draws the rows, the first weights and the order of the rows."""

    learning_rate: float = 3e-3
    num_rows: int = 128
    passes: int = 48
    seed: int = 0
    dropout: float | None = None
    """Of a GPT-2, everywhere; None trains a Llama, which has none."""


def chains(count: int, seed: int) -> torch.Tensor:
    """Return rows of tokens, [rows, tokens]; which token follows which is the same for all seeds."""
    successors = random.Random(0).sample(range(_VOCAB), _VOCAB)
    draw, rows = random.Random(seed), []
    for _ in range(count):
        row = [draw.randrange(_VOCAB)]
        while len(row) < _TOKENS:
            row.append(successors[row[-1]] if draw.random() < _RULE else draw.randrange(_VOCAB))
        rows.append(row)
    return torch.tensor(rows)


def entropy() -> float:
    """Return the least loss that any model can reach on rows it hasn't seen, in nats a token."""
    other = (1 - _RULE) / _VOCAB
    rule = _RULE + other
    return -rule * math.log(rule) - (_VOCAB - 1) * other * math.log(other)


def run(training: ChainTraining) -> dict[str, Any]:
    """Train a new model, and return what came of it.

    ``excess`` and ``learnt_by_heart`` are the losses on held-out and on training rows less :func:`entropy`, in nats a
    token: the second falls below 0 where noise is learnt. ``log`` holds the trainer's.
    """
    torch.manual_seed(training.seed)
    model = _untrained(training.dropout)
    rows = chains(training.num_rows, training.seed)
    samples = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in rows]
    trainer = trainer_for(model, samples, training, warmup_steps=5)
    trainer.train()
    model.eval()
    held_out = chains(_HELD_OUT_ROWS, _HELD_OUT_SEED)
    losses = {"excess": held_out, "learnt_by_heart": rows}
    figures = {name: _loss(model, ids) - entropy() for name, ids in losses.items()}
    return {**figures, "log": trainer.state.log_history}


def _untrained(dropout: float | None) -> Any:
    """Return a model of two layers and a width of 64."""
    if dropout is None:
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=_VOCAB,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
            )
        )
    sizes = {"vocab_size": _VOCAB, "n_positions": _TOKENS, "n_embd": 64, "n_inner": 128, "n_layer": 2, "n_head": 4}
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropouts, bos_token_id=0, eos_token_id=0))


@torch.inference_mode()
def _loss(model: Any, ids: torch.Tensor) -> float:
    return float(model(input_ids=ids.to(model.device), labels=ids.to(model.device)).loss)
