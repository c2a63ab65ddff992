"""Tiny random models of every model type that transformers knows, made by rules and a table of exceptions."""

import inspect
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

NUM_LAYERS = 6
VOCABULARY = 67
_MOST_PARAMETERS = 1_000_000
_COUNTS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"),
    *("num_decoder_layers", "num_encoder_layers", "depth", "num_blocks"),
)
_HEADS = (
    *("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "decoder_attention_heads"),
    *("encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"),
)
_WIDTHS = (
    *("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "attention_hidden_size"),
    *("word_embed_proj_dim", "lru_width", "backbone_hidden_size", "out_hidden_size", "embedding_dim", "dim"),
    *("input_embedding_size", "output_embedding_size"),
)
_INNER = (
    *("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "dff", "dim_ff", "d_inner"),
    *("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp", "expert_ffn_hidden_size"),
    *("prefix_dense_intermediate_size", "dense_intermediate_size", "moe_shared_expert_intermediate_size"),
    *("ffn_hidden_size", "mlp_dim", "hidden_dim", "d_ff", "shared_intermediate_size"),
)
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "num_experts_per_layer")
_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
_WINDOWS = ("sliding_window", "sliding_window_size", "window_size", "attention_window_size", "local_attention")

# One small value for each setting that decides a size, whatever the model type. The window is shorter than the texts.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    **dict.fromkeys(_COUNTS, NUM_LAYERS),
    **dict.fromkeys(_WIDTHS, 32),
    **dict.fromkeys(_HEADS, 4),
    **dict.fromkeys(_INNER, 48),
    **dict.fromkeys(_EXPERTS, 4),
    **dict.fromkeys(_CHOSEN, 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(_WINDOWS, 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "kv_n_heads", "num_query_groups"), 2),
    **dict.fromkeys(("head_dim", "dim_head", "d_head", "kv_channels", "attention_head_size", "v_head_dim", "d_kv"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 64),
    # Low-rank and sparse attention.
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "moe_latent_size", "gated_norm_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim", "index_topk", "lsh_attn_chunk_length"), 4),
    **dict.fromkeys(("qk_nope_head_dim", "index_head_dim", "swa_head_dim", "d_rel", "indexer_head_dim"), 8),
    **dict.fromkeys(("index_n_heads", "o_groups", "swa_num_key_value_heads", "indexer_n_heads"), 2),
    "swa_num_attention_heads": 4,
    # Linear attention and state spaces: twice the hidden size is 8 heads of 8.
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head", "mamba_num_heads", "mamba_head_dim", "mamba_headdim"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank", "linear_num_value_heads", "attention_chunk_size"), 4),
    **dict.fromkeys(("linear_num_key_heads", "n_groups", "mamba_n_groups", "mamba_ngroups"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    "linear_num_heads": 4,
    "mamba_d_ssm": 64,
    # Per-layer embeddings, pictures and sounds.
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank", "router_hidden_size", "adapter_rank"), 8),
    **dict.fromkeys(("image_size", "crop_size"), 32),
    **dict.fromkeys(("pronunciation_vocab_size", "shape_vocab_size", "prompt_types", "segment_types"), 16),
    **dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim", "output_channels"), 8),
}


# What the rules above leave too large or at odds, by model type. Keys with a dot belong to a nested config.
SPECIAL: dict[str, dict[str, Any]] = {
    "aria_text": {"moe_num_experts": 4},
    "bamba": {"attn_layer_indices": [2, 5]},
    "blt": {
        "encoder_hash_byte_group_vocab": 31,
        "max_patch_length": 4,
        "encoder_config.num_hidden_layers": 1,
        "decoder_config.num_hidden_layers": 3,
        "patcher_config.num_hidden_layers": 2,
        "encoder_config.hidden_size_global": 32,
        "decoder_config.hidden_size_global": 32,
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
    },
    "dbrx": {"attn_config.rope_theta": 1e4, "attn_config.clip_qkv": 8},
    "codegen": {"n_head": 4, "rotary_dim": 4},
    "dots1": {"n_shared_experts": 1},
    **{
        f"{family}_assistant": {
            "text_config.model_type": f"{family}_text",
            "text_config.hidden_size_per_layer_input": 0,
            "text_config.vocab_size_per_layer_input": 0,
        }
        for family in ("gemma4", "gemma4_unified")
    },
    "gemma4": {"vision_config.position_embedding_size": 16, "audio_config": None},
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"] * 3, "num_kv_shared_layers": 2},
    "gemma4_unified": {
        "vision_config.mm_embed_dim": 32,
        "vision_config.mm_posemb_size": 16,
        "vision_config.output_proj_dims": 32,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 3]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2},
    "inkling_text": {"rel_extent": 16},
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention"] * 2},
    "longcat_flash": {"head_dim": 4, "zero_expert_num": 2},
    "mamba2": {"hidden_size": 32, "num_heads": 8, "head_dim": 8},
    "mllama": {"text_config.cross_attention_layers": [3]},
    "rwkv": {"rescale_every": 0},
    "nemotron_h": {"layers_block_type": ["linear_attention", "full_attention", "moe"] * 2},
    **{
        name: {"text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"}, "decoder": {}}
        for name in ("musicgen", "musicgen_melody")
    },
    "phi4_multimodal": {
        "audio_config.ext_pw_out_channel": 32,
        "audio_config.depthwise_separable_out_channel": 32,
        "audio_config.nemo_conv_channels": 32,
    },
    "qwen4_exp_text": {"indexer_kv_heads": 1, "indexer_budget": 4, "indexer_compress_ratio": 2, "hc_lowrank": 8},
    "qwen4_exp": {
        "text_config.indexer_kv_heads": 1,
        "text_config.indexer_budget": 4,
        "text_config.indexer_compress_ratio": 2,
        "text_config.hc_lowrank": 8,
    },
    "reformer": {
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "num_buckets": 4,
        "hash_seed": 3,
    },
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"qk_dim_factor": 1.0},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 3,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 3},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """Return the config of a model type with every size small, NUM_LAYERS layers and windows shorter than the texts."""
    # By name: fla puts classes of its own into the mapping once any model has it imported, and they need a GPU.
    return _tiny(getattr(transformers, CONFIG_MAPPING_NAMES[model_type]), SPECIAL.get(model_type, {}) | changes)


def _tiny(config_class: type[PretrainedConfig], special: dict[str, Any]) -> PretrainedConfig:
    parameters = inspect.signature(config_class.__init__).parameters
    settings = {key: value for key, value in SIZES.items() if key in parameters}
    for key, parameter in parameters.items():
        if key.endswith(("_token_id", "_token_index")) and isinstance(parameter.default, int):
            settings.setdefault(key, min(parameter.default, VOCABULARY - 1))
    if "is_decoder" in parameters:  # else each token sees those after it
        settings["is_decoder"] = True
    if "kv_lora_rank" in parameters:  # each head has its own keys, made from the compressed ones
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    for key, nested_class in getattr(config_class, "sub_configs", {}).items():
        if key in parameters and key not in special:
            inner = {name.partition(".")[2]: value for name, value in special.items() if name.startswith(f"{key}.")}
            nested_class = _class_of_nested(config_class, key, nested_class, inner.pop("model_type", None))
            settings[key] = _tiny(nested_class, inner)
    return config_class(**settings | {key: value for key, value in special.items() if "." not in key})


def _class_of_nested(
    config_class: type[PretrainedConfig], key: str, nested_class: Any, model_type: str | None
) -> type[PretrainedConfig]:
    if nested_class is not AutoConfig:
        return nested_class
    return CONFIG_MAPPING[model_type] if model_type else type(getattr(config_class(), key))


def build(config: PretrainedConfig, auto_class: Any = transformers.AutoModelForCausalLM) -> PreTrainedModel:
    """Return a random float32 model whose layers and biases all matter, in evaluation mode.

    Raises:
        ValueError: It would not be tiny; the message names its largest parameters.
    """
    with torch.device("meta"):
        sizes = {name: parameter.numel() for name, parameter in auto_class.from_config(config).named_parameters()}
    if sum(sizes.values()) > _MOST_PARAMETERS:
        largest = ", ".join(sorted(sizes, key=lambda name: -sizes[name])[:3])
        raise ValueError(f"{config.model_type} would have {sum(sizes.values())} parameters, most of them in {largest}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = auto_class.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() >= 2:
                    parameter.normal_(0, 0.7 / parameter.shape[-1] ** 0.5)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
