"""What users combine with DynSDPB on one device: kinds of adapters, quantized weights, noise, checkpointing.

Each trains twice on the same micro-batches: without influence it must be its parent trainer on hand-joined batches,
and with influence it must be distilled from the iteration before.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.training.trainers import DynSDPBTrainer
from tests.training.micro_batches import EPOCH, make_llama, train, train_logs
from tests.training.test_trainers import assert_same_parameters, joined_by_hand

peft = pytest.importorskip("peft")

KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "lora_on_all_linear": {"target_modules": "all-linear"},
    "lora_beside_a_trained_head": {"modules_to_save": ["lm_head"]},
}


def adapted(kind: str) -> Any:
    settings = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **KINDS[kind]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return peft.get_peft_model(make_llama(tie_word_embeddings=False), peft.LoraConfig(**settings))


def assert_plain_without_influence_and_distilled_with_it(model: Any, tmp_path: Path, **settings: Any) -> None:
    epochs = [EPOCH, EPOCH]
    plain = train(Trainer, copy.deepcopy(model), joined_by_hand(epochs, 1), tmp_path, **settings)
    without = train(
        DynSDPBTrainer, copy.deepcopy(model), epochs, tmp_path, dynsdpb=DynSDPBConfig(alpha=0.0), **settings
    )
    assert_same_parameters(without.model, plain.model, rtol=0.0, atol=0.0)
    trainer = train(DynSDPBTrainer, model, epochs, tmp_path, dynsdpb=DynSDPBConfig(alpha=4.0), **settings)
    logs = train_logs(trainer)
    assert all(entry["dynsdpb/kl"] > 0 for entry in logs[1:])
    trained = dict(plain.model.named_parameters())
    moved = [
        (parameter - trained[name]).abs().max() > 0
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad
    ]
    assert any(moved)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_this_kind_trains(tmp_path: Path, kind: str):
    assert_plain_without_influence_and_distilled_with_it(adapted(kind), tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"neftune_noise_alpha": 5.0},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"bf16": True},
        {"max_grad_norm": 0.1, "weight_decay": 0.1, "optim": "adamw_torch"},
        {"label_smoothing_factor": 0.1},
    ],
    ids=lambda settings: " ".join(map(str, settings)),
)
def test_a_setting_of_the_trainer_is_kept(tmp_path: Path, settings: dict[str, Any]):
    assert_plain_without_influence_and_distilled_with_it(adapted("lora"), tmp_path, **settings)


def test_qlora_trains_on_weights_of_four_bits(tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "seed"
    # A width of whole quantization blocks, as all real models have.
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.3)).save_pretrained(folder)
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)

    def quantized() -> Any:
        model = LlamaForCausalLM.from_pretrained(folder, quantization_config=four_bits)
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return peft.get_peft_model(model, lora)

    epochs = [EPOCH, EPOCH]
    plain = train(Trainer, quantized(), joined_by_hand(epochs, 1), tmp_path)
    without = train(DynSDPBTrainer, quantized(), epochs, tmp_path, dynsdpb=DynSDPBConfig(alpha=0.0))
    assert_same_parameters(without.model, plain.model, rtol=0.0, atol=0.0)
    trainer = train(DynSDPBTrainer, quantized(), epochs, tmp_path, dynsdpb=DynSDPBConfig(alpha=4.0))
    assert type(trainer.model.base_model.model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    assert all(entry["dynsdpb/kl"] > 0 for entry in train_logs(trainer)[1:])
