"""Loads the models of a recovery report. torch comes with :func:`load_model`."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from axolotl_sdft.core.errors import SdftError, error_context, failure, memory_shortage
from axolotl_sdft.core.trained_on import weights_dir
from axolotl_sdft.evaluation.spec import RecoverySpec, ReportedModel

LOG = logging.getLogger(__name__)

_CHAT = tuple({"role": role, "content": text} for role, text in (("user", "A"), ("assistant", "B"), ("user", "C")))
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
        return loaded, own_tokenizer(model, trust_remote_code=trust_remote_code, chat_template=chat_template)


class LoadedModels:
    """The models of a report that are in memory: the seed model, and one other at a time."""

    def __init__(self, spec: RecoverySpec) -> None:
        self._spec = spec
        self._loaded: dict[str, tuple[Any, Any]] = {}
        self._unloadable: dict[str, tuple[type[SdftError], str]] = {}

    def __call__(self, model: ReportedModel) -> tuple[Any, Any]:
        """Return a model and its tokenizer.

        Raises:
            SdftError: It can't be loaded. This is tried once: it may take minutes, and each measure asks for it.
        """
        if model.name in self._unloadable:
            kind, reason = self._unloadable[model.name]
            raise kind(reason)
        if model.name not in self._loaded:
            self._drop(name for name in list(self._loaded) if self._spec.seed.name not in (name, model.name))
            try:
                self._loaded[model.name] = self._loaded_anew(model)
            except SdftError as err:
                # Not the error itself, which holds on to what was loaded of the model.
                self._unloadable[model.name] = type(err), str(err)
                raise
        return self._loaded[model.name]

    def clear(self) -> None:
        """Let go of all models."""
        self._drop(list(self._loaded))

    def _drop(self, names: Iterable[str]) -> None:
        from axolotl_sdft.inference.forwarding import free_memory

        for name in names:
            del self._loaded[name]
        free_memory()

    def _loaded_anew(self, model: ReportedModel) -> tuple[Any, Any]:
        return load_model(
            model,
            self._spec.config.dtype,
            **self._spec.config.placement,
            trust_remote_code=self._spec.trust_remote_code,
            chat_template=self._spec.chat_template,
        )


def own_tokenizer(model: ReportedModel, *, trust_remote_code: bool = False, chat_template: str | None = None) -> Any:
    """Return a model's tokenizer; an adapter that was saved without one has its base model's."""
    from axolotl_sdft.inference.prompts import load_tokenizer

    has_own = (model.folder / "tokenizer_config.json").is_file()
    folder = model.folder if has_own else weights_dir(model.folder)
    return load_tokenizer(folder, trust_remote_code=trust_remote_code, chat_template=chat_template)


def notes_of_template(model: ReportedModel, seed_tokenizer: Any, spec: RecoverySpec) -> Iterator[str]:
    """Yield a note where a model has learnt to be asked in another way than with the seed model's chat template."""
    from axolotl_sdft.inference.chat_templates import render_chat

    try:
        tokenizer = own_tokenizer(model, trust_remote_code=spec.trust_remote_code, chat_template=spec.chat_template)
        own, asked = (render_chat(each, _CHAT, spec.template_arguments)[1] for each in (tokenizer, seed_tokenizer))
    except Exception as err:  # tokenizers and templates raise what they like
        LOG.debug("%s: its chat template can't be compared", model.name, exc_info=err)
        return
    if own != asked:
        yield (
            f"{model.name}: its chat template writes chats otherwise than the seed model's, with which all models are "
            "asked, so it may be better than its figures say; to compare, train with chat_template: tokenizer_default"
        )


def _torch_dtype(dtype: str) -> Any:
    """Return the dtype to load in: on an accelerator ``auto`` is the checkpoint's own (None), on a CPU float32."""
    import torch

    from axolotl_sdft.core.runtime import local_device

    if dtype != "auto":
        return getattr(torch, dtype)
    return torch.float32 if local_device().type == "cpu" else None
