"""Models that are made to compute their loss without logits, as cut cross-entropy and Liger do on a GPU."""

import copy
import importlib
import inspect
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.modeling_outputs import CausalLMOutputWithPast

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.training.batching import label_mask
from axolotl_sdft.training.teachers.prediction import Predictions
from axolotl_sdft.training.trainers import DynSDPBTrainer
from tests.training.micro_batches import EPOCH, make_llama, train, train_logs
from tests.training.teachers.test_prediction import RUNS, lora
from tests.training.test_trainers import assert_same_parameters, joined_by_hand

MEMORIES = ("auto", "logits", "top_k")


def without_logits(model: Any, scale: float = 1.0) -> Any:
    """Let a model in training return its loss alone, as those patches do: the head is never called then.

    Args:
        model: A causal language model, with or without adapters.
        scale: Of the hidden states, between body and head.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    forward, cap = inner.forward, getattr(inner.config, "final_logit_softcapping", None)

    def patched(self: Any, labels: Any = None, num_items_in_batch: Any = None, **inputs: Any) -> Any:
        if labels is None or not self.training:
            if scale != 1.0:
                handle = self.lm_head.register_forward_pre_hook(lambda _, args: (args[0] * scale,))
                outputs = forward(**inputs)
                handle.remove()
                return outputs
            return forward(labels=labels, **inputs)
        hidden = self.base_model(**inputs).last_hidden_state * scale
        logits = torch.nn.functional.linear(hidden, self.lm_head.weight)
        logits = logits if cap is None else torch.tanh(logits / cap) * cap
        loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss)

    patched.__signature__ = inspect.signature(forward.__func__)  # trainers leave out columns that it doesn't name
    inner.forward = types.MethodType(patched, inner)
    return model


@pytest.mark.parametrize("make", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(
    "settings", [{}, {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}], ids=["plain", "accumulation"]
)
def test_the_same_model_is_trained_as_through_logits(tmp_path: Path, make: Any, memory: str, settings: dict[str, Any]):
    config = DynSDPBConfig(alpha=0.8, teacher_storage=memory, top_k=64, chunk_tokens=3)
    runs = [
        train(DynSDPBTrainer, model, [EPOCH] * 2, tmp_path, dynsdpb=config, **settings)
        for model in (make(), without_logits(make()))
    ]
    assert_same_parameters(runs[1].model, runs[0].model, rtol=1e-3, atol=1e-4)
    logs = [train_logs(run) for run in runs]
    for name in ("dynsdpb/ce", "dynsdpb/kl", "dynsdpb/alpha", "dynsdpb/agreement"):
        figures = [[entry[name] for entry in run[1:]] for run in logs]
        assert figures[1] == pytest.approx(figures[0], rel=1e-3)


@pytest.fixture
def liger_forward(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Liger's own forward for Llama, which never calls the head in training; its kernel, for GPUs, is replaced."""
    pytest.importorskip("liger_kernel")
    # What the forward is imported with needs a trainer that newer TRL has dropped.
    trainers = types.ModuleType("liger_kernel.transformers.trainer.orpo_trainer")
    trainers._FSDPForwardRedirection = object
    package = types.ModuleType("liger_kernel.transformers.trainer")
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.trainer", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.trainer.orpo_trainer", trainers)
    llama = importlib.import_module("liger_kernel.transformers.model.llama")

    def loss(hidden_states: Tensor, lm_head_weight: Tensor, labels: Tensor, **_: Any) -> Tensor:
        logits = torch.nn.functional.linear(hidden_states, lm_head_weight)[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())

    monkeypatch.setattr(llama, "LigerForCausalLMLoss", loss)
    return llama.lce_forward


@pytest.mark.parametrize("make", [make_llama, lambda: lora(make_llama())], ids=["all parameters", "adapters"])
def test_ligers_own_forward_trains_the_same_model(tmp_path: Path, make: Any, liger_forward: Any):
    config = DynSDPBConfig(alpha=0.8)
    reference = train(DynSDPBTrainer, make(), [EPOCH] * 2, tmp_path, dynsdpb=config)
    model = make()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.forward = types.MethodType(liger_forward, inner)
    inner.accepts_loss_kwargs = False  # the replaced kernel divides by the labels of the batch
    trainer = train(DynSDPBTrainer, model, [EPOCH] * 2, tmp_path, dynsdpb=config)
    assert_same_parameters(trainer.model, reference.model, rtol=1e-3, atol=1e-4)
    assert all(entry["dynsdpb/kl"] > 0 for entry in train_logs(trainer)[1:])


@pytest.mark.parametrize("make", [make_llama, lambda: lora(make_llama())], ids=["all parameters", "adapters"])
def test_without_influence_it_is_plain_training_on_the_joined_batches(tmp_path: Path, make: Any):
    settings = {"optim": "adamw_torch", "learning_rate": 0.01, "max_grad_norm": 1.0}
    epochs = [EPOCH] * 4
    plain = train(Trainer, without_logits(make()), joined_by_hand(epochs, 1), tmp_path, **settings)
    config = DynSDPBConfig(alpha=0.0)
    trainer = train(DynSDPBTrainer, without_logits(make()), epochs, tmp_path, dynsdpb=config, **settings)
    assert trainer.state.global_step == plain.state.global_step == 20
    assert_same_parameters(trainer.model, plain.model, rtol=0.0, atol=0.0)


def test_logits_exist_for_one_block_of_tokens_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("axolotl_sdft.training.teachers.previous_prediction._HEAD_TOKENS", 4)
    model, sizes = without_logits(lora(make_llama())), []
    model.get_output_embeddings().register_forward_hook(lambda head, args, output: sizes.append(output.numel() // 64))
    config = DynSDPBConfig(chunk_tokens=2)
    trainer = train(DynSDPBTrainer, model, [EPOCH], tmp_path, dynsdpb=config)
    # The first call tells what the model does to its logits: seven tokens without labels.
    assert sizes[0] == 7
    assert max(sizes[1:]) == 4
    tokens = sum(label_mask(batch).sum().item() for batch in EPOCH[:-1])
    assert sum(sizes[1:]) == 2 * tokens, "once for the previous prediction, once for the present one"
    assert trainer.model.training


def probed(model: nn.Module) -> Predictions:
    """Read a pass of this model in training, for which it runs once more, without labels."""
    predictions, batch = Predictions(model, DynSDPBConfig()), EPOCH[0]
    with predictions.watched() as seen:
        model(**batch)
    predictions.read(seen, None, label_mask(batch), batch)
    return predictions


def test_no_module_ever_changes_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = without_logits(make_llama(attention_dropout=0.2)).train()
    model.model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    monkeypatch.setattr(nn.Module, "train", lambda module, mode=True: pytest.fail(f"{type(module)} set to {mode}"))
    seen: dict[str, bool] = {}
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda module, _, name=name: seen.update({name: module.training}))
    probed(model)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert seen
    assert seen == {name: modes[name] for name in seen}


def test_random_numbers_and_running_statistics_are_as_before():
    model = without_logits(make_llama(attention_dropout=0.5)).train()
    model.model.norm = nn.Sequential(model.model.norm, Statistics())
    torch.manual_seed(11)
    model(**EPOCH[0])
    state, statistics = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    torch.manual_seed(11)
    model.model.norm[1].norm.reset_running_stats()
    probed(model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(model.state_dict(), statistics, rtol=0.0, atol=0.0)


class Statistics(nn.Module):
    """Counts what passes, and leaves it as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, hidden: Tensor) -> Tensor:
        self.norm(hidden.flatten(0, 1))
        return hidden


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_probed_without_a_warning(reentrant: bool):
    model = without_logits(make_llama()).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probed(model)


def test_four_bit_weights_give_the_gradients_that_they_gave_before(tmp_path: Path):
    # On a CPU with AVX512-BF16 a pass in evaluation mode repacks them, and gradients are wrong from then on.
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = make_llama(hidden_size=64, intermediate_size=128)
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            plain = getattr(layer.mlp, name)
            quantized = bitsandbytes.nn.Linear4bit(plain.in_features, plain.out_features, bias=False, quant_type="nf4")
            quantized.load_state_dict(plain.state_dict())
            setattr(layer.mlp, name, quantized)
    model = without_logits(lora(model.to("cpu"))).train()

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(**EPOCH[0]).loss.backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    before = gradients()
    probed(model)
    assert before
    torch.testing.assert_close(gradients(), before, rtol=0.0, atol=0.0)
    if getattr(bitsandbytes.nn.modules, "has_avx512bf16", bool)():  # where evaluation does harm, this test can tell
        with torch.no_grad():
            model.eval()(input_ids=EPOCH[0]["input_ids"])
        model.train()
        assert any((value - before[name]).norm() > 0.01 * before[name].norm() for name, value in gradients().items())


@pytest.mark.parametrize(
    ("model", "can_watch", "reason"),
    [
        (without_logits(make_llama(), scale=0.5), True, "what its body gives can't be turned into them here"),
        (without_logits(make_llama()), False, "its output head is sharded over ranks or compiled"),
    ],
    ids=["a body that does not feed the head", "a head that can't be run"],
)
def test_where_logits_cannot_be_made_it_is_refused_with_the_way_out(model: Any, can_watch: bool, reason: str):
    predictions, batch = Predictions(model.train(), DynSDPBConfig(), can_watch=can_watch), EPOCH[0]
    with predictions.watched() as seen:
        model(**batch)
    with pytest.raises(ConfigError, match=rf"without logits, and {reason}.*; switch off .*cut_cross_entropy"):
        predictions.read(seen, None, label_mask(batch), batch)
