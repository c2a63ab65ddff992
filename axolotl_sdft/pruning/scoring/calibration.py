"""Turns calibration texts into the micro-batches that the layers are scored on."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import CalibrationConfig
from axolotl_sdft.core.errors import DatasetError, error_context
from axolotl_sdft.pruning.scoring.loading import loading_failure

if TYPE_CHECKING:
    from torch import Tensor

LOG = logging.getLogger(__name__)


def encode_texts(
    texts: Sequence[str], seed_dir: Path, config: CalibrationConfig, *, trust_remote_code: bool = False
) -> "list[dict[str, Tensor]]":
    """Return right-padded micro-batches of ``input_ids`` and ``attention_mask``, each [rows, tokens].

    Texts are sorted by length, so that little is padded; each is cut to ``sequence_len`` tokens, or to what the model
    has positions for. A text that begins with the beginning-of-text token, as chat templates write it, gets no second.

    Raises:
        DatasetError: No text holds a token.
    """
    from transformers import AutoConfig, AutoTokenizer

    with error_context(loading_failure(seed_dir)):
        tokenizer = AutoTokenizer.from_pretrained(seed_dir, trust_remote_code=trust_remote_code)
        model_config = AutoConfig.from_pretrained(seed_dir, trust_remote_code=trust_remote_code)
    length = _length(tokenizer, model_config, config)
    encoded = sorted((ids for text in texts if (ids := _encoded(tokenizer, text, length))), key=len)
    if not encoded:
        raise DatasetError("layer_pruning.calibration holds no text; check its path, split and type")
    # Masked tokens have no influence, so any id will do where the tokenizer names none.
    pad_id = next((id_ for id_ in (tokenizer.pad_token_id, tokenizer.eos_token_id) if id_ is not None), 0)
    rows = config.batch_size
    return [_padded(encoded[start : start + rows], pad_id) for start in range(0, len(encoded), rows)]


def _encoded(tokenizer: Any, text: str, length: int) -> list[int]:
    begins = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    ids: list[int] = tokenizer(text, truncation=True, max_length=length, add_special_tokens=not begins)["input_ids"]
    return ids if text else []


def _padded(rows: Sequence[Sequence[int]], pad_id: int) -> "dict[str, Tensor]":
    import torch

    width = max(map(len, rows))
    fill = [width - len(row) for row in rows]
    return {
        "input_ids": torch.tensor([[*row, *[pad_id] * gap] for row, gap in zip(rows, fill, strict=True)]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * gap for row, gap in zip(rows, fill, strict=True)]),
    }


def _length(tokenizer: Any, model_config: Any, config: CalibrationConfig) -> int:
    """Return ``sequence_len``, or what the model was made for if that is less: BERT fails beyond 512 tokens."""
    limits = (tokenizer.model_max_length, getattr(model_config.get_text_config(), "max_position_embeddings", None))
    length = min([config.sequence_len, *(limit for limit in limits if limit is not None and limit > 0)])
    if length < config.sequence_len:
        LOG.info(
            "layer_pruning.calibration.sequence_len is %d, but the model was made for %d tokens; rows are cut there",
            config.sequence_len,
            length,
        )
    return length
