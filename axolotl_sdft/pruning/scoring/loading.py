"""Loads a seed model to be scored, and gives its memory back. torch comes with the first call."""

import gc
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.errors import CheckpointError, ConfigError, MissingExtraError, first_line
from axolotl_sdft.core.model_folder import read_config
from axolotl_sdft.core.runtime import compute_dtype, local_device

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# A checkpoint of any head can be scored; the first kind that fits its architecture loads it.
_KINDS = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MASKED_LM", "SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION")
_AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "IMAGE_TEXT_TO_TEXT": "AutoModelForImageTextToText",
    "MASKED_LM": "AutoModelForMaskedLM",
    "SEQUENCE_CLASSIFICATION": "AutoModelForSequenceClassification",
    "TOKEN_CLASSIFICATION": "AutoModelForTokenClassification",
}


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
    for key, is_set, package in (
        ("load_in_4bit", config.load_in_4bit, "bitsandbytes"),
        ("load_in_4bit", config.load_in_4bit, "accelerate"),
        ("device_map", config.device_map is not None, "accelerate"),
    ):
        if is_set and importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"layer_pruning.{key} is set, but {package} is not installed; install it with: "
                f"pip install 'axolotl-sdft[large]', or remove {key}"
            )


def load_for_scoring(seed_dir: Path, config: LayerPruningConfig, trust_remote_code: bool = False) -> "PreTrainedModel":
    """Return the seed model in evaluation mode where it is to run: one device, or spread by ``device_map``.

    A seed model that is quantized already is loaded as it is.

    Raises:
        CheckpointError: transformers can't load it.
    """
    seed_config = read_config(seed_dir)
    device = local_device()
    settings = _load_settings(seed_config, config, device)
    auto_class = _auto_class(seed_config, trust_remote_code)
    with failure_explained(seed_dir):
        model = auto_class.from_pretrained(seed_dir, trust_remote_code=trust_remote_code, **settings)
    is_placed = "device_map" in settings or seed_config.get("quantization_config")
    return model.eval() if is_placed else model.to(device).eval()


def load_structure(seed_dir: Path, trust_remote_code: bool = False) -> "PreTrainedModel":
    """Return the seed model on the meta device: all of its modules, none of its weights.

    Raises:
        CheckpointError: transformers can't build it.
    """
    import torch
    from transformers import AutoConfig

    auto_class = _auto_class(read_config(seed_dir), trust_remote_code)
    with failure_explained(seed_dir), torch.device("meta"):
        model_config = AutoConfig.from_pretrained(seed_dir, trust_remote_code=trust_remote_code)
        return auto_class.from_config(model_config, trust_remote_code=trust_remote_code)


@contextmanager
def failure_explained(seed_dir: Path) -> Iterator[None]:
    """Say which seed model it is that transformers can't load while this is open, and why.

    Raises:
        CheckpointError: It can't; the message names the folder, the reason and the ways out.
    """
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError:  # has an explanation of its own
        raise
    except Exception as err:  # transformers raises many kinds for files that do not fit together
        raise CheckpointError(
            f"base_model ({seed_dir}) can't be loaded to score its layers ({type(err).__name__}: {first_line(err)}); "
            "if it comes with code of its own, set trust_remote_code: true, or name the layers in "
            "layer_pruning.drop_layers"
        ) from err


def free_memory() -> None:
    """Give the memory of deleted models back, since training follows in the same process."""
    import torch

    gc.collect()
    if torch.accelerator.is_available():
        torch.get_device_module(local_device()).empty_cache()


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Say what to change when the accelerator's memory runs out while this is open.

    Raises:
        CheckpointError: It has; the message names the settings that save memory.
    """
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as err:
        raise CheckpointError(
            f"memory ran out while the layers were scored ({first_line(err)}); lower "
            "layer_pruning.calibration.batch_size or sequence_len, or set layer_pruning.load_in_4bit: true, or "
            "layer_pruning.device_map: auto"
        ) from err


def _load_settings(seed_config: dict[str, Any], config: LayerPruningConfig, device: "torch.device") -> dict[str, Any]:
    # An accelerator computes in the checkpoint's own format; a CPU may be slow in it.
    is_own_format = seed_config.get("quantization_config") or (config.dtype == "auto" and device.type != "cpu")
    settings: dict[str, Any] = {"dtype": "auto" if is_own_format else compute_dtype(config.dtype, device)}
    if config.load_in_4bit:
        from transformers import BitsAndBytesConfig

        compute = compute_dtype(config.dtype, device)
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
        )
    if config.device_map is not None:
        settings["device_map"] = config.device_map
    elif config.load_in_4bit or (seed_config.get("quantization_config") and device.type != "cpu"):
        settings["device_map"] = {"": str(device)}
    return settings


def _auto_class(seed_config: dict[str, Any], trust_remote_code: bool) -> Any:
    """Return transformers' class that loads this kind of checkpoint: by its architecture, else by its model type."""
    import transformers
    from transformers.models.auto import modeling_auto

    custom = (seed_config.get("auto_map") or {}) if trust_remote_code else {}
    architectures = seed_config.get("architectures") or []
    known = {
        kind: getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES").get(seed_config.get("model_type"))
        for kind in _KINDS
    }
    by_code = [kind for kind in _KINDS if _AUTO_CLASSES[kind] in custom]
    by_architecture = [kind for kind, name in known.items() if name in architectures]
    by_type = [kind for kind, name in known.items() if name is not None]
    return getattr(transformers, _AUTO_CLASSES[(by_code or by_architecture or by_type or ["CAUSAL_LM"])[0]])
