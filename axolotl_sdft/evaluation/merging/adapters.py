"""Merges two LoRA adapters into one, exactly, without building the weights that they add.

Names of tensors end in I: inputs of a module, O: outputs, R: rank of the first adapter, S: rank of the second.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.core.artifacts import write_json
from axolotl_sdft.core.errors import CheckpointError, ConfigError
from axolotl_sdft.core.model_folder import ADAPTER_CONFIG, own_path, read_adapter_config
from axolotl_sdft.core.trained_on import moved_base
from axolotl_sdft.evaluation.merging.same_model import has_tokenizer
from axolotl_sdft.evaluation.merging.slerp import Blend, Overlap, linear_factors

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_WEIGHTS = "adapter_model.safetensors"

_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?P<suffix>(\.weight)?)")
_BASE_PREFIX = "base_model.model."
_MERGE_FIRST = "merge each adapter into its base (axolotl merge-lora), then merge the results"
# Keys that say how much, where and how an adapter was trained; the merge reads them or has its own say. Any other key
# that is set means weights of another kind.
_UNDERSTOOD = {
    *(
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
    ),
    *("init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "peft_type"),
    *("peft_version", "r", "rank_pattern", "revision", "target_modules", "task_type", "use_rslora"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config", "runtime_config", "velora_config"),
    *("megatron_core", "qalora_group_size"),
}
_KEPT = (
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "lora_dropout",
    "peft_type",
    "revision",
    "task_type",
)
# Others, such as pissa, also change the base model when the adapter is loaded.
_INITS_THAT_LEAVE_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Module:
    """What one adapter adds to one module: ``scaling * up @ down``."""

    down: "Tensor"
    """A: [rank, inputs]."""
    up: "Tensor"
    """B: [outputs, rank]."""
    scaling: float


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter in a folder; its weights are read when they are asked for."""

    folder: Path
    config: Mapping[str, Any]

    @property
    def base_name(self) -> str:
        """The base model, as the adapter names it."""
        return self.config.get("base_model_name_or_path") or ""

    @cached_property
    def base(self) -> str:
        """The base model as an absolute path where it is a folder here, else as the adapter names it."""
        folder: Path | None = Path(self.base_name).expanduser() if self.base_name else None
        if folder is not None and not folder.is_dir():
            folder = self._moved_base()
        return str(folder.resolve()) if folder is not None else self.base_name

    @property
    def tokenizer_dir(self) -> Path:
        """The folder whose tokenizer it was trained with: its own, or that of its base, where that is a folder here."""
        base = Path(self.base)
        return base if not has_tokenizer(self.folder) and base.is_dir() else self.folder

    def _moved_base(self) -> Path | None:
        try:
            return moved_base(self.folder)
        except CheckpointError:  # adapters can be merged without their base
            return None

    @cached_property
    def modules(self) -> dict[str, Module]:
        """What it adds, by the beginning of the names in its file.

        Raises:
            CheckpointError: The file is missing, broken, or holds something else than pairs of LoRA matrices.
        """
        tensors = _load(self.folder)
        faults = [name for name in tensors if _KEY.fullmatch(name) is None]
        if faults:
            raise CheckpointError(f"{self.folder} holds {faults[0]!r}, which is not a LoRA matrix; {_MERGE_FIRST}")
        beginnings = dict.fromkeys(_beginning(name) for name in tensors)
        return {beginning: self._module(beginning, tensors) for beginning in beginnings}

    def _module(self, beginning: str, tensors: "Mapping[str, Tensor]") -> Module:
        sides = [next((t for name, t in tensors.items() if name in _names(beginning, side)), None) for side in "AB"]
        down_RI, up_OR = sides
        if down_RI is None or up_OR is None:
            raise CheckpointError(
                f"{self.folder} holds only one of the two LoRA matrices of {beginning}; save it again"
            )
        if up_OR.flatten(1).shape[1] != len(down_RI):  # such as in a convolution of several groups
            raise CheckpointError(
                f"the LoRA matrices of {beginning} in {self.folder} are {list(up_OR.shape)} and {list(down_RI.shape)}, "
                f"which don't multiply; {_MERGE_FIRST}"
            )
        return Module(down_RI, up_OR, self._scaling(_module_name(beginning), len(down_RI)))

    def _scaling(self, module: str, rank: int) -> float:
        """Return what peft multiplies a module's product by. A pattern fits the end of a module's name."""
        patterns = self.config.get("alpha_pattern") or {}
        matching = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
        alpha = next(matching, self.config.get("lora_alpha", 8))
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)


def read_adapter(folder: Path) -> Adapter:
    """Return an adapter whose weights can be merged; reads its settings only.

    Raises:
        CheckpointError: It is another kind of adapter, or trains more than LoRA matrices; the message says what to do.
    """
    config = read_adapter_config(folder)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder} holds a {config.get('peft_type')} adapter, not LoRA; {_MERGE_FIRST}")
    extra = [
        key for key, value in config.items() if key not in _UNDERSTOOD and value not in (None, False, "none", [], {})
    ]
    if extra:
        values = ", ".join(f"{key}: {config[key]!r}" for key in extra)
        raise CheckpointError(f"{folder} is more than LoRA matrices ({values}); {_MERGE_FIRST}")
    if config.get("init_lora_weights") not in _INITS_THAT_LEAVE_THE_BASE:
        raise CheckpointError(
            f"{folder} was begun with init_lora_weights: {config['init_lora_weights']}, which changes the base model "
            f"too; {_MERGE_FIRST}"
        )
    return Adapter(folder, config)


def check_same_base(first: Adapter, second: Adapter) -> None:
    """Raise :class:`ConfigError` unless two adapters were trained on the same base model."""
    bases = [(adapter.base, adapter.config.get("revision")) for adapter in (first, second)]
    if bases[0] != bases[1]:
        raise ConfigError(
            f"{first.folder} was trained on {first.base_name!r}, {second.folder} on {second.base_name!r}; merge "
            "adapters of the same base model (base_model_name_or_path in adapter_config.json)"
        )


def merge_adapters(first: Adapter, second: Adapter, folder: Path, blend: Blend, dtype: str) -> None:
    """Write the adapter whose weights are the merge of what two adapters add, module by module.

    Per module, the angle between the two comes from products of the small matrices: the inner product of ``B1 A1`` and
    ``B2 A2`` is the sum over ``(B1^T B2) * (A1 A2^T)``. The result has the sum of both ranks: the ``A`` are stacked,
    the ``B`` set side by side with the factors in them, and peft multiplies by 1. A module that one adapter leaves
    alone counts as zero there, and a zero has no direction: it is averaged.

    Raises:
        ConfigError: A module has other shapes in the other adapter.
        CheckpointError: A file is broken, or holds something else than LoRA matrices.
    """
    modules = {}
    for beginning in dict.fromkeys([*first.modules, *second.modules]):
        parts = [adapter.modules.get(beginning) for adapter in (first, second)]
        _check_shapes(beginning, first, second)
        modules[beginning] = _combined(parts[0], parts[1], blend)
    template = first if first.modules.keys() == second.modules.keys() else None
    _write(folder, first, modules, dtype, template)


def scale_adapter(adapter: Adapter, folder: Path, factor: float, dtype: str) -> None:
    """Write an adapter that adds ``factor`` times what another one adds.

    That is its merge with the base model, which adds nothing: there is no angle to zero, so the way is a straight line.

    Raises:
        CheckpointError: A file is broken, or holds something else than LoRA matrices.
    """
    modules = {beginning: (module.down, _scaled(module, factor)) for beginning, module in adapter.modules.items()}
    _write(folder, adapter, modules, dtype, adapter)


def _load(folder: Path) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(own_path(folder, ADAPTER_WEIGHTS))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {ADAPTER_WEIGHTS}; load the adapter with peft and save it again with save_pretrained"
        ) from None
    except SafetensorError as err:
        raise CheckpointError(f"{folder / ADAPTER_WEIGHTS} can't be read: {err}") from err


def _beginning(name: str) -> str:
    """Return the beginning that the names of both matrices of a module share, with the mark of an embedding."""
    match = _KEY.fullmatch(name)
    assert match is not None
    return f"{match['module']}.lora_{match['kind'] or ''}"


def _names(beginning: str, side: str) -> Sequence[str]:
    return (f"{beginning}{side}.weight", f"{beginning}{side}")


def _module_name(beginning: str) -> str:
    """Return the module as peft's patterns name it: ``base_model.model.lm.q.lora_`` is the module ``lm.q``."""
    return beginning.removeprefix(_BASE_PREFIX).rpartition(".lora_")[0]


def _check_shapes(beginning: str, first: Adapter, second: Adapter) -> None:
    modules = [adapter.modules.get(beginning) for adapter in (first, second)]
    if modules[0] is None or modules[1] is None:
        return
    shapes = [[module.up.shape[0], *module.down.shape[1:]] for module in modules if module is not None]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"{_module_name(beginning)} has outputs and inputs {shapes[0]} in {first.folder}, but {shapes[1]} in "
            f"{second.folder}; merge adapters of the same base model"
        )


def _combined(first: Module | None, second: Module | None, blend: Blend) -> "tuple[Tensor, Tensor]":
    import torch

    parts = [
        (module.down, _scaled(module, factor))
        for module, factor in zip((first, second), _factors(first, second, blend), strict=True)
        if module is not None
    ]
    return torch.cat([down for down, _ in parts]), torch.cat([up for _, up in parts], dim=1)


def _factors(first: Module | None, second: Module | None, blend: Blend) -> tuple[float, float]:
    if first is None or second is None:
        return linear_factors(blend.ratio)
    return blend.factors(lambda: Overlap(_product(first, second), _product(first, first), _product(second, second)))


def _product(first: Module, second: Module) -> float:
    """Return the inner product of what two adapters add to a module, as if it were one long vector."""
    ups_RS = first.up.flatten(1).double().T @ second.up.flatten(1).double()
    downs_RS = first.down.flatten(1).double() @ second.down.flatten(1).double().T
    return first.scaling * second.scaling * (ups_RS * downs_RS).sum().item()


def _scaled(module: Module, factor: float) -> "Tensor":
    return module.up.float() * (factor * module.scaling)


def _write(
    folder: Path, source: Adapter, modules: "Mapping[str, tuple[Tensor, Tensor]]", dtype: str, template: Adapter | None
) -> None:
    """Write an adapter; ``template`` is the one that touches the same modules, if one does."""
    from safetensors.torch import save_file

    tensors = dict(_stored(source, modules, dtype))
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    ranks = {_module_name(beginning): len(down_RI) for beginning, (down_RI, _) in modules.items()}
    write_json(folder / ADAPTER_CONFIG, _merged_config(source, ranks, template))


def _stored(
    source: Adapter, modules: "Mapping[str, tuple[Tensor, Tensor]]", dtype: str
) -> "Iterator[tuple[str, Tensor]]":
    import torch

    kept = next((module.down.dtype for module in source.modules.values()), torch.float32)
    stored = kept if dtype == "auto" else getattr(torch, dtype)
    for beginning, matrices in modules.items():
        for side, matrix in zip("AB", matrices, strict=True):
            with_suffix, bare = _names(beginning, side)
            name = bare if beginning.endswith("embedding_") else with_suffix
            if not matrix.isfinite().all():
                raise CheckpointError(f"{source.folder} or what it is merged with holds infinities or NaN in {name}")
            yield name, matrix.to(stored).contiguous()


def _merged_config(source: Adapter, ranks: Mapping[str, int], template: Adapter | None) -> dict[str, Any]:
    """Return the settings of an adapter of these ranks that peft multiplies by 1."""
    ((rank, _),) = Counter(ranks.values()).most_common(1) or [(1, 0)]
    # A pattern fits the end of a module's name too, so all are named, and the longest name comes first.
    named = dict(sorted(ranks.items(), key=lambda pair: -len(pair[0]))) if len(set(ranks.values())) > 1 else {}
    where = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    placed = {key: template.config.get(key) for key in where} if template else {"target_modules": sorted(ranks)}
    own = {
        **{"r": rank, "lora_alpha": rank, "rank_pattern": named, "alpha_pattern": named},
        **{"use_rslora": False, "init_lora_weights": True, "inference_mode": True, "bias": "none"},
    }
    kept = {key: source.config[key] for key in _KEPT if key in source.config}
    if source.base_name and not Path(source.base_name).is_dir():
        kept["base_model_name_or_path"] = source.base  # where it is since it was moved, if it was
    return kept | placed | own
