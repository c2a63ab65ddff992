"""Seed models, pruned students with adapters, and batches for the tests of teachers."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from axolotl_sdft import cut_layers, fit_patch
from tests.pruning.architectures import VOCABULARY, build, tiny_config

IDS = torch.randint(3, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(1))


def prune(folder: Path, family: str = "llama", drop_layers: Sequence[int] = (2, 3), **settings: Any) -> Path:
    """Write a random seed model of six layers, and return the folder of its pruned checkpoint beside it."""
    build(tiny_config(family, **settings)).save_pretrained(folder / "seed")
    return cut_layers(folder / "seed", drop_layers, folder / "pruned")


def put_on_hub(folder: Path, cache: Path, name: str = "some-org/some-model", commit: str = "a" * 40) -> str:
    """Lay a model into a cache of the Hub's as if it had been downloaded, as the newest commit; return its name."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return name


def load(folder: Path | str, **settings: Any) -> PreTrainedModel:
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


def prune_and_patch(folder: Path, family: str, drop_layers: Sequence[int]) -> Path:
    """The same with a linear patch folded into the layer before each cut."""
    seed = build(tiny_config(family))
    seed.save_pretrained(folder / "seed")
    batches = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}]
    patch = fit_patch(seed, batches, drop_layers, hold_out=False)
    assert len(patch.applied) == len(patch.cuts)
    return cut_layers(folder / "seed", drop_layers, folder / "pruned", patch=patch)
