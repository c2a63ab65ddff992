"""Loads the models of a recovery report. torch comes with :func:`load_model`."""

from typing import Any

from axolotl_sdft.core.errors import error_context, failure, memory_shortage
from axolotl_sdft.core.trained_on import weights_dir
from axolotl_sdft.evaluation.spec import ReportedModel

_MORE_ROOM = "set recovery_report.dtype: bfloat16, load_in_4bit: true or device_map: auto, or free memory"


def load_model(
    model: ReportedModel,
    dtype: str,
    *,
    load_in_4bit: bool = False,
    device_map: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
) -> tuple[Any, Any]:
    """Return a model in evaluation mode on this process's own device, and its tokenizer, which pads on the left.

    A LoRA adapter is merged into the base model that it names: what is measured is then what would be deployed. In 4
    bits it stays beside it, since a merge would round it away.

    Args:
        model: Where it is.
        dtype: As ``recovery_report.dtype``. A quantized checkpoint is loaded as it is.
        load_in_4bit: As ``recovery_report.load_in_4bit``.
        device_map: As ``recovery_report.device_map``.
        trust_remote_code: Run code that comes with the model.
        chat_template: Chat template of a model that has none, as Jinja text.

    Raises:
        CheckpointError: It can't be loaded or merged; the message names the model, its folder and the reason.
        MissingExtraError: It is an adapter, and peft is not installed.
    """
    from axolotl_sdft.inference.loading import load_checkpoint
    from axolotl_sdft.inference.prompts import load_tokenizer

    named = f"the model {model.name!r} ({model.folder})"
    with error_context(
        memory_shortage(f"recovery_report loaded {named}", _MORE_ROOM),
        failure(
            f"recovery_report: {named} can't be loaded",
            "a folder holds a whole checkpoint with its tokenizer, or a LoRA adapter that is merged into its base "
            "model",
        ),
    ):
        loaded = load_checkpoint(
            model.folder,
            _torch_dtype(dtype),
            device_map=device_map,
            load_in_4bit=load_in_4bit,
            trust_remote_code=trust_remote_code,
        )
        if model.is_adapter and not load_in_4bit:
            loaded = loaded.merge_and_unload().eval()
        # An adapter that was saved without a tokenizer has its base model's.
        has_own = (model.folder / "tokenizer_config.json").is_file()
        folder = model.folder if has_own else weights_dir(model.folder)
        return loaded, load_tokenizer(folder, trust_remote_code=trust_remote_code, chat_template=chat_template)


def _torch_dtype(dtype: str) -> Any:
    """Return the dtype to load in: on an accelerator ``auto`` is the checkpoint's own (None), on a CPU float32."""
    import torch

    from axolotl_sdft.core.runtime import local_device

    if dtype != "auto":
        return getattr(torch, dtype)
    return torch.float32 if local_device().type == "cpu" else None
