from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PretrainedConfig,
)

from axolotl_sdft.training.losses.head import (
    find_body,
    find_head,
    head_gives,
    infer_logit_transform,
    is_frozen,
    sampled,
    watched,
)
from axolotl_sdft.training.teachers.previous_prediction import identity
from tests.training.micro_batches import make_llama

TINY = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "pad_token_id": 0}
TINY |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.3}
TINY |= {"bos_token_id": 1, "eos_token_id": 2}

FINISHING = {
    "returned as they are": LlamaConfig(**TINY),
    "capped": Gemma2Config(**TINY, final_logit_softcapping=2.0),
    "multiplied": CohereConfig(**TINY, logit_scale=0.25),
    "divided": GraniteConfig(**TINY, logits_scaling=3.0),
    "multiplied beside the head": FalconH1Config(
        **TINY, lm_head_multiplier=0.5, mamba_d_ssm=16, mamba_n_heads=2, mamba_d_head=8, mamba_d_state=4
    ),
}


def passed(model: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, head output and logits of a pass, one row for each position."""
    with torch.no_grad(), watched(find_head(model), None) as seen:
        logits = model(torch.arange(3, 15).view(2, 6)).logits
    (call,) = seen.calls
    return call.hidden.flatten(0, 1), call.raw.flatten(0, 1), logits.flatten(0, 1)


@pytest.mark.parametrize("config", FINISHING.values(), ids=FINISHING)
def test_logits_are_made_again_from_what_goes_into_the_head(config: PretrainedConfig):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    hidden, raw, logits = passed(model)
    logit_transform = infer_logit_transform(logits, raw, config)
    assert head_gives(model.lm_head, hidden, raw)
    torch.testing.assert_close(logit_transform(model.lm_head(hidden)), logits, rtol=1e-5, atol=1e-6)
    assert (logit_transform is identity) == isinstance(config, LlamaConfig)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_and_a_cap_can_come_together(scale: float, cap: float | None, dtype: torch.dtype):
    raw = (8 * torch.randn(4, 50)).to(dtype)
    logits = raw * scale if cap is None else torch.tanh(raw * scale / cap) * cap
    config = PretrainedConfig(output_multiplier=scale, final_logit_softcapping=cap)
    torch.testing.assert_close(infer_logit_transform(logits, raw, config)(raw), logits)


def test_what_the_configuration_does_not_explain_is_not_guessed():
    raw = torch.randn(4, 50)
    # So small that a cap of 1000 hardly shows.
    assert infer_logit_transform(torch.tanh(raw / 1000) * 1000, raw, PretrainedConfig()) is None
    assert infer_logit_transform(raw + 1, raw, PretrainedConfig(logit_scale=2.0)) is None


def test_mixed_precision_that_only_widens_the_logits_is_seen_through():
    raw = torch.randn(4, 50).bfloat16()
    assert infer_logit_transform(raw.float(), raw, PretrainedConfig()) is identity


def test_another_head_is_noticed():
    model = make_llama()
    hidden, raw, _ = passed(model)
    assert not head_gives(nn.Linear(16, 64), hidden, raw)
    assert not head_gives(nn.Linear(16, 63), hidden, raw)


def test_the_head_is_watched_only_while_the_block_runs():
    head = nn.Linear(3, 4)
    with watched(head, None) as seen:
        output = head(torch.ones(1, 2, 3))
    head(torch.ones(1, 2, 3))
    assert [call.raw is output for call in seen.calls] == [True]
    with watched(None, None) as nothing:
        head(torch.ones(1, 2, 3))
    assert (nothing.calls, nothing.hidden) == ([], None)


@pytest.mark.parametrize("adapters", [False, True])
def test_what_the_body_gives_is_what_goes_into_the_head(adapters: bool):
    model = make_llama()
    if adapters:
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with watched(find_head(model), find_body(model)) as seen:
        model(torch.arange(3, 15).view(2, 6))
    (call,) = seen.calls
    assert torch.equal(seen.hidden, call.hidden)


def test_a_body_that_gives_nothing_of_the_kind_is_seen_to_give_none():
    with watched(None, nn.Linear(3, 4)) as seen:
        pass
    assert seen.hidden is None
    body = nn.Linear(3, 4)
    with watched(None, body) as seen:
        body(torch.ones(1, 2, 3))
    assert seen.hidden is None
    assert find_body(nn.Linear(3, 4)) is None


def test_a_model_that_names_no_head_has_none():
    assert find_head(nn.Linear(2, 2)) is None
    assert find_head(make_llama()) is not None


def test_a_head_is_frozen_when_nothing_in_it_is_trained():
    peft = pytest.importorskip("peft")
    assert not is_frozen(make_llama().lm_head)
    settings = {"r": 2, "task_type": "CAUSAL_LM"}
    adapters = {
        "frozen": peft.LoraConfig(**settings, target_modules=["q_proj"]),
        "adapted": peft.LoraConfig(**settings, target_modules=["q_proj", "lm_head"]),
        "trained": peft.LoraConfig(**settings, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    }
    found = {
        name: is_frozen(find_head(peft.get_peft_model(make_llama(), adapter))) for name, adapter in adapters.items()
    }
    assert found == {"frozen": True, "adapted": False, "trained": False}


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (16, 16), (17, 9), (1000, 16)])
def test_a_few_positions_are_sampled_evenly(count: int, expected: int):
    positions = sampled(torch.arange(count))
    assert len(positions) == expected
    assert len(positions.diff().unique()) <= 1
