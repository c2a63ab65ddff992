"""Slow references in float64, and small models to merge."""

import math

import torch
from safetensors.torch import load_file

from tests.pruning.conftest import load, save_tiny_model

ATTENTION = ["q_proj", "v_proj"]


def slow_slerp(first, second, ratio):
    """SLERP of two whole tensors in float64, straight from the definition."""
    a, b = first.double().flatten(), second.double().flatten()
    if not a.norm() or not b.norm():
        return ((1 - ratio) * a + ratio * b).reshape(first.shape)
    cosine = float((a / a.norm()) @ (b / b.norm()))
    if abs(cosine) > 0.9995:
        return ((1 - ratio) * a + ratio * b).reshape(first.shape)
    angle = math.acos(cosine)
    merged = (math.sin((1 - ratio) * angle) * a + math.sin(ratio * angle) * b) / math.sin(angle)
    return merged.reshape(first.shape)


def save_variant(source, folder, noise=0.5, seed=11, dtype=torch.float32, **save):
    """Save what training might have made of a model: each weight moved by ``noise`` times its tensor's spread."""
    model = load(source)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            spread = weight.std() if weight.numel() > 1 else weight.abs()
            weight.add_(torch.randn(weight.shape, generator=generator) * (noise * spread + 0.01))
    model.to(dtype).save_pretrained(folder, **save)
    return folder


def two_models(folder, name="llama", **changes):
    """Return the folders of a tiny model and of a variant of it."""
    return save_tiny_model(folder / "first", name, **changes), save_variant(folder / "first", folder / "second")


def tensors_of(folder):
    """Return all tensors of a checkpoint in safetensors files."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def save_adapter(base, folder, seed=1, targets=ATTENTION, weights=0.2, **settings):
    """Save a LoRA adapter with random matrices and return its folder."""
    import peft

    config = peft.LoraConfig(**({"r": 3, "lora_alpha": 7, "task_type": "CAUSAL_LM"} | settings), target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = peft.get_peft_model(load(base), config)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=weights)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder
