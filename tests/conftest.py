"""Checkpoints that the tests share. Nothing here or in a test may reach a hub or send telemetry."""

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"

# No example fails for being slow on a busy machine, and each run tries the same ones.
# HYPOTHESIS_PROFILE=search tries others.
STEADY = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("steady", derandomize=True, **STEADY)
hypothesis.settings.register_profile("search", max_examples=1000, **STEADY)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

REPO_ROOT = Path(__file__).parent.parent


def pytest_collection_finish() -> None:
    """Spare each later search for garbage what the imports have made; the package asks for one after every model."""
    _leave_out_what_stays()


@pytest.fixture(scope="module", autouse=True)
def _what_stays_is_left_out_of_searches() -> Iterator[None]:
    """Spare them what a file of tests leaves behind, such as further imports: a fifth of the time went there."""
    yield
    _leave_out_what_stays()


def _leave_out_what_stays() -> None:
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let libraries that count their objects at the end see all of them go."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """The real SmolLM2-135M-Instruct in bfloat16: the folder the environment names, else one prepared on first use."""
    folder = Path(os.environ.get("AXOLOTL_SDFT_SMOLLM2") or REPO_ROOT / "models" / "SmolLM2-135M-Instruct")
    if not (folder / "config.json").is_file():
        script = REPO_ROOT / "example_configs" / "prepare_smollm2.py"
        search_path = os.pathsep.join(filter(None, (str(REPO_ROOT), os.environ.get("PYTHONPATH"))))
        subprocess.run([sys.executable, script, folder], env=os.environ | {"PYTHONPATH": search_path}, check=True)
    return folder


@pytest.fixture(scope="session")
def tokenizer_dir(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's tokenizer and chat template with a twelfth of its tokens, which is read in a twentieth of the time."""
    folder = tmp_path_factory.mktemp("tokenizer")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(smollm2_dir / name, folder / name)
    stored = json.loads((smollm2_dir / "tokenizer.json").read_text())
    model = stored["model"]
    # Special tokens and single bytes come first, then merged ones, the most frequent first: any text is still known.
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < 4096}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    return folder


@pytest.fixture(scope="session")
def tiny_llama_dir(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 6 layers and half a million parameters with a small tokenizer; read only."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.15,  # with less, a model this narrow predicts nearly evenly, and layers do nothing
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("tiny_llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
