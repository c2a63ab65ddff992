"""A model that is scored can be trained afterwards as if it had not been."""

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from axolotl_sdft import score_layers
from axolotl_sdft.pruning.scoring.running import evaluating

IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(1))


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 64}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=4, **sizes)).train()


def in_four_bits(model: LlamaForCausalLM) -> LlamaForCausalLM:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            plain = getattr(layer.mlp, name)
            quantized = bitsandbytes.nn.Linear4bit(plain.in_features, plain.out_features, bias=False, quant_type="nf4")
            quantized.load_state_dict(plain.state_dict())
            setattr(layer.mlp, name, quantized)
    return model.to("cpu")


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("metric", ["block_influence", "perplexity"])
def test_four_bit_weights_give_the_gradients_after_scoring_that_they_gave_before(metric):
    model = in_four_bits(tiny_model())
    before = gradients(model)
    score_layers(model, [{"input_ids": IDS}], metric, num_layers=1)
    assert all(module.training for module in model.modules())
    assert before
    torch.testing.assert_close(gradients(model), before, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("is_training", [True, False])
def test_dropout_is_off_while_scores_are_taken_and_every_mode_comes_back(is_training):
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5))).train(is_training)
    model[2].eval()
    values = torch.ones(1, 8)
    with evaluating(model):
        assert torch.equal(model(values), model(values))
        assert not torch.is_grad_enabled()
    assert [module.training for module in model] == [is_training, is_training, False]
    assert model[2][0].training is False
    assert model.training is is_training
