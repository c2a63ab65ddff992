"""The sizes of the models that the shipped configurations name, as their ``config.json`` on the Hub gives them."""


def _sizes(model_type, architecture, hidden, layers, heads, kv_heads, inner, vocabulary, **others):
    return {
        **{"model_type": model_type, "architectures": [architecture], "hidden_size": hidden},
        **{"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads},
        **{"intermediate_size": inner, "vocab_size": vocabulary, "tie_word_embeddings": False, **others},
    }


_LLAMA, _MISTRAL, _QWEN = "LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM"

SEED_MODELS = {
    "HuggingFaceTB/SmolLM3-3B": _sizes(
        "smollm3", "SmolLM3ForCausalLM", 2048, 36, 16, 4, 11008, 128256, tie_word_embeddings=True, pad_token_id=128004
    ),
    "Qwen/Qwen3-32B": _sizes("qwen3", _QWEN, 5120, 64, 64, 8, 25600, 151936, head_dim=128),
    "Qwen/Qwen3-4B-Instruct-2507": _sizes(
        "qwen3", _QWEN, 2560, 36, 32, 8, 9728, 151936, head_dim=128, tie_word_embeddings=True
    ),
    "Qwen/Qwen3-8B": _sizes("qwen3", _QWEN, 4096, 36, 32, 8, 12288, 151936, head_dim=128),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": _sizes("llama", _LLAMA, 2048, 22, 32, 4, 5632, 32000),
    "google/gemma-3-4b-it": {
        **{"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "mm_tokens_per_image": 256},
        "text_config": _sizes("gemma3_text", "", 2560, 34, 8, 4, 10240, 262208, head_dim=256, sliding_window=1024),
        "vision_config": {
            **{"model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304},
            **{"num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False},
        },
    },
    "meta-llama/Llama-2-7b-chat-hf": _sizes("llama", _LLAMA, 4096, 32, 32, 32, 11008, 32000),
    "meta-llama/Llama-2-7b-hf": _sizes("llama", _LLAMA, 4096, 32, 32, 32, 11008, 32000),
    "meta-llama/Llama-3.1-8B-Instruct": _sizes("llama", _LLAMA, 4096, 32, 32, 8, 14336, 128256),
    "meta-llama/Llama-3.2-3B-Instruct": _sizes(
        "llama", _LLAMA, 3072, 28, 24, 8, 8192, 128256, head_dim=128, tie_word_embeddings=True
    ),
    "microsoft/phi-2": _sizes("phi", "PhiForCausalLM", 2560, 32, 32, 32, 10240, 51200),
    "mistralai/Mistral-7B-Instruct-v0.3": _sizes("mistral", _MISTRAL, 4096, 32, 32, 8, 14336, 32768),
    "mistralai/Mistral-Small-24B-Instruct-2501": _sizes(
        "mistral", _MISTRAL, 5120, 40, 32, 8, 32768, 131072, head_dim=128
    ),
    "models/SmolLM2-135M-Instruct": _sizes(
        "llama", _LLAMA, 576, 30, 9, 3, 1536, 49152, tie_word_embeddings=True, head_dim=64
    ),
}
"""By ``base_model``."""

PARAMETERS = {
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-4B-Instruct-2507": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "google/gemma-3-4b-it": 4_300_079_472,
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "microsoft/phi-2": 2_779_683_840,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23_572_403_200,
    "models/SmolLM2-135M-Instruct": 134_515_008,
}
"""How many parameters the page of each model on the Hub gives."""
