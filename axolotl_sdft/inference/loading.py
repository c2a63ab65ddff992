"""Loads models: the only place that reads weights through transformers for inference, whichever stage asks.

A stage says how it computes and what is at fault where that fails; what kind of checkpoint lies in a folder, and how
that is loaded, is known here alone. torch and transformers come with the first call.
"""

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import TransformersGeneration
from axolotl_sdft.core.errors import CheckpointError, MissingExtraError, error_context, failure, memory_shortage
from axolotl_sdft.core.model_folder import ADAPTER_CONFIG, is_adapter, read_adapter_config, read_config
from axolotl_sdft.core.runtime import compute_dtype, local_device
from axolotl_sdft.core.trained_on import weights_dir

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LOG = logging.getLogger(__name__)

_GENERATION_KEY = "self_distillation.generation"
_CONTEXT_LENGTHS = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "n_positions", "seq_length")
# transformers' class for each kind of head. The first kind that fits a checkpoint loads it.
_TEXT_HEADS = {"CAUSAL_LM": "AutoModelForCausalLM", "IMAGE_TEXT_TO_TEXT": "AutoModelForImageTextToText"}
_ANY_HEAD = _TEXT_HEADS | {
    "MASKED_LM": "AutoModelForMaskedLM",
    "SEQUENCE_CLASSIFICATION": "AutoModelForSequenceClassification",
    "TOKEN_CLASSIFICATION": "AutoModelForTokenClassification",
}


def load_seed_model(model_dir: Path, config: TransformersGeneration) -> Any:
    """Return the seed model that rewrites, in evaluation mode on this process's own device or spread by ``device_map``.

    Raises:
        CheckpointError: It can't be loaded, or memory ran out.
        MissingExtraError: It is an adapter and peft is not installed, or ``device_map`` is set and accelerate is not.
    """
    require_packages(_GENERATION_KEY, device_map=config.device_map)
    what = f"the seed model {model_dir} can't be loaded to rewrite answers"
    way_out = "or serve it yourself, and set backend: openai"
    with error_context(
        memory_shortage(f"the seed model {model_dir} was loaded", f"set {_GENERATION_KEY}.device_map: auto, {way_out}"),
        failure(what, f"if it comes with code of its own, set {_GENERATION_KEY}.trust_remote_code: true; {way_out}"),
    ):
        return load_checkpoint(
            model_dir,
            compute_dtype(config.dtype, local_device()),
            device_map=config.device_map,
            trust_remote_code=bool(config.trust_remote_code),
        )


def load_checkpoint(
    model_dir: Path,
    dtype: "torch.dtype | None" = None,
    *,
    device_map: Any = None,
    load_in_4bit: bool = False,
    trust_remote_code: bool = False,
    any_head: bool = False,
) -> Any:
    """Return the model in a folder, in evaluation mode on this process's own device, or spread by ``device_map``.

    A checkpoint that is quantized already is loaded as it is, a vision-language model whole, and a LoRA adapter on top
    of the base model that it names, or that it was trained on where that was moved.

    Args:
        model_dir: Folder of a checkpoint or an adapter.
        dtype: What the weights are turned into; unset, they keep the checkpoint's own.
        device_map: As in transformers.
        load_in_4bit: Quantize the weights with bitsandbytes; what is multiplied has ``dtype``.
        trust_remote_code: Run code that comes with the model.
        any_head: Take models that write no text, too, such as encoders.

    Raises:
        CheckpointError: There is no checkpoint, or the adapter's base is gone, or it is of a kind that writes no text,
            or files lack weights of the model.
        MissingExtraError: It is an adapter, and peft is not installed.
        Exception: Whatever transformers and peft raise for files that do not fit together; see ``error_context``.
    """
    if is_adapter(model_dir):
        _require_text_adapter(model_dir)
    base_dir = weights_dir(model_dir)
    config = read_config(base_dir)
    settings = _settings(config, dtype, device_map, load_in_4bit)
    LOG.info("loading %s with %s on %s", model_dir, settings, local_device())
    auto_class = _auto_class(config, trust_remote_code, any_head)
    model, found = auto_class.from_pretrained(
        base_dir, trust_remote_code=trust_remote_code, output_loading_info=True, **settings
    )
    # A head that writes no text is often made anew, and a quantizer makes tensors of its own.
    if not any_head and not config.get("quantization_config"):
        _refuse_holes(model, base_dir, found)
    if "device_map" not in settings and not config.get("quantization_config"):
        model = model.to(local_device())
    return (model if base_dir == model_dir else _adapted(model, model_dir, trust_remote_code)).eval()


def build_structure(model_dir: Path, *, trust_remote_code: bool = False) -> "PreTrainedModel":
    """Return a model on the meta device: all of its modules, none of its weights. It may have any head.

    Raises:
        CheckpointError: There is no checkpoint.
        Exception: Whatever transformers raises where it can't build it.
    """
    import torch
    from transformers import AutoConfig

    auto_class = _auto_class(read_config(model_dir), trust_remote_code, any_head=True)
    with torch.device("meta"):
        model_config = AutoConfig.from_pretrained(model_dir, trust_remote_code=trust_remote_code)
        model: PreTrainedModel = auto_class.from_config(model_config, trust_remote_code=trust_remote_code)
    return model


def require_packages(key: str, *, device_map: Any = None, load_in_4bit: bool = False) -> None:
    """Raise :class:`MissingExtraError` where a setting below this YAML key needs a package that is not installed."""
    for setting, is_set, package in (
        ("load_in_4bit", load_in_4bit, "bitsandbytes"),
        ("load_in_4bit", load_in_4bit, "accelerate"),
        ("device_map", device_map is not None, "accelerate"),
    ):
        if is_set and importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"{key}.{setting} is set, but {package} is not installed; install it with: "
                f"pip install 'axolotl-sdft[large]', or remove {setting}"
            )


def context_length(model: Any) -> int | None:
    """Return the most tokens that a model takes, prompt and answer together; None where its config names no limit."""
    config = model.config.get_text_config(decoder=True)
    for name in _CONTEXT_LENGTHS:
        if isinstance(length := getattr(config, name, None), int) and length > 0:
            return length
    return None


def _settings(
    config: Mapping[str, Any], dtype: "torch.dtype | None", device_map: Any, load_in_4bit: bool
) -> dict[str, Any]:
    device, is_quantized = local_device(), bool(config.get("quantization_config"))
    settings: dict[str, Any] = {"dtype": "auto" if dtype is None or is_quantized else dtype}
    if load_in_4bit:
        from transformers import BitsAndBytesConfig

        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype or compute_dtype("auto", device)
        )
    if device_map is not None:
        settings["device_map"] = device_map
    elif load_in_4bit or (is_quantized and device.type != "cpu"):
        settings["device_map"] = {"": str(device)}  # quantized weights can't always be moved once they are loaded
    return settings


def _auto_class(config: Mapping[str, Any], trust_remote_code: bool, any_head: bool) -> Any:
    """Return transformers' class that loads this kind of checkpoint: by its architecture, else by its model type."""
    import transformers
    from transformers.models.auto import modeling_auto

    heads = _ANY_HEAD if any_head else _TEXT_HEADS
    custom = (config.get("auto_map") or {}) if trust_remote_code else {}
    architectures = config.get("architectures") or []
    known = {
        kind: getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES").get(config.get("model_type")) for kind in heads
    }
    by_code = [kind for kind, name in heads.items() if name in custom]
    by_architecture = [kind for kind, name in known.items() if name in architectures]
    by_type = [kind for kind, name in known.items() if name is not None]
    return getattr(transformers, heads[(by_code or by_architecture or by_type or ["CAUSAL_LM"])[0]])


def _refuse_holes(model: Any, model_dir: Path, found: Mapping[str, Any]) -> None:
    """Refuse a checkpoint without some of the model's weights, which transformers makes up at random, with a warning.

    A head that is tied to the embeddings has no weights of its own.
    """
    parameters = {name for name, _ in model.named_parameters()}
    missing = sorted(parameters & set(found["missing_keys"]))
    if not missing:
        return
    unread = sorted(found["unexpected_keys"])
    others = f", but {len(unread)} that it does not know, such as {unread[0]}" if unread else ""
    raise CheckpointError(
        f"{model_dir} holds no weights for {len(missing)} of the {len(parameters)} tensors of its model, such as "
        f"{missing[0]}{others}; random ones would take their place. Save the model anew, by the names of transformers"
    )


def _require_text_adapter(adapter_dir: Path) -> None:
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError(f"{adapter_dir} holds an adapter; install peft: pip install 'axolotl-sdft[lora]'")
    task = read_adapter_config(adapter_dir).get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise CheckpointError(
            f"{adapter_dir / ADAPTER_CONFIG} says task_type: {task}, but only adapters that write text (CAUSAL_LM) can "
            "be used here"
        )


def _adapted(base: Any, adapter_dir: Path, trust_remote_code: bool) -> Any:
    """Return a base model with an adapter on top.

    Raises:
        CheckpointError: The adapter's file lacks some of its weights, or holds others than its settings say.
    """
    from peft import PeftModel
    from transformers import AutoTokenizer

    if (adapter_dir / "tokenizer_config.json").is_file():  # as peft does it where it loads the base itself
        num_tokens = len(AutoTokenizer.from_pretrained(adapter_dir, trust_remote_code=trust_remote_code))
        if num_tokens > base.get_input_embeddings().weight.shape[0]:
            base.resize_token_embeddings(num_tokens)
    adapted = PeftModel.from_pretrained(base, adapter_dir)
    if adapted.active_peft_config.is_prompt_learning:
        return adapted
    told = adapted.load_adapter(adapter_dir, adapted.active_adapter)  # again, since only this says what did not fit
    # peft has no place either for the copies of embeddings that it saves beside resized ones.
    unread = [key for key in told.unexpected_keys if "lora_" in key]
    if unfit := sorted([*told.missing_keys, *unread]):
        raise CheckpointError(
            f"the adapter in {adapter_dir} does not fit its base model: it lacks {len(told.missing_keys)} of its "
            f"tensors, and {len(unread)} have no place, such as {unfit[0]}, so that the base model alone "
            "would answer there. Save the adapter anew, by the names of peft"
        )
    return adapted
