"""How the seed model is loaded to be scored: which settings count, and which key is at fault where that fails."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.errors import ConfigError, Explain, error_context, failure, memory_shortage
from axolotl_sdft.core.runtime import compute_dtype, local_device
from axolotl_sdft.inference.loading import build_structure, load_checkpoint, require_packages

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEMORY_SHORTAGE = memory_shortage(
    "the layers were scored",
    "lower layer_pruning.calibration.batch_size or sequence_len, or set layer_pruning.load_in_4bit: true, or "
    "layer_pruning.device_map: auto",
)
"""What to change where memory runs out."""


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
