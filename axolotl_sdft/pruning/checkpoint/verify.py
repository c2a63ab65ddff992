"""Checks without weights that a pruned ``config.json`` describes the seed model's own layers.

Both models are built without memory for their weights, and each layer of the pruned one must be built like the layer of
the seed model that it comes from. What a model computes from a layer's number into a tensor stays unseen.
"""

import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig

from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.pruning.checkpoint.derived_config import HARMLESS, with_floats
from axolotl_sdft.pruning.checkpoint.tensor_files import first_number_prefix

LOG = logging.getLogger(__name__)

_AUTO_CLASSES = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMaskedLM")
_OWN_NUMBER = re.compile(r"^(layer_?(idx|id|index|number|num)|block_id|seed)$")
_OTHER_NUMBER = re.compile(r"layer_?(idx|id|index|number)$")
_ABSENT = "nothing"


def verify_cut(seed_config: dict[str, Any], pruned_config: dict[str, Any], kept: Sequence[int]) -> None:
    """Require that both ``config.json`` build the same model, but for the removed layers.

    Classes, shapes and dtypes of all parameters and buffers, and the plain values of all modules are compared.
    Where transformers has no class for the model, or can't build the seed model this way, a warning says so.

    Args:
        seed_config: The content of the seed model's ``config.json``.
        pruned_config: The same after the cut.
        kept: The layers that stay, by their number in the seed model.

    Raises:
        CheckpointError: The message names the first difference.
    """
    model_type = seed_config.get("model_type")
    try:
        seed = _built(seed_config)
    except Exception as err:  # a model's constructor may raise anything
        LOG.warning("can't build model type %r without weights, so its cut is not verified: %s", model_type, err)
        return
    if seed is None:
        LOG.warning("transformers has no class for model type %r, so its cut is not verified", model_type)
        return
    try:
        pruned = _built(pruned_config)
    except Exception as err:
        raise CheckpointError(f"model type {model_type!r} can't be built with {len(kept)} layers: {err}") from err
    assert pruned is not None  # both have the seed model's model type
    difference = next(_differences(seed, pruned, tuple(kept)), None)
    if difference is not None:
        left = f"with layers {', '.join(map(str, kept))} left"
        raise CheckpointError(f"model type {model_type!r} can't be cut soundly: {left}, {difference}")


def _built(config: dict[str, Any]) -> nn.Module | None:
    """Return the model of a ``config.json`` on the meta device, or None when transformers has no class for it."""
    if config.get("model_type") not in CONFIG_MAPPING:
        return None
    settings = {key: value for key, value in with_floats(config).items() if key != "quantization_config"}
    parsed = CONFIG_MAPPING[config["model_type"]].from_dict(settings)
    with torch.device("meta"):
        for name in config.get("architectures") or []:
            if hasattr(transformers, name):
                return getattr(transformers, name)._from_config(_own_config(name, parsed))
        for name in _AUTO_CLASSES:
            auto_class = getattr(transformers, name)
            if type(parsed) in auto_class._model_mapping:
                return auto_class.from_config(parsed)
    return None


def _own_config(class_name: str, config: PretrainedConfig) -> PretrainedConfig:
    """Return what the class takes: a text model of a family that also sees takes the settings of its text part."""
    wanted = getattr(transformers, class_name).config_class
    text = config.get_text_config(decoder=True)
    return text if not isinstance(config, wanted) and isinstance(text, wanted) else config


@dataclass(frozen=True)
class _Matching:
    """Which module of the seed model each module of the pruned model comes from."""

    lists: dict[str, int]
    """Prefix of each module list that was cut, and how long it was."""
    kept: tuple[int, ...]

    def place(self, name: str) -> tuple[str, int, str] | None:
        """Return prefix, number and rest of a name inside a layer."""
        for prefix in self.lists:
            if name.startswith(prefix):
                number, dot, rest = name[len(prefix) :].partition(".")
                return prefix, int(number), dot + rest
        return None

    def origin(self, name: str) -> str:
        """Return the seed model's name for a module of the pruned model."""
        place = self.place(name)
        return f"{place[0]}{self.kept[place[1]]}{place[2]}" if place else name

    def is_gone(self, name: str) -> bool:
        """Tell whether a module of the seed model belongs to a removed layer."""
        place = self.place(name)
        return place is not None and place[1] not in self.kept


def _differences(seed: nn.Module, pruned: nn.Module, kept: tuple[int, ...]) -> Iterator[str]:
    matching = _Matching(_cut_lists(seed, pruned, kept), kept)
    if not matching.lists:
        yield f"no list of modules has become {len(kept)} long"
        return
    seed_parts = {name: _part(module) for name, module in seed.named_modules()}
    origins = {name: matching.origin(name) for name, _ in pruned.named_modules()}
    for name, module in pruned.named_modules():
        part, original = _part(module), seed_parts.get(origins[name], {})
        for key in sorted(part.keys() | original.keys(), key=_importance):
            old, new = original.get(key, _ABSENT), part.get(key, _ABSENT)
            if not _is_same(key, old, new, matching, is_layer=matching.place(name) is not None):
                here, there = name or "the model", origins[name] or "the model"
                yield f"{here} has {_shown(new)} as {key}, but {there} in the seed model has {_shown(old)}"
    for name in sorted(seed_parts.keys() - set(origins.values())):
        if not matching.is_gone(name):
            yield f"{name} of the seed model has no counterpart"


def _cut_lists(seed: nn.Module, pruned: nn.Module, kept: tuple[int, ...]) -> dict[str, int]:
    """Return the module lists that are as long as the layers left and were long enough to hold them before."""
    lengths = {name: len(module) for name, module in seed.named_modules() if isinstance(module, nn.ModuleList)}
    return {
        f"{name}.": lengths[name]
        for name, module in pruned.named_modules()
        if isinstance(module, nn.ModuleList)
        and first_number_prefix(f"{name}.") is None
        and len(module) == len(kept) != lengths.get(name)
        and lengths.get(name, 0) > max(kept)
    }


def _part(module: nn.Module) -> dict[str, Any]:
    """Return what is compared of a module: its class, its own parameters and buffers, its plain values."""
    part: dict[str, Any] = {"class": type(module).__name__}
    for name, parameter in module.named_parameters(recurse=False):
        part[f"parameter {name}"] = (tuple(parameter.shape), str(parameter.dtype))
    for name, buffer in module.named_buffers(recurse=False):
        part[f"buffer {name}"] = (tuple(buffer.shape), str(buffer.dtype))
    return part | {name: value for name, value in vars(module).items() if name != "training" and _is_plain(value)}


def _importance(key: str) -> tuple[bool, bool, str]:
    return key != "class", not key.startswith(("parameter ", "buffer ")), key


def _shown(value: Any) -> str:
    return _ABSENT if value is _ABSENT else repr(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(item is None or isinstance(item, bool | int | float | str) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _is_same(key: str, old: Any, new: Any, matching: _Matching, is_layer: bool) -> bool:
    if old == new or _OWN_NUMBER.search(key) or key in HARMLESS:
        return True
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-6)
    if _OTHER_NUMBER.search(key) and isinstance(new, int):
        if new == len(matching.kept):  # one past the last layer, so none is meant
            return old in matching.lists.values()
        return 0 <= new < len(matching.kept) and matching.kept[new] == old
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and _is_cut_list(list(old), list(new), matching):
        return True
    return not is_layer and _is_shortened(key, old, new, matching)


def _is_cut_list(old: list[Any], new: list[Any], matching: _Matching) -> bool:
    """Tell whether a list lost the entries, or the numbers, of the removed layers."""
    kept = matching.kept
    is_by_layer = len(old) in matching.lists.values() and new == [old[layer] for layer in kept]
    are_numbers = all(isinstance(layer, int) and 0 <= layer < len(kept) for layer in new)
    return is_by_layer or (are_numbers and [kept[layer] for layer in new] == [layer for layer in old if layer in kept])


def _is_shortened(key: str, old: Any, new: Any, matching: _Matching) -> bool:
    """Tell whether something outside the layers differs only because layers went."""
    if new is _ABSENT:  # what only the kinds of layers need that are gone, such as their rotary frequencies
        return not key.startswith("parameter")
    if isinstance(new, list | tuple) and isinstance(old, list | tuple):
        return set(new) <= set(old)
    if isinstance(new, int) and isinstance(old, int):  # the count, or that of caches, of which a layer may have two
        return any(old * len(matching.kept) == new * length for length in matching.lists.values())
    return False
