"""Tiny random checkpoints of each model family, and the model run with layers skipped, which a cut must equal."""

import json
from contextlib import contextmanager
from functools import cache

import pytest
import torch
import transformers

NUM_LAYERS = 6
VOCABULARY = 61

# Windows shorter than the sequences of the tests, so that a layer of the wrong kind shows in the logits.
FAMILIES = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 3}),
    "qwen3": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": 4}),
    "gemma2": ("Gemma2", {"head_dim": 8, "sliding_window": 3}),
    "gemma3": ("Gemma3Text", {"head_dim": 8, "sliding_window": 3, "sliding_window_pattern": 3}),
    "phi3": ("Phi3", {"sliding_window": 4}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
}
_MODEL_CLASSES = {"Gemma3Text": "Gemma3ForCausalLM"}


def save_tiny_model(folder, name="llama", **changes):
    """Save a random float32 model with large weights, so that every layer matters, and return its folder."""
    family, special = FAMILIES[name]
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    }
    config = getattr(transformers, f"{family}Config")(**settings | special | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = getattr(transformers, _MODEL_CLASSES.get(family, f"{family}ForCausalLM"))(config)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Give the folder of a family's tiny checkpoint, saved once; read only."""
    return cache(lambda name="llama": save_tiny_model(tmp_path_factory.mktemp(name), name))


@pytest.fixture
def own_checkpoint(tmp_path):
    """Give the folder of a tiny Llama that a test may change."""
    return save_tiny_model(tmp_path / "seed")


def load(folder):
    """Load a checkpoint as transformers does, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def token_ids(rows=2, length=12):
    """Random tokens, the same each time; none of them is padding."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@contextmanager
def layers_skipped(model, drop_layers):
    """While open, these layers of the whole model hand on what they receive."""
    layers = model.model.layers
    for layer in drop_layers:
        layers[layer].forward = lambda hidden_states, *_args, **_kwargs: hidden_states
    try:
        yield model
    finally:
        for layer in drop_layers:
            del layers[layer].forward


def edit_config(folder, **changes):
    """Change a checkpoint's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def snapshot(folder):
    """Return the names of everything below a folder, hidden files too, less the locks."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock")
