"""What layers are scored with: how the seed model is loaded, and calibration texts as micro-batches."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import CalibrationConfig, LayerPruningConfig
from axolotl_sdft.core.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    Explain,
    error_context,
    failure,
    memory_shortage,
)
from axolotl_sdft.core.runtime import compute_dtype, local_device
from axolotl_sdft.inference.loading import build_structure, load_checkpoint, require_packages

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

LOG = logging.getLogger(__name__)

MEMORY_SHORTAGE = memory_shortage(
    "the layers were scored",
    "lower layer_pruning.calibration.batch_size or sequence_len, or set layer_pruning.load_in_4bit: true, or "
    "layer_pruning.device_map: auto",
)
"""What to change where memory runs out."""


_LIKE_ROBERTA = re.compile(r"roberta|camembert|^(data2vec-text|esm|ibert|lilt|longformer|luke|markuplm|mpnet|xmod)$")
"""Model types whose first token has the position after that of the padding token, so that they have fewer for text."""


def loading_failure(seed_dir: Path) -> Explain:
    """Explain why transformers can't load a seed model that is to be scored."""
    return failure(
        f"base_model ({seed_dir}) can't be loaded to score its layers",
        "if it comes with code of its own, set trust_remote_code: true, or name the layers in "
        "layer_pruning.drop_layers",
    )


def check_loading(seed_config: dict[str, Any], config: LayerPruningConfig) -> None:
    """Refuse settings for loading that can't work; loads nothing.

    Raises:
        ConfigError: ``load_in_4bit`` is set for a seed model that is quantized already.
        MissingExtraError: What a setting needs is not installed.
    """
    quantization = seed_config.get("quantization_config")
    if config.load_in_4bit and quantization:
        raise ConfigError(
            f"layer_pruning.load_in_4bit is true, but base_model is quantized already "
            f"({quantization.get('quant_method')}); remove load_in_4bit, and it is scored as it is"
        )
    require_packages("layer_pruning", device_map=config.device_map, load_in_4bit=config.load_in_4bit)


def load_for_scoring(seed_dir: Path, config: LayerPruningConfig, trust_remote_code: bool = False) -> "PreTrainedModel":
    """Return the seed model in evaluation mode where it is to run: one device, or spread by ``device_map``.

    Raises:
        CheckpointError: transformers can't load it.
    """
    device = local_device()
    # An accelerator computes in the checkpoint's own dtype; a CPU may be slow in it.
    is_own = config.dtype == "auto" and device.type != "cpu"
    with error_context(loading_failure(seed_dir)):
        model: PreTrainedModel = load_checkpoint(
            seed_dir,
            None if is_own else compute_dtype(config.dtype, device),
            device_map=config.device_map,
            load_in_4bit=config.load_in_4bit,
            trust_remote_code=trust_remote_code,
            any_head=True,
        )
    return model


def load_structure(seed_dir: Path, trust_remote_code: bool = False) -> "PreTrainedModel":
    """Return the seed model on the meta device: all of its modules, none of its weights.

    Raises:
        CheckpointError: transformers can't build it.
    """
    with error_context(loading_failure(seed_dir)):
        return build_structure(seed_dir, trust_remote_code=trust_remote_code)


def encode_texts(
    texts: Sequence[str], seed_dir: Path, config: CalibrationConfig, *, trust_remote_code: bool = False
) -> "list[dict[str, Tensor]]":
    """Return right-padded micro-batches of ``input_ids`` and ``attention_mask``, each [rows, tokens].

    Texts are sorted by length, so that little is padded; each is cut to ``sequence_len`` tokens, or to what the model
    has positions for. A text that begins with the beginning-of-text token, as chat templates write it, gets no second.

    Raises:
        DatasetError: No text holds a token.
        CheckpointError: The model has no embedding for one of the tokens.
    """
    from transformers import AutoConfig, AutoTokenizer

    from axolotl_sdft.inference.prompts import token_without_embedding

    with error_context(loading_failure(seed_dir)):
        tokenizer = AutoTokenizer.from_pretrained(seed_dir, trust_remote_code=trust_remote_code)
        model_config = AutoConfig.from_pretrained(seed_dir, trust_remote_code=trust_remote_code)
    length = _length(tokenizer, model_config, config)
    encoded = sorted((ids for text in texts if (ids := _encoded(tokenizer, text, length))), key=len)
    if not encoded:
        raise DatasetError("layer_pruning.calibration holds no text; check its path, split and type")
    fault = token_without_embedding(tokenizer, [max(ids) for ids in encoded], model_config)
    if fault:
        raise CheckpointError(
            f"base_model ({seed_dir}): {fault}; give the model rows for all tokens (resize_token_embeddings), or take "
            "the token out of the tokenizer and its chat template"
        )
    rows = config.batch_size
    return [_padded(encoded[start : start + rows]) for start in range(0, len(encoded), rows)]


def _encoded(tokenizer: Any, text: str, length: int) -> list[int]:
    begins = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    ids: list[int] = tokenizer(text, truncation=True, max_length=length, add_special_tokens=not begins)["input_ids"]
    return ids if text else []


def _padded(rows: Sequence[list[int]]) -> "dict[str, Tensor]":
    """Return a micro-batch, filled up with tokens of its own: a padding token may be one that the model lacks."""
    import torch

    width = max(map(len, rows))
    fill = [width - len(row) for row in rows]
    return {
        "input_ids": torch.tensor([[*row, *row[-1:] * gap] for row, gap in zip(rows, fill, strict=True)]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * gap for row, gap in zip(rows, fill, strict=True)]),
    }


def _length(tokenizer: Any, model_config: Any, config: CalibrationConfig) -> int:
    """Return ``sequence_len``, or what the model was made for if that is less: BERT fails beyond 512 tokens."""
    limits = (tokenizer.model_max_length, _num_positions(model_config.get_text_config()))
    length = min([config.sequence_len, *(limit for limit in limits if limit is not None and limit > 0)])
    if length < config.sequence_len:
        LOG.info(
            "layer_pruning.calibration.sequence_len is %d, but the model was made for %d tokens; rows are cut there",
            config.sequence_len,
            length,
        )
    return length


def _num_positions(text_config: Any) -> int | None:
    """Return how many tokens a model has positions for; None where its settings name no limit."""
    positions = getattr(text_config, "max_position_embeddings", None)
    padding = getattr(text_config, "pad_token_id", None)
    if positions is None or padding is None or not _LIKE_ROBERTA.search(str(text_config.model_type)):
        return positions
    return int(positions) - padding - 1
