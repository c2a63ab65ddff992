"""The pruned checkpoint that a command takes which makes none: the one that the trained model started from.

``merge-lora``, ``inference``, ``evaluate`` and the reports put an adapter onto its checkpoint. When data or settings
change after training, pruning anew would put it onto another one, with no error. So they take what is recorded, without
reading data or seed model, and refuse where the configuration asks for something else.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.artifacts import DEFAULT_ROOT, fingerprint
from axolotl_sdft.core.errors import CheckpointError, ConfigError, SdftError
from axolotl_sdft.core.identity import model_identity
from axolotl_sdft.core.model_folder import is_adapter
from axolotl_sdft.core.trained_on import PROVENANCE_FILE, TrainedOn, pruning_marker, trained_on
from axolotl_sdft.pruning.planning.plan import num_dropped
from axolotl_sdft.pruning.spec import PruningSpec, shaping_settings

_WAYS_OUT = "put the configuration back as it was, name another output_dir, or train again (axolotl train)"
_OTHER_START = "put the configuration back as it was, or train anew into another output_dir"


def output_dir_of(cfg: Mapping[str, Any]) -> Path:
    """Return the absolute path of the folder that training writes to."""
    return Path(cfg.get("output_dir") or "./model-out").expanduser().absolute()


def trained_dir_of(cfg: Mapping[str, Any]) -> tuple[str, Path]:
    """Return the key that names the trained model, and its folder: ``lora_model_dir``, else ``output_dir``."""
    adapter = cfg.get("lora_model_dir")
    return ("lora_model_dir", Path(adapter).expanduser().absolute()) if adapter else ("output_dir", output_dir_of(cfg))


def is_pruned_already(base_model: str, config: LayerPruningConfig) -> bool:
    """Tell whether a model has been pruned with these settings, perhaps trained since. Reads its ``config.json``."""
    folder = Path(base_model).expanduser()
    return folder.is_dir() and pruning_marker(folder) == fingerprint(shaping_settings(config))


def recorded_base(cfg: Mapping[str, Any], config: LayerPruningConfig, key: str, folder: Path) -> Path | None:
    """Return the checkpoint that the model in a folder was trained on; None where no model is there, or none tells.

    Raises:
        ConfigError: The configuration asks for another checkpoint by now; the message names both.
        CheckpointError: The checkpoint is gone, or another one has taken its place.
    """
    trained = trained_on(folder)
    if trained is None:
        _check_marker(config, key, folder, _WAYS_OUT)
        return None
    more_places = (_default_place(trained), *_named_place(config))
    if trained.provenance is None:  # without it, nothing can be compared
        if trained.places:
            trained.find(more_places)
        raise ConfigError(
            f"{key} ({folder}) holds a model that was trained on {trained.name}, which layer_pruning did not make, but "
            f"the configuration prunes {cfg['base_model']}; remove the layer_pruning block, or train again"
        )
    changes = list(changes_since(trained, cfg, config))
    if changes:
        raise ConfigError(
            f"{key} ({folder}) holds a model that was trained on the pruned checkpoint {trained.name}, but the "
            f"configuration asks for another one by now: {'; '.join(changes)}. To use the trained model, "
            f"{_WAYS_OUT}"
        )
    return trained.find(more_places)


def pruned_dir_of(cfg: Any, config: LayerPruningConfig, spec_of: Callable[[], PruningSpec]) -> Path | None:
    """Return the pruned checkpoint that a report or a merge takes; None where there is none yet. Makes nothing.

    Args:
        cfg: The raw configuration.
        config: Its ``layer_pruning`` block.
        spec_of: Gives the pruning that it asks for; called only where no trained model tells its checkpoint.

    Raises:
        SdftError: As for :func:`recorded_base`; or data or seed model can't be read.
    """
    if is_pruned_already(cfg["base_model"], config):
        return None
    base = recorded_base(cfg, config, "output_dir", output_dir_of(cfg))
    if base is not None:
        return base
    spec = spec_of()
    return spec.output_dir if spec.is_done else None


def finished_base(cfg: Any, spec_of: Callable[[], PruningSpec], command: str) -> Path:
    """Return the pruned checkpoint that a configuration asks for where nothing is trained on one yet. Makes nothing.

    Args:
        cfg: The raw configuration.
        spec_of: Gives the pruning that it asks for; called only where some pruned checkpoint is there.
        command: Who asks, for the message.

    Raises:
        ConfigError: It is not there, or data or seed model, which its name depends on, can't be read.
    """
    key, folder = trained_dir_of(cfg)
    start = (
        f"`axolotl {command}` makes no pruned checkpoint, and {key} ({folder}) holds no model that was trained on one"
    )
    if not _some_checkpoint(cfg["layer_pruning"]):
        raise ConfigError(f"{start}; run axolotl train first, or axolotl prune-layers for the checkpoint alone")
    try:
        spec = spec_of()
    except SdftError as err:
        raise ConfigError(
            f"{start}. Which one the configuration asks for can't be told: {err}. Put that back, or name the pruned "
            "checkpoint as base_model and remove the layer_pruning block"
        ) from err
    if spec.is_done:
        return spec.output_dir
    raise ConfigError(
        f"{start}. The one that the configuration asks for, {spec.output_dir.name}, is not there either; run axolotl "
        "train first, or axolotl prune-layers for the checkpoint alone"
    )


def refuse_other_base(cfg: Mapping[str, Any], is_adapter_loaded: bool) -> None:
    """Refuse to put what was trained on a pruned checkpoint onto a ``base_model`` that is not pruned any more here.

    Args:
        cfg: The raw configuration; its ``base_model`` is used as it is.
        is_adapter_loaded: Whether the command puts the trained adapter onto it.

    Raises:
        ConfigError: ``base_model`` is neither the checkpoint nor, where no adapter is loaded, a model pruned before.
    """
    key, folder = trained_dir_of(cfg)
    _refuse_other_base(cfg, key, folder, is_adapter_loaded)


def refuse_other_start(cfg: Mapping[str, Any], spec: PruningSpec | None) -> None:
    """Refuse to go on training what was trained on another checkpoint than this training starts from.

    Args:
        cfg: The raw configuration.
        spec: How ``base_model`` is pruned; None where it is not.

    Raises:
        ConfigError: ``resume_from_checkpoint`` or ``lora_model_dir`` names such a model; the message names both.
    """
    for key, folder in _continued(cfg):
        if spec is None:
            _refuse_other_base(cfg, key, folder, is_adapter_loaded=True)
            continue
        trained = trained_on(folder)
        if trained is None:
            _check_marker(spec.config, key, folder, _OTHER_START)
            continue
        if _is_same(trained, spec):
            continue
        raise ConfigError(
            f"{key} ({folder}) goes on from a model that was trained on {trained.name}, but training would start from "
            f"another checkpoint by now, {spec.output_dir.name}: the training data, the seed model or the settings of "
            "layer_pruning have changed. Put them back, or name the old checkpoint as base_model and remove the "
            "layer_pruning block, or train anew into another output_dir"
        )


def changes_since(trained: TrainedOn, cfg: Mapping[str, Any], config: LayerPruningConfig) -> Iterator[str]:
    """Yield what a configuration says otherwise than when the checkpoint was pruned: key, value now, value then.

    The calibration text is not compared: it may be gone, and what was trained stays as it is.
    """
    provenance = trained.provenance or {}
    yield from _seed_changes(trained, provenance, cfg)
    dropped = provenance.get("drop_layers") or []
    if config.drop_layers is not None:
        patch = (provenance.get("settings") or {}).get("patch", "linear")
        if config.patch != patch:
            yield f"layer_pruning.patch is {config.patch!r}, was {patch!r}"
        if sorted(config.drop_layers) != dropped:
            yield f"layer_pruning.drop_layers is {sorted(config.drop_layers)}, was {dropped}"
        return
    then = _config_of(provenance.get("settings"))
    if then is None or then.drop_layers is not None:
        yield f"layer_pruning.num_layers is {config.num_layers}, were drop_layers {dropped}"
        return
    yield from _setting_changes(then, config, provenance.get("num_layers_before"))


def _setting_changes(then: LayerPruningConfig, now: LayerPruningConfig, num_layers: int | None) -> Iterator[str]:
    old, new = (_flat(shaping_settings(config, with_defaults=True)) for config in (then, now))
    del old["max_shard_size"], new["max_shard_size"]  # other files, but the same model
    has_numbers = then.num_layers is not None and now.num_layers is not None
    if has_numbers and num_layers and num_dropped(then, num_layers) == num_dropped(now, num_layers):
        new["num_layers"] = old["num_layers"]  # such as 0.2 and 6 of 30
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"layer_pruning.{key} is {new.get(key)!r}, was {old.get(key)!r}"


def _seed_changes(trained: TrainedOn, provenance: Mapping[str, Any], cfg: Mapping[str, Any]) -> Iterator[str]:
    now, then = str(cfg["base_model"]), str(provenance.get("seed_model"))
    if not _is_same_name(now, then) and not _has_fingerprint(now, provenance.get("seed")):
        yield f"base_model is {now!r}, was {then!r}"
    revision = cfg.get("revision_of_model")
    if trained.is_recorded and revision != trained.revision:
        yield f"revision_of_model is {revision!r}, was {trained.revision!r}"


def _is_same_name(first: str, second: str) -> bool:
    """Tell whether two texts name one Hub id or one folder."""
    return first == second or _lexical(first) == _lexical(second)


def _lexical(name: str) -> str:
    return os.path.abspath(Path(name).expanduser())


def _has_fingerprint(base_model: str, seed_fingerprint: Any) -> bool:
    """Tell whether a folder of another name is the same seed model, such as after it was moved."""
    folder = Path(base_model).expanduser()
    if seed_fingerprint is None or not (folder / "config.json").is_file():
        return False
    try:
        return model_identity(folder) == seed_fingerprint
    except CheckpointError:
        return False


def _config_of(settings: Any) -> LayerPruningConfig | None:
    if not isinstance(settings, Mapping):
        return None
    try:
        return LayerPruningConfig.model_validate(dict(settings))
    except ValidationError:  # of another version of this package
        return None


def _flat(settings: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{start}{key}.") if key == "calibration" else {f"{start}{key}": value}
    return flat


def _check_marker(config: LayerPruningConfig, key: str, folder: Path, way_out: str) -> None:
    """Refuse a fully trained model without a record whose pruning was another one, or that was not pruned."""
    is_full_model = (folder / "config.json").is_file() and not is_adapter(folder)
    if not is_full_model or pruning_marker(folder) == fingerprint(shaping_settings(config)):
        return
    was = (
        "was pruned with other settings than the configuration asks for"
        if pruning_marker(folder)
        else "was not pruned, but layer_pruning is set"
    )
    raise ConfigError(f"{key} ({folder}) holds a model that {was}; {way_out}")


def _refuse_other_base(cfg: Mapping[str, Any], key: str, folder: Path, is_adapter_loaded: bool) -> None:
    trained = trained_on(folder)
    if trained is None or not trained.is_pruned:
        return
    base = Path(str(cfg.get("base_model"))).expanduser()
    is_alone = not is_adapter_loaded or not is_adapter(folder)
    if base.is_dir() and (trained.is_at(base) or (is_alone and pruning_marker(base) is not None)):
        return
    raise ConfigError(
        f"{key} ({folder}) holds a model that was trained on the pruned checkpoint {trained.name}, but base_model is "
        f"{str(cfg.get('base_model'))!r}, which is used as it is; put the layer_pruning block and base_model back as "
        "they were, or name the pruned checkpoint as base_model"
    )


def _continued(cfg: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Yield the models that training goes on from, by key."""
    resumed = cfg.get("resume_from_checkpoint")
    output_dir = output_dir_of(cfg)
    if isinstance(resumed, str):
        yield "resume_from_checkpoint", Path(resumed).expanduser().absolute()
    elif resumed or (resumed is None and cfg.get("auto_resume_from_checkpoints")):
        checkpoints = [path for path in output_dir.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
        key = "resume_from_checkpoint" if resumed else "auto_resume_from_checkpoints"
        yield from [(key, max(checkpoints, key=lambda path: int(path.name.rpartition("-")[2])))] if checkpoints else []
    if cfg.get("lora_model_dir"):
        yield "lora_model_dir", Path(cfg["lora_model_dir"]).expanduser().absolute()


def _is_same(trained: TrainedOn, spec: PruningSpec) -> bool:
    identity = trained.identity
    return identity is not None and all(identity.get(key) == value for key, value in spec.identity.items())


def _default_place(trained: TrainedOn) -> Path:
    return Path(DEFAULT_ROOT).absolute() / Path(trained.name).name


def _named_place(config: LayerPruningConfig) -> list[Path]:
    return [] if config.output_dir is None else [Path(config.output_dir).expanduser().absolute()]


def _some_checkpoint(block: Mapping[str, Any]) -> bool:
    output_dir = block.get("output_dir") if isinstance(block, Mapping) else None
    if output_dir is not None:
        return (Path(output_dir).expanduser() / PROVENANCE_FILE).is_file()
    return any(Path(DEFAULT_ROOT).glob(f"*/{PROVENANCE_FILE}"))
