"""Whether the pictures of two mini-batches can be joined, tried with the seed model's own processor.

How pictures are laid out is the processor's choice: patches with their grids, pictures or tiles one after the other, or
one place per row and picture. So no list of models tells what can be joined. Mini-batches are made the way Axolotl
makes them, and are joined the way DynSDPB joins them.
"""

import logging
from collections.abc import Mapping
from typing import Any

from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.integrations.axolotl.blocks import yaml_chat_template

LOG = logging.getLogger(__name__)

_SIZES = ((112, 84), (84, 140))
"""Width and height of the pictures that are tried, where nothing gives all pictures one size."""


def check_pictures(cfg: Mapping[str, Any]) -> None:
    """Refuse a processor whose mini-batches DynSDPB can't join; warn where only rows without pictures are in the way.

    Args:
        cfg: The raw configuration. Without ``processor_type`` Axolotl hands no pictures to the model.

    Raises:
        ConfigError: Mini-batches of one picture each can't be joined; the message names the input, and ``image_size``
            where pictures of one size could be.
    """
    if not cfg.get("processor_type") or cfg.get("tokenizer_use_mistral_common"):
        return
    try:
        processor = _load_processor(cfg)
        size = _common_size(cfg, processor)
        template = yaml_chat_template(cfg)
        previous, new = (_batch(processor, template, size or other) for other in _SIZES)
        alike = _batch(processor, template, _SIZES[0])
        text = _batch(processor, template, None)
    except Exception as err:  # a processor and its template may raise anything
        LOG.warning(
            "dynsdpb: whether pictures can be joined could not be tried with processor_type %s (%s: %s); those that "
            "can't be are refused at the first pair of mini-batches",
            cfg["processor_type"],
            type(err).__name__,
            str(err).partition("\n")[0],
        )
        return
    fault = _fault(previous, new)
    if fault is not None:
        is_cured_by_size = size is None and _fault(alike, alike) is None
        raise ConfigError(_refusal(cfg, processor, fault, is_cured_by_size=is_cured_by_size))
    fault = _fault(previous, text) or _fault(text, previous)
    if fault is not None:
        LOG.warning(
            "dynsdpb: processor_type is %s (%s), whose rows with pictures can't be joined with rows that have none, "
            "which are refused when they first meet (%s); give each row a picture",
            cfg["processor_type"],
            type(processor).__name__,
            fault,
        )


def _refusal(cfg: Mapping[str, Any], processor: Any, fault: str, *, is_cured_by_size: bool) -> str:
    what = f"dynsdpb joins each mini-batch with the one before, but processor_type is {cfg['processor_type']!r} ("
    what += f"{type(processor).__name__} of {_processor_name(cfg)})"
    if is_cured_by_size:
        return (
            f"{what}, which leaves pictures of different sizes as they are: {fault}; set image_size, to which Axolotl "
            "resizes the pictures of the columns image and images, or train without the dynsdpb block"
        )
    return f"{what}, whose pictures can't be joined: {fault}; train without the dynsdpb block, or with another model"


def _fault(previous: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Return what stands in the way of joining two mini-batches; None where nothing does."""
    from axolotl_sdft.training.batching import join_batches

    try:
        join_batches(previous, new, 0)
    except ConfigError as err:
        return str(err).removeprefix("dynsdpb: ").partition("; ")[0]
    return None


def _processor_name(cfg: Mapping[str, Any]) -> str:
    return str(cfg.get("processor_config") or cfg.get("base_model_config") or cfg["base_model"])


def _load_processor(cfg: Mapping[str, Any]) -> Any:
    import transformers

    processor_class = getattr(transformers, str(cfg["processor_type"]))
    return processor_class.from_pretrained(_processor_name(cfg), **_origin(cfg), **(cfg.get("processor_kwargs") or {}))


def _origin(cfg: Mapping[str, Any]) -> dict[str, Any]:
    revision = {"revision": cfg["revision_of_model"]} if cfg.get("revision_of_model") else {}
    return {"trust_remote_code": bool(cfg.get("trust_remote_code"))} | revision


def _common_size(cfg: Mapping[str, Any], processor: Any) -> tuple[int, int] | None:
    """Return the (width, height) that Axolotl resizes all pictures to; None where it leaves them as they are."""
    size: Any = cfg.get("image_size") or _size_of_processor(processor) or _size_of_tower(cfg)
    if isinstance(size, list | tuple):
        return int(size[0]), int(size[-1])
    return None if size is None else (int(size), int(size))


def _size_of_processor(processor: Any) -> Any:
    size = getattr(processor, "size", None)
    if not isinstance(size, Mapping):
        return None
    given = [size[side] for side in ("width", "height") if size.get(side)]
    return tuple(given) if given else None


def _size_of_tower(cfg: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    name = cfg.get("base_model_config") or cfg["base_model"]
    config = AutoConfig.from_pretrained(name, **_origin(cfg))
    return getattr(getattr(config, "vision_config", None), "image_size", None)


def _batch(processor: Any, template: str | None, size: tuple[int, int] | None) -> dict[str, Any]:
    """Return one row as Axolotl's collator makes it, with a picture of a width and height, or with text alone."""
    from PIL import Image

    asked: list[dict[str, Any]] = [{"type": "text", "text": "What is this?"}]
    if size is not None:
        asked.append({"type": "image", "image": Image.new("RGB", size)})
    answer = [{"type": "text", "text": "A cat."}]
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    batch = dict(
        processor.apply_chat_template(
            [messages],
            add_generation_prompt=False,
            tokenize=True,
            return_tensors="pt",
            return_dict=True,
            processor_kwargs={"padding": True},
            **({} if template is None else {"chat_template": template}),
        )
    )
    return batch | {"labels": batch["input_ids"].clone()}
