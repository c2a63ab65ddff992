"""Parts and activations of tiny models, against what their sizes give by hand and what a real step on a CPU keeps."""

import peft
import pytest
import torch
import transformers

from axolotl_sdft.configs.memory import activation_bytes, lora_input_bytes
from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.pruning.planning.model_shape import Matrix, read_model_shape
from tests.pruning.without_content import runs_without_content

HIDDEN, INNER, VOCABULARY, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 192, 512, 6, 4, 2, 16
LLAMA = {
    "model_type": "llama",
    **{"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS},
    **{"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True},
}
QUERY, KEY = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
LAYER = 2 * HIDDEN * QUERY + 2 * HIDDEN * KEY + 3 * HIDDEN * INNER + 2 * HIDDEN


def kept(number_bytes, are_trained=True):
    """Bytes that one token leaves in one layer, counted by hand from what each operation needs of its inputs."""
    # Each norm: its input in float32, and one scale; for its weight the normalised input, for theirs the projections'
    # input.
    norms = 2 * (4 * HIDDEN + 4) + are_trained * 2 * 2 * number_bytes * HIDDEN
    attention = number_bytes * (2 * QUERY + 2 * KEY) + 4 * HEADS  # q, k, v, output; a normaliser for each head
    mlp = (3 + are_trained) * number_bytes * INNER  # gate, its activation, up; for the last weight their product
    return norms + attention + mlp


@pytest.mark.parametrize(("tied", "outside"), [(True, 1), (False, 2)])
@runs_without_content
def test_parameters_are_counted_by_layer_and_tied_ones_once(tied, outside):
    shape = read_model_shape({**LLAMA, "tie_word_embeddings": tied}, "float32")
    assert shape.layer_parameters == (LAYER,) * LAYERS
    assert shape.other_parameters == outside * VOCABULARY * HIDDEN + HIDDEN
    assert shape.parameters == LAYERS * LAYER + shape.other_parameters


@runs_without_content
def test_the_matrices_are_the_linear_layers_without_the_output_head():
    shape = read_model_shape({**LLAMA, "tie_word_embeddings": False}, "float32")
    assert len(shape.matrices) == 7 * LAYERS
    assert shape.matrices[0] == Matrix("model.layers.0.self_attn.q_proj", 0, HIDDEN, QUERY)
    assert sum(matrix.parameters for matrix in shape.matrices) == LAYERS * (LAYER - 2 * HIDDEN)


@pytest.mark.parametrize(("dtype", "number_bytes"), [("float32", 4), ("bfloat16", 2)])
@runs_without_content
def test_activations_are_what_the_operations_of_a_layer_need_again(dtype, number_bytes):
    counted = read_model_shape(LLAMA, dtype).activation_bytes
    expected = kept(number_bytes)
    # The rotary angles and the last norm are spread over the layers.
    assert expected <= counted <= 1.1 * expected


@pytest.mark.parametrize(("dtype", "number_bytes"), [("float32", 4), ("bfloat16", 2)])
@runs_without_content
def test_frozen_weights_do_not_need_what_goes_into_them(dtype, number_bytes):
    counted = read_model_shape(LLAMA, dtype).frozen_activation_bytes
    expected = kept(number_bytes, are_trained=False)
    assert expected <= counted <= 1.1 * expected


@pytest.mark.parametrize("is_autocast", [True, False])
@runs_without_content
def test_lora_keeps_as_much_in_a_real_pass_as_is_calculated(is_autocast):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).bfloat16().train()
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    shape, tokens = read_model_shape(LLAMA, "bfloat16"), 128
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def count(tensor):
        if tensor.untyped_storage().data_ptr() not in weights and tensor.shape[-1] != VOCABULARY:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=is_autocast),
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
    ):
        ids_BT = torch.randint(3, VOCABULARY, (1, tokens))
        model(input_ids=ids_BT, use_cache=False)
    found = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    inputs = lora_input_bytes(shape, None, 2 if is_autocast else 4)
    assert activation_bytes(shape, tokens, checkpointed=False, lora_inputs=inputs) == pytest.approx(found, rel=0.1)


@runs_without_content
def test_experts_count_with_what_the_chosen_ones_keep_and_not_with_copies_of_their_weights():
    experts = {"model_type": "qwen3_moe", "num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    few = read_model_shape({**LLAMA, **experts}, "bfloat16").activation_bytes
    many = read_model_shape({**LLAMA, **experts, "num_experts_per_tok": 4}, "bfloat16").activation_bytes
    assert few is not None
    assert few < many < 2 * few


@runs_without_content
def test_a_model_whose_layers_can_t_run_has_no_activations_and_says_why(monkeypatch):
    def forward(*_args, **_kwargs):
        raise RuntimeError("needs content")

    monkeypatch.setattr(transformers.LlamaModel, "forward", forward)
    shape = read_model_shape(LLAMA, "float32")
    assert (shape.activation_bytes, shape.fault) == (None, "needs content")
    assert shape.layer_parameters == (LAYER,) * LAYERS


def test_a_type_that_transformers_does_not_know_is_refused():
    with pytest.raises(CheckpointError, match=r"can't be built from its config.json alone: .*of_my_own"):
        read_model_shape({**LLAMA, "model_type": "of_my_own"}, "float32")
