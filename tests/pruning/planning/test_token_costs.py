"""Bytes and operations of one token, against what the sizes of tiny models give by hand."""

import pytest
import transformers

from axolotl_sdft.pruning.planning import token_costs as token_costs_module
from axolotl_sdft.pruning.planning.token_costs import TokenCosts, _measured_once, token_costs
from tests.pruning.without_content import keeps_states_in_caches, runs_without_content

HIDDEN, INNER, VOCABULARY, LAYERS, HEAD_DIM = 16, 24, 100, 6, 8
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
MAMBA = transformers.MambaConfig(vocab_size=100, hidden_size=16, num_hidden_layers=6, state_size=4, conv_kernel=4)
HEAD = HIDDEN * VOCABULARY
ANGLES = HEAD_DIM // 2


def costs_of(config, dtype="bfloat16"):
    return token_costs(config.to_diff_dict() | {"model_type": config.model_type}, dtype)


def attention(kv_heads, heads=2):
    """Multiply-adds of q, k, v and o, and of one token's attention to itself: one product with k, one with v."""
    return 2 * HIDDEN * heads * HEAD_DIM + 2 * HIDDEN * kv_heads * HEAD_DIM + 2 * heads * HEAD_DIM


def operations(multiply_adds):
    """Two for each; some versions of transformers count the rotary angles, a position times each frequency, as well."""
    return 2 * multiply_adds, 2 * (multiply_adds + ANGLES)


@runs_without_content
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_a_llama_keeps_keys_and_values_of_its_key_value_heads_only(kv_heads):
    costs = costs_of(transformers.LlamaConfig(**SIZES, num_key_value_heads=kv_heads))
    assert costs.flops in operations(LAYERS * (attention(kv_heads) + 3 * HIDDEN * INNER) + HEAD)
    # keys and values, each kv_heads x 8 numbers of 2 bytes in each of 6 layers
    assert (costs.cache_bytes, costs.state_bytes) == (2 * kv_heads * HEAD_DIM * 2 * LAYERS, 0)


@runs_without_content
def test_the_cache_has_the_format_of_the_checkpoint():
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=1)
    assert costs_of(config, "float32").cache_bytes == 2 * costs_of(config, "bfloat16").cache_bytes


@runs_without_content
def test_only_the_experts_chosen_for_a_token_count():
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    costs = costs_of(transformers.Qwen3MoeConfig(**SIZES, **experts, num_key_value_heads=1, head_dim=HEAD_DIM))
    router, chosen = HIDDEN * 8, 2 * 3 * HIDDEN * 12
    assert costs.flops in operations(LAYERS * (attention(1) + router + chosen) + HEAD)


@runs_without_content
def test_latent_attention_keeps_the_latent_and_one_rotary_key():
    latent = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
    config = transformers.DeepseekV3Config(
        **SIZES, **latent, **experts, num_key_value_heads=2, moe_intermediate_size=12, first_k_dense_replace=1
    )
    assert costs_of(config).cache_bytes == LAYERS * (8 + 4) * 2  # not 2 heads x (12 + 8)


@keeps_states_in_caches
def test_a_recurrent_model_keeps_a_state_that_does_not_grow():
    inner = 2 * 16
    state, window = inner * 4, inner * 4
    projections = 16 * 2 * inner + inner * (1 + 4 + 4) + 1 * inner + inner * 16  # in, x, dt and out; dt has rank 1
    costs = costs_of(MAMBA, "float32")
    assert (costs.cache_bytes, costs.state_bytes) == (0, LAYERS * (state + window) * 4)
    assert costs.flops >= 2 * (LAYERS * projections + HEAD)


@keeps_states_in_caches
def test_a_class_that_a_kernel_package_registers_for_a_type_is_not_measured(monkeypatch):
    class MambaConfig(transformers.PretrainedConfig):
        model_type = "mamba"
        __module__ = "fla.models.mamba"

        def __init__(self, **settings):
            raise RuntimeError("0 active drivers")

    expected = costs_of(MAMBA, "float32")
    monkeypatch.setitem(transformers.CONFIG_MAPPING._extra_content, "mamba", MambaConfig)
    _measured_once.cache_clear()

    with pytest.raises(RuntimeError, match="active drivers"):
        transformers.AutoConfig.for_model("mamba")
    assert costs_of(MAMBA, "float32") == expected


@runs_without_content
def test_models_of_one_shape_are_measured_once(monkeypatch):
    expected = costs_of(transformers.LlamaConfig(**SIZES, num_key_value_heads=2))
    monkeypatch.setattr(token_costs_module, "_measured", lambda _model: pytest.fail("measured again"))
    assert costs_of(transformers.LlamaConfig(**SIZES, num_key_value_heads=2)) == expected


@runs_without_content
@keeps_states_in_caches
def test_a_hybrid_model_has_a_cache_and_a_state():
    linear = {"linear_num_value_heads": 2, "linear_num_key_heads": 1}
    linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4}
    kinds = {"layer_types": ["linear_attention"] * 5 + ["full_attention"]}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    experts["shared_expert_intermediate_size"] = 12
    config = transformers.Qwen3NextConfig(
        **SIZES, **linear, **kinds, **experts, num_key_value_heads=1, head_dim=HEAD_DIM
    )
    costs = costs_of(config, "float32")
    matrices, window = 2 * 8 * 8, (8 + 8 + 2 * 8) * 4  # one matrix a head; the last 4 inputs of q, k and v
    assert costs.cache_bytes == 2 * HEAD_DIM * 4  # of the one layer with full attention
    assert costs.state_bytes == 5 * (matrices + window) * 4


def test_an_encoder_has_no_cache():
    config = transformers.BertConfig(**SIZES, architectures=["BertForMaskedLM"])
    costs = costs_of(config)
    layer = 4 * HIDDEN * HIDDEN + 2 * HIDDEN + 2 * HIDDEN * INNER
    head = HIDDEN * HIDDEN + HEAD  # a transform before the vocabulary
    assert costs == TokenCosts(None, None, 2 * (LAYERS * layer + head))


def test_quantized_weights_count_as_the_matrices_they_stand_for():
    plain = transformers.LlamaConfig(**SIZES, num_key_value_heads=1).to_diff_dict() | {"model_type": "llama"}
    packed = plain | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    assert token_costs(packed, "float16") == token_costs(plain, "float16")


def test_a_model_that_transformers_does_not_know_is_said_to_be_unknown():
    costs = token_costs({"model_type": "of_my_own"}, "bfloat16")
    assert (costs.cache_bytes, costs.state_bytes, costs.flops) == (None, None, None)
    assert "of_my_own" in costs.fault
