"""Bytes against values worked out by hand, and a whole training step against what torch allocates for it on a CPU."""

import pytest
import torch
import transformers

from axolotl_sdft.configs.memory import (
    MemoryNeed,
    Quantized,
    activation_bytes,
    cache_bytes,
    logit_bytes,
    lora_parameters,
    optimizer_bytes,
    recomputed_bytes,
    weight_bytes,
    without_layers,
)
from axolotl_sdft.pruning.planning.model_shape import Matrix, ModelShape, read_model_shape
from axolotl_sdft.pruning.planning.token_costs import TokenCosts
from tests.pruning.without_content import runs_without_content

# Two layers with one matrix of 6 by 10 and a norm of 4 each; embeddings and the rest 80.
MATRICES = tuple(Matrix(f"model.layers.{layer}.up_proj", layer, 6, 10) for layer in (0, 1))
SHAPE = ModelShape("bfloat16", (64, 64), 80, MATRICES, 6, 20, 100, TokenCosts(48, 4, 1))


def test_weights_take_the_bytes_of_their_dtype():
    assert weight_bytes(SHAPE, "bfloat16") == 2 * 208
    assert weight_bytes(SHAPE, "float32") == 4 * 208


def test_quantized_weights_keep_the_dtype_outside_of_the_matrices():
    rest = 2 * (208 - 120)
    # Half a byte, and a scale for 64 numbers: 4 bytes, or 1 byte and 4 more for 256 scales.
    assert weight_bytes(SHAPE, "bfloat16", Quantized(4)) == rest + round(120 * (0.5 + 4 / 64))
    assert weight_bytes(SHAPE, "bfloat16", Quantized(4, double=True)) == rest + round(120 * (0.5 + (1 + 1 / 64) / 64))
    assert weight_bytes(SHAPE, "bfloat16", Quantized(8)) == rest + 120 + 2 * 10 * 4  # a scale for each of 10 outputs


def test_lora_trains_two_thin_matrices_for_each_that_it_adapts():
    assert lora_parameters(SHAPE, 3, None) == 2 * 3 * (6 + 10)
    assert lora_parameters(SHAPE, 3, {"model.layers.1.up_proj"}) == 3 * (6 + 10)


@pytest.mark.parametrize(
    ("optimizer", "dtype", "expected"),
    [
        ("adamw_torch", "float32", 8000),
        ("adamw_torch_fused", "bfloat16", 4000),
        ("adamw_bnb_8bit", "float32", 2031),  # two states of a byte, with 4 bytes for 256 numbers
        ("muon", "float32", 4000),
        ("sgd", "float32", 0),
    ],
)
def test_an_optimizer_keeps_its_states_for_each_trained_number(optimizer, dtype, expected):
    assert optimizer_bytes(optimizer, 1000, dtype) == (expected, None)


def test_an_optimizer_that_is_not_known_counts_like_adamw_and_that_is_said():
    assert optimizer_bytes("my_own", 10, "float32") == (80, "optimizer my_own is not known here and counted like AdamW")


def test_with_gradient_checkpointing_only_the_inputs_of_the_layers_are_kept():
    assert activation_bytes(SHAPE, 5, checkpointed=False) == 5 * 2 * 100
    assert activation_bytes(SHAPE, 5, checkpointed=True) == 5 * 2 * 6 * 2
    assert recomputed_bytes(SHAPE, 5) == 5 * 100


def test_logits_give_three_arrays_in_float32_when_their_loss_is_differentiated():
    assert logit_bytes(SHAPE, 5) == 5 * 20 * 3 * 4


def test_the_cache_grows_with_tokens_and_states_with_rows():
    assert cache_bytes(SHAPE, 100, 3) == 100 * 48 + 3 * 4


def test_without_layers_their_share_of_all_is_gone():
    pruned = without_layers(SHAPE, [0])
    assert (pruned.parameters, pruned.matrices, pruned.costs.cache_bytes) == (144, MATRICES[1:], 24)


def test_the_total_of_a_need_is_the_sum_of_its_parts():
    assert MemoryNeed("training", {"weights": 3, "logits": 4}).total == 7


TINY = {
    **{"model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
ROWS, LENGTH = 4, 96


@pytest.mark.parametrize("checkpointed", [False, True])
@runs_without_content
def test_a_training_step_on_a_cpu_allocates_what_was_calculated(checkpointed):
    tracker = pytest.importorskip("torch.distributed._tools.mem_tracker")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY)).train()
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters())
    ids_BT = torch.randint(3, 500, (ROWS, LENGTH))

    def step():
        model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    step()  # makes gradients and states
    tracked = tracker.MemTracker()
    tracked.track_external(model, optimizer)
    with tracked:
        step()
    (peak,) = tracked.get_tracker_snapshot("peak").values()
    by_kind = {getattr(kind, "value", kind): size for kind, size in peak.items()}

    shape = read_model_shape(TINY, "float32")
    assert weight_bytes(shape, "float32") == by_kind["Parameter"]
    assert 4 * shape.parameters == by_kind["Gradient"]
    states, _ = optimizer_bytes("adamw_torch", shape.parameters, "float32")
    assert states == pytest.approx(by_kind["Optstate"], rel=0.001)  # and a count of steps for each tensor
    tokens = ROWS * LENGTH
    moment = max(logit_bytes(shape, tokens), recomputed_bytes(shape, tokens) if checkpointed else 0)
    whole = 2 * 4 * shape.parameters + states + activation_bytes(shape, tokens, checkpointed) + moment
    assert whole == pytest.approx(by_kind["Total"], rel=0.15)
