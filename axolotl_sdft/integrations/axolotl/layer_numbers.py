"""Keys of an Axolotl configuration that hold layer numbers, or say which layers there are, when layers are removed. One
rule: numbers are the seed model's.

Lists of numbers are translated to the numbers that the layers have in the pruned model. Patterns can't be: they are
refused unless each layer that stays is matched under its new number as it was under the old one. A layer that is named
anywhere must stay.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.errors import ConfigError, first_line
from axolotl_sdft.core.model_folder import read_config
from axolotl_sdft.pruning.checkpoint.architecture import find_layer_prefix, layer_count, num_extra_layers
from axolotl_sdft.pruning.checkpoint.layer_settings import COUNT_KEYS
from axolotl_sdft.pruning.checkpoint.legacy_files import is_legacy, read_legacy_checkpoint
from axolotl_sdft.pruning.checkpoint.tensor_files import read_checkpoint
from axolotl_sdft.pruning.planning.plan import num_dropped

LOG = logging.getLogger(__name__)

_LIST = "peft_layers_to_transform"
_REPLICATION = "peft_layer_replication"
_WAY_OUT = (
    "take the numbers out, or prune first (axolotl prune-layers) and train from that folder as base_model without "
    "layer_pruning, with the numbers that the layers have there"
)
_SPECTRUM = "axolotl.integrations.spectrum.SpectrumPlugin"
_NO_SETTINGS = ("_commit_hash", "_name_or_path", "transformers_version")  # of a config.json, they change no model
# Keys whose texts are not names of modules: data, places, and the blocks of this package.
_OTHER_KEYS = frozenset(
    (
        *("base_model", "datasets", "test_datasets", "pretraining_dataset", "output_dir", "plugins", "hub_model_id"),
        *("chat_template_jinja", "layer_pruning", "self_distillation", "dynsdpb", "recovery_report", "merge"),
        "logit_distillation",
        *("dataset_prepared_path", "special_tokens", "tokens", "wandb_name", "wandb_run_id", "mlflow_run_name"),
    )
)


@dataclass(frozen=True)
class SeedLayers:
    """The layers of a seed model, as its tensors are called."""

    num_layers: int
    prefix: str
    """What comes before the number, such as ``model.layers.``"""
    parts: tuple[str, ...]
    """What comes after it: each module and parameter of a layer, such as ``.self_attn.q_proj``."""

    @property
    def prefixes(self) -> list[str]:
        """What may come before the number in the loaded model, which often calls its layers by a longer name."""
        named = ("model.layers.", "model.language_model.layers.", "language_model.model.layers.")
        return sorted({self.prefix, f"model.{self.prefix}", f"transformer.{self.prefix}", *named})


def check_layer_numbers(cfg: Mapping[str, Any], config: LayerPruningConfig, seed_dir: Path) -> None:
    """Refuse what layer numbers can't mean after pruning, as far as it is known before the layers are scored.

    Raises:
        ConfigError: One line per key: the key, its layers, and what becomes of them; or settings of the model that
            contradict the pruned checkpoint's.
        CheckpointError: The layers can't be found in the seed model.
    """
    faults = [
        *_other_settings_faults(cfg, seed_dir),
        *_override_faults(cfg, seed_dir),
        *_spectrum_faults(cfg),
        *_number_faults(cfg, config, seed_dir),
    ]
    if faults:
        raise ConfigError("\n".join(faults))


def _other_settings_faults(cfg: Mapping[str, Any], seed_dir: Path) -> Iterator[str]:
    """Yield a fault where ``base_model_config`` names other settings than the seed model's, which are cut with it."""
    named = cfg.get("base_model_config")
    if not named or named == cfg.get("base_model"):
        return
    from transformers import PretrainedConfig

    way_out = "remove base_model_config, or put the settings into the config.json of base_model"
    try:
        found = PretrainedConfig.get_config_dict(named, revision=cfg.get("revision_of_model"))[0]
    except (OSError, ValueError) as err:
        yield f"base_model_config is {named!r}, whose config.json can't be read ({first_line(err)}); {way_out}"
        return
    own = read_config(seed_dir)
    changed = sorted(key for key in own.keys() | found.keys() if own.get(key) != found.get(key))
    changed = [key for key in changed if key not in _NO_SETTINGS]
    if changed:
        yield (
            f"base_model_config is {named!r}, which differs from base_model in {', '.join(changed[:5])}, but "
            f"layer_pruning cuts the settings that base_model has; {way_out}"
        )


def _override_faults(cfg: Mapping[str, Any], seed_dir: Path) -> Iterator[str]:
    """Tell which override sets what pruning changes: the number of layers, or a list with a value for each."""
    overrides = cfg.get("overrides_of_model_config")
    if not overrides:
        return
    settings = read_config(seed_dir)
    num_layers = layer_count(settings)
    for key, value in overrides.items():
        if key in COUNT_KEYS or any(
            isinstance(each, list) and len(each) == num_layers for each in (value, settings.get(key))
        ):
            yield (
                f"overrides_of_model_config.{key} is {value!r}, but layer_pruning sets it for the pruned model, and "
                f"base_model has {settings.get(key)!r} there; remove the override"
            )


def _spectrum_faults(cfg: Mapping[str, Any]) -> Iterator[str]:
    """Yield a fault where Axolotl's plugin is to unfreeze layers by what was measured on the seed model's."""
    if _SPECTRUM in map(str, cfg.get("plugins") or ()):
        yield (
            f"the plugin {_SPECTRUM} unfreezes layers by the numbers that they have in the seed model, but "
            "layer_pruning gives them others; prune first (axolotl prune-layers), measure the pruned folder with "
            "Spectrum, and train from it as base_model without layer_pruning; or remove the plugin"
        )


def _number_faults(cfg: Mapping[str, Any], config: LayerPruningConfig, seed_dir: Path) -> list[str]:
    texts = [(key, text, matches) for key, text, matches in _patterns(cfg) if _may_name_a_layer(text)]
    if not texts and cfg.get(_LIST) is None and not cfg.get(_REPLICATION) and not _has_lisa(cfg):
        return []
    layers = seed_layers(seed_dir)
    faults = list(dict.fromkeys(fault for text in texts for fault in _pattern_faults(*text, config, layers)))
    if cfg.get(_REPLICATION):
        faults.append(f"{_REPLICATION} and layer_pruning both change which layers there are; remove one of the two")
    if _has_lisa(cfg):
        faults += _lisa_faults(cfg, config, layers)
    if cfg.get(_LIST) is not None:
        listed = _listed(cfg[_LIST], layers.num_layers)
        faults += _removed_faults(_LIST, listed, config.drop_layers or ())
    return faults


def translate_layer_numbers(cfg: Any, drop_layers: Sequence[int], num_layers: int) -> None:
    """Make lists of the seed model's layer numbers name the same layers of the pruned model, and log old and new.

    Raises:
        ConfigError: One of the layers has been removed, or is not there.
    """
    if cfg.get(_LIST) is None:
        return
    listed = _listed(cfg[_LIST], num_layers)
    faults = list(_removed_faults(_LIST, listed, drop_layers))
    if faults:
        raise ConfigError(faults[0])
    kept = [layer for layer in range(num_layers) if layer not in drop_layers]
    new = [kept.index(layer) for layer in listed]
    if new != listed:
        LOG.warning(
            "%s: layers %s of the seed model are layers %s of the pruned one (layer_pruning), which are taken",
            _LIST,
            _shown(listed),
            _shown(new),
        )
    cfg[_LIST] = new


def seed_layers(seed_dir: Path) -> SeedLayers:
    """Return what a checkpoint calls its layers.

    Raises:
        CheckpointError: It can't be read, or its layers can't be found.
    """
    config = read_config(seed_dir)
    count = layer_count(config)
    tensors = read_legacy_checkpoint(seed_dir) if is_legacy(seed_dir) else read_checkpoint(seed_dir)[0]
    prefix = find_layer_prefix((tensor.name for tensor in tensors), count, num_extra_layers(config))
    parts = {""}
    for tensor in tensors:
        rest = tensor.name.removeprefix(prefix).partition(".")[2] if tensor.name.startswith(prefix) else ""
        words = rest.split(".") if rest else []
        parts |= {"." + ".".join(words[:end]) for end in range(1, len(words) + 1)}
    return SeedLayers(count, prefix, tuple(sorted(parts)))


def _patterns(cfg: Mapping[str, Any]) -> Iterator[tuple[str, str, Callable[[str, str], bool]]]:
    """Yield each text that may name layers: its key, the text, and how it is matched with a name."""
    for key, value in cfg.items():
        if key in _OTHER_KEYS or key in (_LIST, _REPLICATION):
            continue
        matches = _MATCHERS.get(key)
        if matches is None:
            yield from ((key, text, _is_part) for text in _texts(value) if _LAYER_IN_A_PATH.search(text))
        elif key == "lr_groups":
            yield from ((key, text, matches) for group in value or [] for text in _texts(group.get("modules")))
        elif key in _SUFFIXES and isinstance(value, str):
            yield key, value, _is_whole
        else:
            yield from ((key, text, matches) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(str(name))
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _may_name_a_layer(text: str) -> bool:
    return bool(re.search(r"\d|\\d|\[|\||\?|\{", text))


def _pattern_faults(
    key: str, text: str, matches: Callable[[str, str], bool], config: LayerPruningConfig, layers: SeedLayers
) -> Iterator[str]:
    parts = [part for part in layers.parts if "expert" in text or "expert" not in part]
    names = [(prefix, part) for prefix in layers.prefixes for part in parts]
    hits = [
        {name for name in names if matches(text, f"{name[0]}{layer}{name[1]}")} for layer in range(layers.num_layers)
    ]
    if all(hit == hits[0] for hit in hits):
        return  # a layer's number plays no part
    named = [layer for layer, hit in enumerate(hits) if hit]
    what = f"{key} holds {text!r}, which means layers {_shown(named)} of the seed model"
    if config.drop_layers is None:
        yield from _faults_before_scoring(what, hits, config)
        return
    removed = sorted(set(named) & set(config.drop_layers))
    kept = [layer for layer in range(layers.num_layers) if layer not in config.drop_layers]
    if removed:
        yield f"{what}, but layer_pruning removes {_shown(removed)}; {_WAY_OUT}"
    elif any(hits[new] != hits[old] for new, old in enumerate(kept)):
        there = [kept[new] for new in range(len(kept)) if hits[new]]
        yield (
            f"{what}, but after layer_pruning those are layers {_shown([kept.index(layer) for layer in named])}, and "
            f"the text would mean the seed model's layers {_shown(there) or 'none'}; {_WAY_OUT}"
        )


def _faults_before_scoring(what: str, hits: Sequence[set[Any]], config: LayerPruningConfig) -> Iterator[str]:
    """Yield a fault unless the text means the same whichever of the removable layers are chosen."""
    end = len(hits) - config.protect_last
    first = config.protect_first
    if any(hit != hits[first] for hit in hits[first:]):
        yield (
            f"{what}, but layer_pruning.num_layers lets the scores choose which of layers {first} to {end - 1} go, "
            f"and those after them get other numbers; name the layers in layer_pruning.drop_layers to see which, "
            f"{_WAY_OUT}"
        )


def _has_lisa(cfg: Mapping[str, Any]) -> bool:
    """Whether some of the layers, drawn anew from time to time, are trained (LISA, arXiv 2403.17919)."""
    return bool(cfg.get("lisa_n_layers") and cfg.get("lisa_step_interval"))


def _lisa_faults(cfg: Mapping[str, Any], config: LayerPruningConfig, layers: SeedLayers) -> Iterator[str]:
    """Yield a fault where more layers are to be drawn than stay; they are drawn from those of the pruned model."""
    wanted, path = cfg["lisa_n_layers"], str(cfg.get("lisa_layers_attribute") or "model.layers")
    num_left = layers.num_layers - num_dropped(config, layers.num_layers)
    names_decoder = path.removeprefix("base_model.model.") + "." in layers.prefixes  # else it draws from another stack
    if names_decoder and isinstance(wanted, int) and wanted > num_left:
        yield (
            f"lisa_n_layers is {wanted}, but layer_pruning leaves {num_left} of the {layers.num_layers} layers in "
            f"{path} to draw from; set it to {num_left} at most, or remove fewer layers"
        )


def _listed(value: Any, num_layers: int) -> list[int]:
    """Return the numbers of a list, or of one number alone."""
    values = value if isinstance(value, list | tuple) else [value]
    if not all(str(item).isdecimal() and int(item) < num_layers for item in values):
        raise ConfigError(
            f"{_LIST} is {value!r}, but the seed model has layers 0 to {num_layers - 1}, which layer_pruning numbers "
            "go by; name only those"
        )
    return [int(item) for item in values]


def _removed_faults(key: str, listed: Sequence[int], drop_layers: Sequence[int]) -> Iterator[str]:
    removed = sorted(set(listed) & set(drop_layers))
    if removed:
        yield (
            f"{key} names layers {_shown(listed)} of the seed model, but layer_pruning removes {_shown(removed)}; "
            f"take {_shown(removed)} out of {key}, or keep the layers"
        )


def _shown(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _is_end(text: str, name: str) -> bool:
    return name == text or name.endswith(f".{text}")


def _is_part(text: str, name: str) -> bool:
    """Whether a text of a key that is not known means a name: as it stands, or as a pattern with escaped dots."""
    plain = text.removeprefix("re:").replace("\\.", ".")
    found = [match.group() for match in _LAYER_IN_A_PATH.finditer(plain)]
    return any(f".{part}." in f".{name}." for part in found)


def _searched(text: str, name: str, *, around: str = "{}") -> bool:
    """Whether a pattern matches; one that is broken matches nothing, and Axolotl says what is wrong with it."""
    try:
        return re.search(around.format(text), name) is not None
    except re.error:
        return False


def _is_unfrozen(text: str, name: str) -> bool:
    pattern = re.sub(r"\[\d*(:\d*)?\]$", "", text)  # Axolotl reads this end as a range of a tensor's rows
    # Axolotl takes each dot as it stands; whoever escapes it means the same.
    return _searched(re.sub(r"\.(?!\+)", r"\\.", pattern), name) or _searched(pattern, name)


_is_whole = partial(_searched, around="^(?:.*\\.)?(?:{})$")
_LAYER_IN_A_PATH = re.compile(r"\b(?:layers?|h|blocks?)\\?\.\d+\b")
_SUFFIXES = ("lora_target_modules", "lora_exclude_modules", "lora_modules_to_save", "lora_target_parameters")
_MATCHERS: dict[str, Callable[[str, str], bool]] = {
    **dict.fromkeys(_SUFFIXES, _is_end),
    **dict.fromkeys(("lora_rank_pattern", "lora_alpha_pattern"), _is_whole),
    "unfrozen_parameters": _is_unfrozen,
    "lr_groups": lambda text, name: text in f"base_model.model.{name}.weight",
}
