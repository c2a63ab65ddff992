"""Turns calibration texts into the micro-batches that the layers are scored on."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from axolotl_sdft.config import CalibrationConfig
from axolotl_sdft.errors import DatasetError

if TYPE_CHECKING:
    from torch import Tensor


def encode_texts(texts: Sequence[str], seed_dir: Path, config: CalibrationConfig) -> "list[dict[str, Tensor]]":
    """Return right-padded micro-batches of ``input_ids`` and ``attention_mask``, each [rows, tokens].

    Texts are sorted by length, so that little is padded; each is cut to ``sequence_len`` tokens.

    Raises:
        DatasetError: No text holds a token.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(seed_dir)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    encoded = [tokenizer(text, truncation=True, max_length=config.sequence_len)["input_ids"] for text in texts]
    encoded = sorted((ids for ids in encoded if ids), key=len)
    if not encoded:
        raise DatasetError("layer_pruning.calibration holds no text; check its path, split and type")
    return [
        dict(tokenizer.pad({"input_ids": encoded[start : start + config.batch_size]}, return_tensors="pt"))
        for start in range(0, len(encoded), config.batch_size)
    ]
