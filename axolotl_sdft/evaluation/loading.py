"""Loads the models of a recovery report. torch comes with :func:`load_model`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axolotl_sdft.core.artifacts import read_json
from axolotl_sdft.core.errors import CheckpointError, MissingExtraError, first_line
from axolotl_sdft.core.model_folder import read_config, resolve_seed
from axolotl_sdft.core.trained_on import moved_base
from axolotl_sdft.evaluation.spec import ReportedModel
from axolotl_sdft.pruning.planning.savings import number_format


def load_model(
    model: ReportedModel, dtype: str, *, trust_remote_code: bool = False, chat_template: str | None = None
) -> tuple[Any, Any]:
    """Return a model in evaluation mode on this process's own device, and its tokenizer, which pads on the left.

    A LoRA adapter is merged into the base model that it names: what is measured is then what would be deployed.

    Args:
        model: Where it is.
        dtype: As ``recovery_report.dtype``. A quantized checkpoint is loaded as it is.
        trust_remote_code: Run code that comes with the model.
        chat_template: Chat template of a model that has none, as Jinja text.

    Raises:
        CheckpointError: It can't be loaded or merged; the message names the model, its folder and the reason.
        MissingExtraError: It is an adapter, and peft is not installed.
    """
    from axolotl_sdft.config import TransformersGeneration
    from axolotl_sdft.inference.loading import load_seed_model
    from axolotl_sdft.inference.prompts import load_tokenizer

    base_dir = weights_dir(model)
    with _failure_explained(model):
        settings = TransformersGeneration(dtype=_number_format(base_dir, dtype), trust_remote_code=trust_remote_code)
        loaded = load_seed_model(model.folder, settings)
        if model.is_adapter:
            loaded = loaded.merge_and_unload().eval()
        # An adapter that was saved without a tokenizer has its base model's.
        has_own = (model.folder / "tokenizer_config.json").is_file()
        folder = model.folder if has_own else base_dir
        return loaded, load_tokenizer(folder, trust_remote_code=trust_remote_code, chat_template=chat_template)


def weights_dir(model: ReportedModel) -> Path:
    """Return the folder of a model's weights: its own, or for an adapter that of its base model, moved or not.

    Raises:
        CheckpointError: The base model is nowhere; the message names the adapter and the way out.
    """
    if not model.is_adapter:
        return model.folder
    key = f"base_model_name_or_path of the adapter {model.name!r} ({model.folder / 'adapter_config.json'})"
    moved = moved_base(model.folder)
    if moved is not None:
        return moved
    base = read_json(model.folder / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise CheckpointError(f"{key} is not set; write the folder of its base model there")
    return resolve_seed(base, key=key)


def _number_format(checkpoint_dir: Path, dtype: str) -> Any:
    """Return the format to load in: on an accelerator ``auto`` is the checkpoint's own, on a CPU float32."""
    from axolotl_sdft.core.runtime import local_device

    if dtype != "auto":
        return dtype
    return "float32" if local_device().type == "cpu" else number_format(read_config(checkpoint_dir), ())


@contextmanager
def _failure_explained(model: ReportedModel) -> Iterator[None]:
    """Say which model it is that can't be loaded while this is open, and why."""
    import torch

    try:
        yield
    except (torch.cuda.OutOfMemoryError, MissingExtraError):  # say best themselves what is the matter
        raise
    except Exception as err:  # transformers and peft raise many kinds for files that do not fit together
        cause = err.__cause__ or err
        reason = first_line(err) if cause is err else f"{type(cause).__name__}: {first_line(cause)}"
        raise CheckpointError(
            f"recovery_report: the model {model.name!r} ({model.folder}) can't be loaded ({reason}); a folder holds a "
            "whole checkpoint with its tokenizer, or a LoRA adapter that is merged into its base model"
        ) from cause
