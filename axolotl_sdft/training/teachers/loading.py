"""Loads the seed model as teacher: whole, beside the student, or only the layers that the student lacks.

The layers that the student has are left out, in memory alone, as pruning leaves out the others. What is left is a model
of its own, which transformers loads with all that it knows of names, dtypes and quantization.
"""

import copy
import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedConfig

from axolotl_sdft.core.errors import CheckpointError, MissingExtraError, first_line
from axolotl_sdft.pruning.checkpoint.cut import CheckpointPlan, plan_checkpoint
from axolotl_sdft.pruning.checkpoint.legacy_files import converted
from axolotl_sdft.training.teachers.origin import SeedOrigin, seed_config


def plan_layers(origin: SeedOrigin) -> CheckpointPlan:
    """Return the cut that leaves only the layers that have to be read. Reads headers only.

    Raises:
        CheckpointError: They make no model of their own, with the reason.
    """
    others = set(range(origin.num_layers)) - set(origin.needed)
    try:
        return plan_checkpoint(origin.seed_dir, others)
    except CheckpointError as err:
        raise CheckpointError(
            f"layers {', '.join(map(str, origin.needed))} of {origin.seed_dir} can't be loaded apart from the others: "
            f"{first_line(err)}; set logit_distillation.teacher: own"
        ) from err


def load_layers(base: Any, origin: SeedOrigin, config: PreTrainedConfig, trust_remote_code: bool = False) -> nn.Module:
    """Return a model of the layers that have to be read, where the student is, in its dtype and quantization.

    Args:
        base: The student without adapters.
        origin: The seed model, and which layers are needed.
        config: That of the whole seed model.
        trust_remote_code: Run code that comes with the seed model.

    Raises:
        CheckpointError: They make no model of their own, or a file is broken.
    """
    cut = plan_layers(origin)
    own = type(config).from_dict(_own_part(cut.config, config))
    own._attn_implementation = config._attn_implementation
    device = next(base.parameters()).device
    settings: dict[str, Any] = {"dtype": base.dtype if base.config.dtype is None else base.config.dtype}
    quantization = getattr(base.config, "quantization_config", None)
    if quantization is not None and getattr(own, "quantization_config", None) is None:
        settings["quantization_config"] = copy.deepcopy(quantization)
    if device.type != "cpu" or quantization is not None:
        settings["device_map"] = {"": str(device)}
    with _tensors(cut) as tensors, quiet_loading():
        try:
            model = type(base).from_pretrained(None, config=own, state_dict=tensors, **settings)
        except (OSError, ValueError, RuntimeError) as err:
            raise CheckpointError(
                f"layers {', '.join(map(str, origin.needed))} of {origin.seed_dir} can't be loaded: {first_line(err)}"
            ) from err
    # In training mode, since bitsandbytes repacks 4-bit weights on some CPUs as soon as they run in evaluation mode.
    return model.requires_grad_(False).train()


def _own_part(settings: dict[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """Return the settings of the text part where the student's class takes those alone."""
    text = settings.get("text_config")
    if isinstance(text, dict) and text.get("model_type") == config.model_type != settings.get("model_type"):
        return text
    return settings


@contextmanager
def _tensors(cut: CheckpointPlan) -> Iterator[dict[str, Tensor]]:
    """Give the tensors by their new names, mapped from the files."""
    with ExitStack() as stack:
        placed = list(cut.tensors)
        if cut.is_legacy:
            placed = converted(placed, Path(stack.enter_context(TemporaryDirectory())))
        found = {}
        for path, of_file in groupby(sorted(placed, key=lambda pair: str(pair[1].file)), key=lambda pair: pair[1].file):
            file = stack.enter_context(safe_open(path, framework="pt"))
            found.update({name: file.get_tensor(tensor.name) for name, tensor in of_file})
        yield found


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Show no progress bar and no report of what was loaded while this is open: it is a part of a step of ours."""
    from transformers.utils import logging as transformers_logging

    level, is_shown = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if is_shown:
            transformers_logging.enable_progress_bar()


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
            "seed model can't be loaded as teacher; load it with from_pretrained, or name the seed model "
            "(logit_distillation.seed_model)"
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
