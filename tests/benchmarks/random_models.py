"""Makes Llamas of random weights, for figures that depend on a model's shape and not on what it knows.

    python -m tests.benchmarks.random_models 8b FOLDER --tokenizer models/SmolLM2-135M-Instruct

The weights are drawn on the device that the model is for, in bfloat16: an 8B model takes a GPU seconds.
"""

import argparse
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "vocab_size": 49_152,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 20,  # so many that studies of larger models can remove the layers that they name
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,  # with the usual 0.02 a model this narrow predicts nearly evenly
    },
}
"""Llama 3.1 8B, and one that a test can afford; both have room for the tokens of SmolLM2."""


def random_llama(shape: str, device: str, tokenizer: Any) -> Any:
    """Return a model of a shape in bfloat16 on a device, in evaluation mode; the tokenizer gives its special tokens."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(**SHAPES[shape], **ids, max_position_embeddings=8192)
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def save_random_llama(shape: str, folder: Path, tokenizer_dir: Path) -> bool:
    """Write a checkpoint of random weights with a tokenizer, unless it is there; return whether it was made now."""
    if (folder / "config.json").is_file():
        return False
    import torch
    from transformers import AutoTokenizer

    from axolotl_sdft.core.artifacts import atomic_folder

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    model = random_llama(shape, "cuda" if torch.cuda.is_available() else "cpu", tokenizer)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return True


def main(arguments: list[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=Path("models/SmolLM2-135M-Instruct"), help="a model's folder")
    options = parser.parse_args(arguments)
    made = save_random_llama(options.shape, options.folder, options.tokenizer)
    print(f"{options.folder}: {'made' if made else 'there already'}")


if __name__ == "__main__":
    main()
