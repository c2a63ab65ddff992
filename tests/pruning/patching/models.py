"""Tiny models and texts that patches are fitted on."""

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

VOCABULARY = 61
WIDTH = 16


def llama(num_layers=6, **changes):
    """A random float32 Llama whose layers all matter."""
    settings = {
        **{"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": num_layers},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3},
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()


def text(num_batches=12, rows=4, length=16, seed=5):
    """Micro-batches of random tokens; of each, the last row has three tokens of padding."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(num_batches):
        ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[-1, -3:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def make_linear(layer: nn.Module, map_DD: torch.Tensor, before: nn.Module) -> None:
    """Let a layer add to its input a linear map of what the projection of the layer before gave."""
    seen = []
    before.mlp.down_proj.register_forward_hook(lambda _module, _args, output: seen.append(output))
    layer.forward = lambda hidden_states, *_args, **_kwargs: hidden_states + seen[-1] @ map_DD


def logits(model, ids):
    """The logits of all tokens."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def reloaded(folder):
    """The checkpoint in a folder, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
