"""The seed model as teacher, at the memory of what the student lacks.

With LoRA and its kind the student's own weights stay as they are. So the teacher takes them: embeddings, norms, head
and the layers that the pruning left. Only what was removed, and what a patch changed, is read from the seed model's
checkpoint. The teacher has modules of its own around the shared weights. Adapters, hooks, modes and patched methods of
the student's modules are therefore none of its own, and it runs as the seed model loaded apart would.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from axolotl_sdft.core.errors import CheckpointError, ConfigError
from axolotl_sdft.core.model_folder import read_config
from axolotl_sdft.inference.forwarding import free_memory
from axolotl_sdft.pruning.checkpoint.architecture import num_extra_layers
from axolotl_sdft.pruning.checkpoint.legacy_files import is_legacy
from axolotl_sdft.pruning.checkpoint.tensor_files import StoredTensor, find_layer_prefix, read_checkpoint
from axolotl_sdft.training.teachers.loading import load_layers
from axolotl_sdft.training.teachers.origin import SeedOrigin, seed_config

LOG = logging.getLogger(__name__)

CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "mica", "lora_ga")
"""PEFT's ways of starting an adapter that take something out of the base weights."""


_PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def base_model_of(model: Any) -> Any:
    """Return the model below an adapter; the model itself where it has none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def has_fresh_lora(model: nn.Module) -> bool:
    """Whether a model has LoRA adapters, none of which changes yet what it says."""
    zero_at_start = (".lora_B.", ".lora_embedding_A.")
    tensors = [tensor for name, tensor in model.named_parameters() if any(part in name for part in zero_at_start)]
    return bool(tensors) and not any(bool(tensor.any()) for tensor in tensors)


def unshareable_reason(model: nn.Module) -> str | None:
    """Return why a student's own layers are not those of the seed model while it is trained; None where they are."""
    for name, adapter in getattr(model, "peft_config", {}).items():
        init = str(getattr(adapter, "init_lora_weights", "")).lower()
        if init.startswith(CHANGING_INITS):
            return f"adapter {name!r} (init_lora_weights {init!r}) has taken a part of the base weights into itself"
    base = base_model_of(model)
    trained = [name for name, tensor in _own_parameters(base) if tensor.requires_grad]
    if trained:
        return f"{len(trained)} of the student's own weights are trained, {trained[0]} among them"
    odd = next((name for name, tensor in _own_parameters(base) if type(tensor).__name__ == "DTensor"), None)
    if odd is not None:
        return f"the student's weights are spread over ranks ({odd})"
    devices = {str(tensor.device) for _, tensor in _own_parameters(base)}
    if len(devices) > 1 or "meta" in devices:
        return f"the student's weights are on several devices ({', '.join(sorted(devices))})"
    return None


def changed_reason(model: nn.Module, origin: SeedOrigin) -> str | None:
    """Return why a pruned student's layers are no longer those of the seed model; None where they are.

    The beginning of each weight is held against the seed model's checkpoint. What is quantized, or stored in another
    form than it is loaded in, can't be.
    """
    if is_legacy(origin.seed_dir):
        return None
    weights = dict(_own_parameters(base_model_of(model)))
    prefix = find_layer_prefix(weights, len(origin.kept))
    for path, stored in groupby(_kept_tensors(origin), key=lambda pair: pair[1].file):
        with safe_open(path, framework="pt") as file:
            for name, tensor in stored:
                weight = weights.get(prefix + name)
                if weight is not None and _is_plain(weight, tensor) and not _begins_alike(weight, tensor, file):
                    return (
                        f"{prefix + name} is no longer as the seed model in {origin.seed_dir} has it (an adapter was "
                        "merged into the student, or other weights were loaded)"
                    )
    return None


def _kept_tensors(origin: SeedOrigin) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the stored tensors of unpatched layers that the student has, by their names there below the layers."""
    stored, _ = read_checkpoint(origin.seed_dir)
    num_extra = num_extra_layers(read_config(origin.seed_dir))
    prefix = find_layer_prefix((tensor.name for tensor in stored), origin.num_layers, num_extra)
    for tensor in sorted(stored, key=lambda tensor: str(tensor.file)):
        number, _, rest = tensor.name.removeprefix(prefix).partition(".")
        if not tensor.name.startswith(prefix) or not number.isdigit() or int(number) not in origin.kept:
            continue
        if (int(number), rest.rpartition(".")[0]) not in origin.patched:
            yield f"{origin.kept.index(int(number))}.{rest}", tensor


def _is_plain(weight: Tensor, stored: StoredTensor) -> bool:
    is_float = stored.dtype in ("F32", "F16", "BF16") and weight.dtype in _PLAIN_DTYPES
    return type(weight) is nn.Parameter and is_float and weight.dim() > 0 and tuple(weight.shape) == stored.shape


def _begins_alike(weight: Tensor, stored: StoredTensor, file: Any) -> bool:
    """Whether the first numbers are the same, in the precision of either, or in one that they went through between."""
    beginning = (*(slice(0, 1) for _ in stored.shape[1:]), slice(None))
    expected, found = file.get_slice(stored.name)[beginning], weight.detach()[beginning].cpu()
    return any(torch.equal(found, expected.to(between).to(found.dtype)) for between in (expected.dtype, *_PLAIN_DTYPES))


def build_shared_teacher(model: nn.Module, origin: SeedOrigin | None, trust_remote_code: bool = False) -> nn.Module:
    """Return the seed model, whose weights are those of the student wherever the two are the same.

    Its logits are those of the seed model loaded apart. Nothing of it is trained.

    Args:
        model: The student, with or without adapters.
        origin: The seed model; None where the student was not pruned, so that nothing has to be read.
        trust_remote_code: Run code that comes with the seed model.

    Raises:
        ConfigError: The student's layers are not those of the seed model, or its vocabulary is another one.
        CheckpointError: The removed layers can't be loaded apart from the others.
    """
    reason = unshareable_reason(model)
    if reason is not None:
        raise ConfigError(f"logit_distillation.teacher is shared, but {reason}; set it to own")
    base = base_model_of(model)
    config = seed_config(base, origin, trust_remote_code)
    with torch.device("meta"):
        teacher = type(base)._from_config(config).eval()
    removed = load_layers(base, origin, config, trust_remote_code) if origin is not None and origin.needed else None
    _connect(teacher, _Sources(base, removed, origin, _prefix_of(teacher, origin)))
    extra = _count_extra(teacher, base)
    del removed
    free_memory()
    LOG.info("the teacher shares the student's layers; %s parameters of its own", f"{extra:,}")
    return teacher


@dataclass(frozen=True)
class _Sources:
    """Where each module of the seed model is taken from."""

    student: nn.Module
    removed: nn.Module | None
    origin: SeedOrigin | None
    prefix: str
    """What comes before the layer number in module names."""

    def find(self, name: str) -> nn.Module:
        """Return the module that holds the weights of a module of the seed model."""
        layer, rest = self._layer(name)
        if layer is None or self.origin is None:
            return _base_module(self.student, name)
        if self.is_removed(name):
            assert self.removed is not None
            return _base_module(self.removed, f"{self.prefix}{self.origin.needed.index(layer)}.{rest}")
        return _base_module(self.student, f"{self.prefix}{self.origin.kept.index(layer)}.{rest}")

    def is_removed(self, name: str) -> bool:
        """Whether a module comes from the seed model's checkpoint: its layer was removed, or a patch changed it."""
        layer, rest = self._layer(name)
        return self.origin is not None and (layer in self.origin.drop_layers or (layer, rest) in self.origin.patched)

    def has_layer(self, name: str) -> bool:
        return self._layer(name)[0] is not None

    def dtype(self, name: str, tensor_name: str) -> torch.dtype | None:
        """Return the dtype of the same tensor in a layer that the student kept; None where none has it.

        Trainers raise the precision of some weights, norms above all, after they were loaded.
        """
        _, rest = self._layer(name)
        for index in range(len(self.origin.kept) if self.origin is not None else 0):
            try:
                source = _base_module(self.student, f"{self.prefix}{index}.{rest}")
            except AttributeError:
                continue
            tensor = source._parameters.get(tensor_name)
            if tensor is not None:
                return tensor.dtype
        return None

    def _layer(self, name: str) -> tuple[int | None, str]:
        if not self.prefix or not name.startswith(self.prefix):
            return None, ""
        number, _, rest = name[len(self.prefix) :].partition(".")
        return int(number), rest


def _connect(teacher: nn.Module, sources: _Sources) -> None:
    """Give each module of the teacher its weights: those of its source, or the source itself where it is quantized."""
    for name, module in list(teacher.named_modules()):
        if not (module._parameters or module._buffers or _meta_attributes(module)):
            continue
        source = _source(sources, name)
        if type(source) is not type(module):
            parent, _, child = name.rpartition(".")
            setattr(teacher.get_submodule(parent), child, source)
            continue
        _share(name, module, source, sources)
    missing = next((name for name, tensor in _tensors(teacher) if tensor.is_meta), None)
    if missing is not None:
        raise CheckpointError(f"{missing} of the seed model is in neither the student nor the removed layers")


def _source(sources: _Sources, name: str) -> nn.Module:
    try:
        return sources.find(name)
    except AttributeError as err:
        raise CheckpointError(f"module {name} of the seed model has no counterpart in the student ({err})") from err


def _share(name: str, module: nn.Module, source: nn.Module, sources: _Sources) -> None:
    for kind in ("_parameters", "_buffers"):
        own, theirs = getattr(module, kind), getattr(source, kind)
        for key, tensor in list(own.items()):
            if tensor is None:
                continue
            found = theirs.get(key)
            if found is None and not sources.has_layer(name) and sources.removed is not None:
                # Such as the rotary frequencies of a kind of layers of which the student has none left.
                found = getattr(_base_module(sources.removed, name), kind).get(key)
            if found is None or found.shape != tensor.shape:
                shape = None if found is None else tuple(found.shape)
                raise CheckpointError(f"{name}.{key} of the seed model is {tuple(tensor.shape)}, the student's {shape}")
            own[key] = found
            dtype = sources.dtype(name, key) if kind == "_parameters" and sources.is_removed(name) else None
            if dtype is not None:
                found.data = found.data.to(dtype)
    for key in _meta_attributes(module):
        setattr(module, key, getattr(source, key))


def _meta_attributes(module: nn.Module) -> list[str]:
    return [key for key, value in vars(module).items() if torch.is_tensor(value) and value.is_meta]


def _prefix_of(teacher: nn.Module, origin: SeedOrigin | None) -> str:
    if origin is None:
        return ""
    return find_layer_prefix((name for name, _ in teacher.named_parameters()), origin.num_layers)


def _base_module(model: nn.Module, name: str) -> nn.Module:
    """Return a module by name, always the one below an adapter or below a trained copy.

    Raises:
        AttributeError: There is none.
    """
    module = _below_adapter(model)
    for part in filter(None, name.split(".")):
        child = module._modules.get(part)
        if child is None:
            raise AttributeError(f"{type(module).__name__} has no {part}")
        module = _below_adapter(child)
    return module


def _below_adapter(module: nn.Module) -> nn.Module:
    while type(module).__module__.startswith("peft."):
        inner = [module._modules.get(key) for key in ("base_layer", "original_module")]
        found = next((child for child in inner if child is not None), None)
        if found is None:
            break
        module = found
    return module


def _own_parameters(module: nn.Module, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters below all adapters and trained copies."""
    module = _below_adapter(module)
    for key, tensor in module.named_parameters(name, recurse=False):
        yield key, tensor
    for key, child in module.named_children():
        yield from _own_parameters(child, f"{name}.{key}" if name else key)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _count_extra(teacher: nn.Module, base: nn.Module) -> int:
    shared = {id(tensor) for tensor in base.parameters()}
    return sum(tensor.numel() for tensor in teacher.parameters() if id(tensor) not in shared)
