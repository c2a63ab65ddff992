"""Models of which some layers are gone or changed, beside the seed model that they come from."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_sdft.pruning.checkpoint.cut import cut_layers


@pytest.fixture(scope="session")
def tiny_pruned_dir(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama without layers 2 and 3, as the pruning writes it; read only."""
    return cut_layers(tiny_llama_dir, [2, 3], tmp_path_factory.mktemp("pruned") / "pruned")


@pytest.fixture(scope="session")
def tokenizer(tiny_llama_dir: Path):
    return AutoTokenizer.from_pretrained(tiny_llama_dir)


@pytest.fixture(scope="session")
def seed(tiny_llama_dir: Path):
    """The tiny Llama, loaded; read only."""
    return AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def pruned(tiny_pruned_dir: Path):
    """The pruned one, loaded; read only."""
    return AutoModelForCausalLM.from_pretrained(tiny_pruned_dir, dtype=torch.float32).eval()
