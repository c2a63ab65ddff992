"""Which seed model a student comes from, what the pruning did to it, and the configuration of the teacher."""

import copy
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from axolotl_sdft.core.artifacts import read_json
from axolotl_sdft.core.errors import CheckpointError, ConfigError, first_line
from axolotl_sdft.core.identity import model_identity
from axolotl_sdft.core.model_folder import folder_of, read_config, resolve_seed
from axolotl_sdft.core.trained_on import PROVENANCE_FILE, PRUNED_KEY, seed_dir_of_pruned

LOG = logging.getLogger(__name__)

_WAY_OUT = "name its place (logit_distillation.seed_model), or remove the logit_distillation block"
_NOWHERE = "is neither the folder of a model here nor in the Hub's cache"


@dataclass(frozen=True)
class SeedOrigin:
    """The seed model of a student, and what tells the two apart."""

    seed_dir: Path
    """Folder of the unpruned checkpoint."""

    num_layers: int
    """Layers of the seed model; 0 where only the caller names it, so that how the two differ is not known."""

    drop_layers: tuple[int, ...]
    """The layers that the student lacks, by their number in the seed model."""

    patched: tuple[tuple[int, str], ...] = ()
    """Modules that the pruning changed: the layer's number in the seed model, and the path within the layer, such as
    ``mlp.down_proj``."""

    @property
    def is_recorded(self) -> bool:
        """Whether the student's provenance tells how the two differ."""
        return self.num_layers > 0

    @property
    def kept(self) -> tuple[int, ...]:
        """The layers that the student has, by their number in the seed model."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.drop_layers)

    @property
    def needed(self) -> tuple[int, ...]:
        """The layers of which something has to be read from the seed model's checkpoint."""
        return tuple(sorted({*self.drop_layers, *(layer for layer, _ in self.patched)}))


def origin_of(base: Any, seed_model: str | Path | None = None) -> SeedOrigin | None:
    """Return which seed model a student was pruned from; None where it was not pruned.

    Args:
        base: The student without adapters.
        seed_model: Where the seed model is now; what the pruned checkpoint's provenance says when unset. Without
            provenance it is the teacher, whatever the student was made from.

    Raises:
        CheckpointError: The student is pruned, and its provenance, or the seed model, is gone or another one.
    """
    name, _ = loaded_from(base)
    folder = checkpoint_folder(base)
    if folder is not None:
        return find_origin(folder, seed_model)
    if seed_model is not None:
        return _named_origin(seed_model)
    if getattr(base.config, PRUNED_KEY, None) is None:
        if name:
            LOG.warning(
                "logit_distillation: the student was loaded from %r, which %s, so it is taken for a model that was not "
                "pruned; if it was (by cut_layers), name the seed model (logit_distillation.seed_model)",
                *(name, _NOWHERE),
            )
        return None
    fault = f"was loaded from {name!r}, which {_NOWHERE}" if name else "doesn't say which checkpoint it was loaded from"
    raise CheckpointError(
        f"logit_distillation: the student was pruned and {fault}, so which seed model it comes from can't be told; "
        "load it with from_pretrained by its whole path or its Hub id, name the seed model "
        "(logit_distillation.seed_model), or remove the logit_distillation block"
    )


def loaded_from(base: Any) -> tuple[str, str | None]:
    """Return the folder or Hub id that a model was loaded from, no name for none, and the commit of the latter.

    transformers 5.20 no longer says the commit; then it is None.
    """
    name = getattr(base.config, "_name_or_path", "") or getattr(base, "name_or_path", "")
    return str(name or ""), getattr(base.config, "_commit_hash", None)


def checkpoint_folder(base: Any) -> Path | None:
    """Return the folder of the settings that a model was loaded with, perhaps in the Hub's cache; None for none."""
    name, commit = loaded_from(base)
    folder = folder_of(name, commit, ("config.json", PROVENANCE_FILE)) if name else None
    return folder if folder is not None and (folder / "config.json").is_file() else None


def find_origin(student_dir: str | Path, seed_model: str | Path | None = None) -> SeedOrigin | None:
    """Return which seed model a student was pruned from; None where it was not pruned.

    Args:
        student_dir: The folder that training starts from.
        seed_model: As for :func:`origin_of`.

    Raises:
        CheckpointError: The checkpoint is pruned, and its provenance, or the seed model, is gone or another one.
    """
    folder = Path(student_dir).expanduser()
    provenance_file = folder / PROVENANCE_FILE
    if provenance_file.is_file():
        provenance = read_json(provenance_file)
        seed_dir = seed_dir_of_pruned(folder, "logit_distillation", _WAY_OUT, seed_model)
        return SeedOrigin(
            seed_dir, provenance["num_layers_before"], tuple(provenance["drop_layers"]), tuple(_patched(provenance))
        )
    if seed_model is not None:
        return _named_origin(seed_model, folder)
    if (folder / "config.json").is_file() and PRUNED_KEY in read_config(folder):
        raise CheckpointError(
            f"logit_distillation needs the seed model, but {folder}, which was pruned, lacks {PROVENANCE_FILE}, so "
            "which layers were removed can't be told; start from the folder that axolotl prune-layers wrote, name the "
            "seed model (logit_distillation.seed_model), or remove the logit_distillation block"
        )
    return None


def _named_origin(seed_model: str | Path, student_dir: Path | None = None) -> SeedOrigin | None:
    """Return the seed model that the caller names; None where the student is that model."""
    seed_dir = resolve_seed(str(seed_model), key="logit_distillation.seed_model")
    if student_dir is not None and _is_same_model(student_dir, seed_dir):
        return None
    return SeedOrigin(seed_dir, num_layers=0, drop_layers=())


def _is_same_model(first: Path, second: Path) -> bool:
    if first.resolve() == second.resolve():
        return True
    return read_config(first) == read_config(second) and model_identity(first) == model_identity(second)


def _patched(provenance: Mapping[str, Any]) -> list[tuple[int, str]]:
    cuts = (provenance.get("patch") or {}).get("cuts") or []
    return [(cut["layer"], cut["module"]) for cut in cuts if cut.get("applied")]


_BOOKKEEPING = (
    *("_name_or_path", "architectures", "axolotl_sdft_pruning", "dtype", "torch_dtype", "transformers_version"),
    *("quantization_config", "use_cache", "_attn_implementation_autoset", "attn_implementation", "model_type"),
)
"""Settings that say nothing of what the model computes, or that the loader sets."""


def seed_config(base: Any, origin: SeedOrigin | None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return the configuration that the seed model has beside this student. Reads no weights.

    What this run changes of the student's settings is changed in the seed model's, if its provenance tells that the
    two were the same.

    Raises:
        ConfigError: The student has another vocabulary than the seed model, or another setting that does not fit it.
        CheckpointError: The seed model is of another kind.
    """
    if origin is None or origin.is_recorded:
        config = _changed_as_student(base, origin, trust_remote_code)
    else:
        config = _read(base, origin.seed_dir, trust_remote_code)
        _require_same_vocabulary(base, config, origin.seed_dir)
    _copy_implementations(base.config, config)
    config.use_cache = False
    return config


def _changed_as_student(base: Any, origin: SeedOrigin | None, trust_remote_code: bool) -> PreTrainedConfig:
    changes = dict(_changes(base, trust_remote_code))
    if "vocab_size" in {key[-1] for key in changes}:
        before, now = next(values for key, values in changes.items() if key[-1] == "vocab_size")
        raise ConfigError(
            f"logit_distillation: the student's vocabulary was resized from {before} to {now} tokens, and the seed "
            "model knows nothing of the new ones; remove the added tokens (tokens, special_tokens, "
            "resize_token_embeddings_to_32x), or the logit_distillation block"
        )
    config = copy.deepcopy(base.config) if origin is None else _read(base, origin.seed_dir, trust_remote_code)
    if origin is not None:
        for path, (before, now) in changes.items():
            _set(config, path, before, now)
    return config


def _require_same_vocabulary(base: Any, config: PreTrainedConfig, seed_dir: Path) -> None:
    student, seed = (getattr(each.get_text_config(decoder=True), "vocab_size", None) for each in (base.config, config))
    if student != seed:
        raise ConfigError(
            f"logit_distillation: seed_model is {seed_dir}, whose vocabulary has {seed} tokens, but the student's has "
            f"{student}, so their predictions can't be compared; name a seed model with the student's tokenizer"
        )


def _read(base: Any, folder: Path | str, trust_remote_code: bool) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as err:
        raise CheckpointError(f"the settings of the seed model ({folder}) can't be read: {first_line(err)}") from err
    return own_kind(config, base)


def own_kind(config: PreTrainedConfig, base: Any) -> PreTrainedConfig:
    """Return what the student's class takes: of a model that also sees, perhaps its text part.

    Raises:
        CheckpointError: It is of another kind.
    """
    text = config.get_text_config(decoder=True)
    found = next((kind for kind in (config, text) if type(kind).__name__ == type(base.config).__name__), None)
    if found is None:
        raise CheckpointError(
            f"logit_distillation: the seed model is a {config.model_type}, the student a {base.config.model_type}; "
            "they must be of one kind"
        )
    return found


def _changes(base: Any, trust_remote_code: bool) -> Iterator[tuple[tuple[str, ...], tuple[Any, Any]]]:
    """Yield what differs between the student's configuration and the file that it was read from: path, before, now."""
    folder = checkpoint_folder(base)
    if folder is None:
        return
    before = _read(base, folder, trust_remote_code).to_dict()
    yield from _differences(before, base.config.to_dict())


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], tuple[Any, Any]]]:
    for key in sorted(before.keys() | now.keys()):
        if key in _BOOKKEEPING or before.get(key) == now.get(key):
            continue
        old, new = before.get(key), now.get(key)
        if key.endswith("_config") and isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, (*path, key))
        else:
            yield (*path, key), (old, new)


def _set(config: Any, path: tuple[str, ...], before: Any, now: Any) -> None:
    *sections, key = path
    for section in sections:
        config = getattr(config, section)
    if getattr(config, key, None) != before:
        raise ConfigError(
            f"logit_distillation: this run sets {'.'.join(path)} of the student to {now!r}, but the seed model has "
            f"{getattr(config, key, None)!r} there where the pruned one has {before!r}; remove the override "
            "(overrides_of_model_config)"
        )
    setattr(config, key, now)


def _copy_implementations(source: Any, target: Any) -> None:
    """Let the teacher compute attention and experts as the student does, in each of its parts."""
    for key in ("_attn_implementation", "_experts_implementation"):
        if hasattr(source, key):
            setattr(target, key, getattr(source, key))
    for name in getattr(source, "sub_configs", {}):
        parts = getattr(source, name, None), getattr(target, name, None)
        if None not in parts:
            _copy_implementations(*parts)
