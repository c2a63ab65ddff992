"""The control that DynSDPB is measured against."""

import pytest
import torch
from torch.nn.functional import kl_div
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from tests.benchmarks.effect_trainer import RDropTrainer

IDS = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])


def model_with(dropout):
    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "n_positions": 4, "n_embd": 8, "n_layer": 1, "n_head": 2}
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropouts, bos_token_id=0, eos_token_id=0)).train()


def loss_of(model, folder, weight, labels=IDS):
    args = TrainingArguments(str(folder), report_to="none", use_cpu=True)
    trainer = RDropTrainer(model=model, args=args, weight=weight)  # sets a random seed of its own
    torch.manual_seed(1)
    return trainer.compute_loss(model, {"input_ids": IDS, "labels": labels})


def test_r_drop_without_dropout_is_plain_training(tmp_path):
    model = model_with(0.0)

    assert loss_of(model, tmp_path, weight=5.0).item() == pytest.approx(model(input_ids=IDS, labels=IDS).loss.item())


def test_r_drop_adds_half_of_the_divergence_in_either_direction(tmp_path):
    model = model_with(0.4)
    torch.manual_seed(1)
    outputs = model(input_ids=torch.cat([IDS, IDS]), labels=torch.cat([IDS, IDS]))
    first, second = (outputs.logits[rows, :-1].reshape(-1, 8).log_softmax(-1) for rows in (slice(0, 2), slice(2, 4)))
    both_ways = [kl_div(a, b, reduction="batchmean", log_target=True) for a, b in ((first, second), (second, first))]

    loss = loss_of(model, tmp_path, weight=3.0)

    assert both_ways[0] > 0
    assert loss.item() == pytest.approx((outputs.loss + 3.0 * sum(both_ways) / 2).item(), rel=1e-5)


def test_r_drop_counts_label_tokens_alone(tmp_path):
    model = model_with(0.4)
    labels = torch.tensor([[-100, -100, 3, 4], [-100, 3, 2, -100]])
    torch.manual_seed(1)
    outputs = model(input_ids=torch.cat([IDS, IDS]), labels=torch.cat([labels, labels]))
    predicting = [(0, 1), (0, 2), (1, 0), (1, 1)]  # row and token whose next one has a label
    first, second = (
        torch.stack([outputs.logits[half + row, token] for row, token in predicting]).log_softmax(-1) for half in (0, 2)
    )
    both_ways = [kl_div(a, b, reduction="batchmean", log_target=True) for a, b in ((first, second), (second, first))]

    loss = loss_of(model, tmp_path, weight=3.0, labels=labels)

    assert loss.item() == pytest.approx((outputs.loss + 3.0 * sum(both_ways) / 2).item(), rel=1e-5)
