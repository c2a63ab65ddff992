"""A language model small enough to train in milliseconds."""

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="module", autouse=True)
def quick_garbage_collection() -> Iterator[None]:
    """Each Trainer collects garbage, which takes a second when all imported modules are looked through again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., LlamaForCausalLM]:
    """Makes a random Llama with 64 tokens and 2 layers; the same one each time. Keywords go to its config."""

    def make(**settings: object) -> LlamaForCausalLM:
        sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
        # Weights larger than usual, so that predictions are far from even and the terms differ visibly.
        config = LlamaConfig(**sizes, **heads, **{"initializer_range": 0.3, "pad_token_id": 0, **settings})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return LlamaForCausalLM(config)

    return make
