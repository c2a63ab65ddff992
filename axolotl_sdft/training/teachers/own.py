"""The seed model loaded beside the student, where the student's own layers are trained."""

import copy
import importlib.util
from pathlib import Path
from typing import Any

from torch import nn
from transformers import BitsAndBytesConfig

from axolotl_sdft.core.errors import CheckpointError, MissingExtraError, first_line
from axolotl_sdft.training.teachers.origin import SeedOrigin
from axolotl_sdft.training.teachers.removed_layers import quiet_loading
from axolotl_sdft.training.teachers.seed_config import seed_config


def load_own_teacher(
    base: Any, origin: SeedOrigin | None, bits: int | None = None, trust_remote_code: bool = False
) -> nn.Module:
    """Return the seed model in evaluation mode, on the student's device and in its dtype. Nothing of it is trained.

    Args:
        base: The student without adapters.
        origin: The seed model; None where the student was not pruned, so that it is the checkpoint that training
            starts from.
        bits: 4 or 8, to quantize it with bitsandbytes; unset: as the student is.
        trust_remote_code: Run code that comes with the seed model.

    Raises:
        CheckpointError: transformers can't load it.
        MissingExtraError: ``bits`` needs bitsandbytes, which is not installed.
    """
    folder = seed_folder(base, origin)
    config = seed_config(base, origin, trust_remote_code)
    device = next(base.parameters()).device
    settings: dict[str, Any] = {"dtype": base.config.dtype or base.dtype}
    quantization = quantization_of(base, bits)
    if quantization is not None:
        settings["quantization_config"] = quantization
    if quantization is not None or device.type != "cpu":
        settings["device_map"] = {"": str(device)}
    with quiet_loading():
        try:
            model = type(base).from_pretrained(folder, config=config, trust_remote_code=trust_remote_code, **settings)
        except (OSError, ValueError, RuntimeError) as err:
            raise CheckpointError(
                f"logit_distillation: the seed model ({folder}) can't be loaded as teacher: {first_line(err)}"
            ) from err
    return model.requires_grad_(False).eval()


def seed_folder(base: Any, origin: SeedOrigin | None) -> str | Path:
    """Return where the seed model is.

    Raises:
        CheckpointError: The student doesn't say which checkpoint it was loaded from.
    """
    if origin is not None:
        return origin.seed_dir
    name = getattr(base.config, "_name_or_path", "")
    if not name:
        raise CheckpointError(
            "logit_distillation: the model that is trained doesn't say which checkpoint it was loaded from, so its "
            "seed model can't be loaded as teacher; load it with from_pretrained, or pass seed_model to the trainer"
        )
    return name


def quantization_of(base: Any, bits: int | None) -> Any:
    """Return how the teacher is quantized; None where it is not.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    if bits is None:
        own = getattr(base.config, "quantization_config", None)
        return None if own is None or isinstance(own, dict) else copy.deepcopy(own)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(
            f"logit_distillation.load_in_{bits}bit is true, but bitsandbytes is not installed; pip install "
            f"'axolotl-sdft[large]', or remove load_in_{bits}bit"
        )
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=base.dtype)
