"""Seed models, pruned students with adapters, and batches for the tests of teachers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from axolotl_sdft.core.trained_on import PROVENANCE_FILE
from axolotl_sdft.pruning.checkpoint.cut import cut_layers
from tests.pruning.architectures import VOCABULARY, build, tiny_config

IDS = torch.randint(3, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(1))


def prune(folder: Path, family: str = "llama", drop_layers: Sequence[int] = (2, 3), **settings: Any) -> Path:
    """Write a random seed model of six layers, and return the folder of its pruned checkpoint beside it."""
    build(tiny_config(family, **settings)).save_pretrained(folder / "seed")
    return cut_layers(folder / "seed", drop_layers, folder / "pruned")


def load(folder: Path, **settings: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings)


def adapted(model: Any, **settings: Any) -> Any:
    """Return a model with a random adapter that changes what it says; the same one each time."""
    import peft

    defaults = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return peft.get_peft_model(model, peft.LoraConfig(**{**defaults, **settings})).train()


def logits(model: Any, ids: torch.Tensor = IDS, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **inputs).logits


def patch_projection(folder: Path, layer: int, module: str = "mlp.down_proj") -> None:
    """Change one projection of a pruned Llama as a patch does, and record that; its number is that in the seed too."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[f"model.layers.{layer}.{module}.weight"] *= 1.5
    save_file(tensors, path, metadata={"format": "pt"})
    provenance = json.loads((folder / PROVENANCE_FILE).read_text())
    provenance["patch"] = {"cuts": [{"applied": True, "layer": layer, "module": module}]}
    (folder / PROVENANCE_FILE).write_text(json.dumps(provenance))
