"""Loads the seed model that the embedded backend writes with."""

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import torch

from axolotl_sdft.config import TransformersGeneration
from axolotl_sdft.core.errors import CheckpointError, MissingExtraError
from axolotl_sdft.core.runtime import compute_dtype, local_device

LOG = logging.getLogger(__name__)

_CONTEXT_LENGTHS = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "n_positions", "seq_length")


def load_seed_model(model_dir: Path, config: TransformersGeneration) -> Any:
    """Return the seed model in evaluation mode on this process's own device, or spread by ``device_map``.

    A seed model that is quantized already is loaded as it is, a LoRA adapter on top of the base model that it names.

    Raises:
        CheckpointError: transformers can't load it.
        MissingExtraError: It is an adapter and peft is not installed, or ``device_map`` is set and accelerate is not.
    """
    device = local_device()
    settings, trusts = _settings(model_dir, config, device), bool(config.trust_remote_code)
    loader = _loader(model_dir, trusts)
    LOG.info("loading %s with %s on %s", model_dir, settings, device)
    try:
        model = loader.from_pretrained(model_dir, trust_remote_code=trusts, **settings)
    except torch.cuda.OutOfMemoryError:  # says best itself what is the matter
        raise
    except Exception as err:  # transformers raises many kinds for files that do not fit together
        reason = next(iter(str(err).strip().splitlines()), "no reason given")
        raise CheckpointError(
            f"the seed model {model_dir} can't be loaded to rewrite answers ({type(err).__name__}: {reason}); if it "
            "comes with code of its own, set self_distillation.generation.trust_remote_code: true; or serve it "
            "yourself, and set backend: openai"
        ) from err
    return (model if "device_map" in settings else model.to(device)).eval()


def context_length(model: Any) -> int | None:
    """Return the most tokens that a model takes, prompt and answer together; None where its config names no limit."""
    config = model.config.get_text_config(decoder=True)
    for name in _CONTEXT_LENGTHS:
        if isinstance(length := getattr(config, name, None), int) and length > 0:
            return length
    return None


def _settings(model_dir: Path, config: TransformersGeneration, device: torch.device) -> dict[str, Any]:
    is_quantized = "quantization_config" in _read_json(model_dir / "config.json")
    settings: dict[str, Any] = {"dtype": "auto" if is_quantized else compute_dtype(config.dtype, device)}
    if config.device_map is not None:
        if importlib.util.find_spec("accelerate") is None:
            raise MissingExtraError(
                f"self_distillation.generation.device_map is {config.device_map!r}, but accelerate is not installed; "
                "install it, or remove device_map"
            )
        settings["device_map"] = config.device_map
    elif is_quantized and device.type != "cpu":
        settings["device_map"] = {"": str(device)}  # quantized weights can't always be moved once they are loaded
    return settings


def _loader(model_dir: Path, trust_remote_code: bool) -> Any:
    """Return what loads this kind of checkpoint: text models, vision-language models used for text, or adapters."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    if (model_dir / "adapter_config.json").exists():
        return _adapter_loader(model_dir)
    config = _read_json(model_dir / "config.json")
    kind, architectures = config.get("model_type"), config.get("architectures") or []
    custom = (config.get("auto_map") or {}) if trust_remote_code else {}
    seen = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind)
    is_text = "AutoModelForCausalLM" in custom or (
        kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and seen not in architectures
    )
    return AutoModelForImageTextToText if seen is not None and not is_text else AutoModelForCausalLM


def _adapter_loader(model_dir: Path) -> Any:
    try:
        from peft import AutoPeftModelForCausalLM
    except ModuleNotFoundError as err:
        raise MissingExtraError(
            f"{model_dir} holds an adapter; install peft: pip install 'axolotl-sdft[lora]'"
        ) from err
    from axolotl_sdft.core.trained_on import moved_base

    base_dir = moved_base(model_dir)
    return AutoPeftModelForCausalLM if base_dir is None else _MovedAdapterLoader(base_dir)


class _MovedAdapterLoader:
    """Loads an adapter onto a base model that is elsewhere by now than the adapter says; peft has no way to tell it."""

    def __init__(self, base_dir: Path) -> None:
        self._base_dir = base_dir

    def from_pretrained(self, model_dir: Path, trust_remote_code: bool, **settings: Any) -> Any:
        from peft import PeftModel
        from transformers import AutoTokenizer

        loader = _loader(self._base_dir, trust_remote_code)
        base = loader.from_pretrained(self._base_dir, trust_remote_code=trust_remote_code, **settings)
        if (model_dir / "tokenizer_config.json").is_file():  # as peft does it
            num_tokens = len(AutoTokenizer.from_pretrained(model_dir, trust_remote_code=trust_remote_code))
            if num_tokens > base.get_input_embeddings().weight.shape[0]:
                base.resize_token_embeddings(num_tokens)
        return PeftModel.from_pretrained(base, model_dir)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
