"""What differs from pass to pass, and how much of a divergence from the previous prediction is the weights' own."""

import copy
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.training.batching import label_mask
from axolotl_sdft.training.losses.labels import NextToken
from axolotl_sdft.training.noise import DriftMeter, noise_sources, without_noise
from axolotl_sdft.training.trainers import DynSDPBTrainer
from tests.training.micro_batches import EPOCH, make_llama, train, train_logs
from tests.training.teachers.test_prediction import lora
from tests.training.test_trainers import assert_same_parameters

CPU = torch.device("cpu")


def noisy_llama(rate: float = 0.3) -> nn.Module:
    model = make_llama()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = rate
    return model


def one_by_one(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.detach()
    yield from logits[label_mask(inputs)].split(1)


def test_a_model_without_dropout_has_no_source_of_noise():
    assert noise_sources(make_llama()) == []


def test_rates_that_attention_uses_itself_are_found():
    assert noise_sources(noisy_llama())[0] == "model.layers.0.self_attn"


def test_dropout_modules_and_rates_of_the_config_are_found():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=11, attention_probs_dropout_prob=0.0))
    found = noise_sources(model)
    assert "bert.embeddings.dropout" in found
    assert "config.hidden_dropout_prob" in found
    assert "config.attention_probs_dropout_prob" not in found


@pytest.mark.parametrize(("rate", "is_found"), [(0.0, False), (0.1, True)])
def test_the_dropout_of_lora_counts(rate: float, is_found: bool):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=rate)
    assert bool(noise_sources(peft.get_peft_model(make_llama(), config))) is is_found


def test_without_noise_two_passes_agree_and_the_model_trains_on_as_before():
    model, inputs = noisy_llama().train(), EPOCH[0]
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    with without_noise(model):
        first, second = (model(input_ids=inputs["input_ids"]).logits for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_drift_is_the_divergence_that_a_step_makes_without_noise():
    model, inputs = noisy_llama().train(), EPOCH[0]
    mask = label_mask(inputs)
    meter = DriftMeter(every=1)
    before = copy.deepcopy(model).eval()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    meter.measure(0, model, inputs, NextToken(), one_by_one(model, inputs))
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    after = copy.deepcopy(model).eval()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    meter.measure(1, model, EPOCH[1], NextToken(), one_by_one(model, EPOCH[1]))
    expected = 0.0
    for p, q in zip(before[mask].softmax(-1).tolist(), after[mask].softmax(-1).tolist(), strict=True):
        expected += sum(one * torch.tensor(one / other).log().item() for one, other in zip(p, q, strict=True))
    figures = meter.take(CPU, lambda sums: sums)
    assert figures["dynsdpb/drift"] == pytest.approx(expected / int(mask.sum()), rel=1e-3)
    assert figures["dynsdpb/noise"] > 0


def test_noise_is_nothing_where_a_pass_draws_nothing():
    model = make_llama().train()
    meter = DriftMeter(every=1)
    meter.measure(0, model, EPOCH[0], NextToken(), one_by_one(model, EPOCH[0]))
    assert meter.take(CPU, lambda sums: sums) == {"dynsdpb/noise": pytest.approx(0.0, abs=1e-6)}


def test_only_every_so_many_steps_are_measured():
    model = noisy_llama().train()
    meter = DriftMeter(every=3)
    measured = []
    for step in range(7):
        meter.measure(step, model, EPOCH[0], NextToken(), one_by_one(model, EPOCH[0]))
        measured.append(sorted(meter.take(CPU, lambda sums: sums)))
    assert measured == [[], [], ["dynsdpb/noise"], ["dynsdpb/drift"], [], ["dynsdpb/noise"], ["dynsdpb/drift"]]


@pytest.mark.parametrize("adapter", [False, True])
def test_measuring_changes_nothing_that_is_trained(tmp_path: Path, adapter: bool):
    trained = []
    for steps in (0, 1):
        torch.manual_seed(1)
        model = lora(noisy_llama()) if adapter else noisy_llama()
        trainer = train(DynSDPBTrainer, model, [EPOCH], tmp_path, dynsdpb=DynSDPBConfig(drift_steps=steps))
        trained.append(trainer)
    assert_same_parameters(trained[0].model, trained[1].model, rtol=0, atol=0)
    figures = [set().union(*train_logs(trainer)) & {"dynsdpb/drift", "dynsdpb/noise"} for trainer in trained]
    assert figures == [set(), {"dynsdpb/drift", "dynsdpb/noise"}]


def test_training_says_so_where_no_dropout_is_active(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        train(DynSDPBTrainer, make_llama(), [EPOCH[:2]], tmp_path)
    assert "no dropout is active, so successive predictions differ only by one optimizer step" in caplog.text
    assert "lora_dropout: 0.1" in caplog.text


@pytest.mark.parametrize("settings", [{"neftune_noise_alpha": 5.0}, {"dynsdpb": DynSDPBConfig(alpha=0)}])
def test_training_does_not_say_so_where_inputs_are_noisy_or_nothing_is_distilled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict
):
    with caplog.at_level(logging.WARNING):
        train(DynSDPBTrainer, make_llama(), [EPOCH[:2]], tmp_path, **settings)
    assert "no dropout" not in caplog.text
