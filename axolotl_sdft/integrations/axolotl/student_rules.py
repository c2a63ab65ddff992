"""What of an Axolotl configuration makes a student that the seed model can't teach, told before the first stage.

The trainer finds the same on the loaded student, for users of Python; that comes after hours of pruning and rewriting.
"""

import importlib.util
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from axolotl_sdft.config import LogitDistillationConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.core.model_folder import read_config
from axolotl_sdft.training.teachers.shared_layers import CHANGING_INITS

_BLOCK = "logit_distillation"
_SEVERAL_DEVICES = ("auto", "balanced", "balanced_low_0", "sequential")


def check_student(cfg: Mapping[str, Any], config: LogitDistillationConfig, seed_dir: Path) -> None:
    """Refuse what the trainer would refuse once it has the student. Reads the seed model's settings and tokenizer.

    Args:
        cfg: The raw configuration; ``base_model`` may be the seed model or a pruned checkpoint.
        config: Its ``logit_distillation`` block.
        seed_dir: Folder of the model that ``base_model`` names.

    Raises:
        ConfigError: One line per fault: key, value, what it meets, the way out.
    """
    if config.alpha == 0:
        return
    faults = [*_quantization_faults(config), *_class_faults(cfg), *_vocabulary_faults(cfg, seed_dir)]
    if config.teacher == "shared":
        faults += _sharing_faults(cfg)
    if faults:
        raise ConfigError("\n".join(faults))


def _quantization_faults(config: LogitDistillationConfig) -> Iterator[str]:
    if config.bits is not None and importlib.util.find_spec("bitsandbytes") is None:
        yield (
            f"{_BLOCK}.load_in_{config.bits}bit is true, but bitsandbytes is not installed; pip install "
            f"'axolotl-sdft[large]', or remove load_in_{config.bits}bit"
        )


def _class_faults(cfg: Mapping[str, Any]) -> Iterator[str]:
    kind = str(cfg.get("type_of_model") or "")
    if "Classification" in kind:
        yield (
            f"{_BLOCK} distils the next token, but type_of_model is {kind!r}, whose head has learnt nothing yet that "
            f"the seed model could teach; remove the {_BLOCK} block"
        )


def _sharing_faults(cfg: Mapping[str, Any]) -> Iterator[str]:
    """Tell why the student's own layers can't be the teacher's."""
    way_out = f"set {_BLOCK}.teacher to own or auto"
    init = str(cfg.get("peft_init_lora_weights") or "")
    if init.lower().startswith(CHANGING_INITS):
        yield (
            f"peft_init_lora_weights is {init!r}, which takes a part of the base weights into the adapter, but "
            f"{_BLOCK}.teacher is shared and needs them whole; {way_out}, or set peft_init_lora_weights: true"
        )
    bits = ((cfg.get("peft") or {}).get("loftq_config") or {}).get("loftq_bits")
    if bits:
        yield (
            f"peft.loftq_config.loftq_bits is {bits}, which takes a part of the base weights into the adapter, but "
            f"{_BLOCK}.teacher is shared and needs them whole; {way_out}, or remove loftq_config"
        )
    if cfg.get("unfrozen_parameters"):
        yield (
            f"unfrozen_parameters trains the student's own weights ({cfg['unfrozen_parameters']}), which "
            f"{_BLOCK}.teacher (shared) needs as they were; {way_out}, or remove unfrozen_parameters"
        )
    if _is_spread(cfg.get("device_map")):
        yield (
            f"device_map is {cfg['device_map']!r}, which spreads the student over several devices, but "
            f"{_BLOCK}.teacher is shared and needs all of it on one; {way_out}, or remove device_map"
        )


def _is_spread(device_map: Any) -> bool:
    if isinstance(device_map, Mapping):
        return len({str(place) for place in device_map.values()}) > 1
    if device_map not in _SEVERAL_DEVICES:
        return False
    import torch

    return torch.accelerator.is_available() and torch.accelerator.device_count() > 1


def _vocabulary_faults(cfg: Mapping[str, Any], seed_dir: Path) -> Iterator[str]:
    """Tell which key gives the student tokens that the seed model knows nothing of."""
    added, is_rounded = dict(_added_tokens(cfg)), bool(cfg.get("resize_token_embeddings_to_32x"))
    if not (added or is_rounded):
        return
    config = read_config(seed_dir)
    rows = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    tokenizer = _tokenizer(cfg, seed_dir)
    if tokenizer is None or not isinstance(rows, int):
        return
    known = tokenizer.get_vocab()
    new = {token: key for token, key in added.items() if token not in known}
    needed = len(tokenizer) + len(new)
    needed = math.ceil(needed / 32) * 32 if is_rounded else needed
    if needed <= rows:  # many models have more rows than tokens, so that nothing is resized
        return
    keys = dict.fromkeys(new.values()) or ["resize_token_embeddings_to_32x"]
    tokens = f" ({', '.join(map(repr, list(new)[:3]))}{', ...' if len(new) > 3 else ''})" if new else ""
    yield (
        f"{' and '.join(keys)}{tokens} would resize the student's vocabulary from {rows} to {needed} tokens, and the "
        f"seed model of {_BLOCK} knows nothing of the new ones; remove {'them' if len(keys) > 1 else 'it'}, or the "
        f"{_BLOCK} block"
    )


def _added_tokens(cfg: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give the tokens that a configuration may add, each with the key that names it."""
    yield from ((str(token), "tokens") for token in cfg.get("tokens") or [])
    for key, value in (cfg.get("special_tokens") or {}).items():
        values = value if isinstance(value, list | tuple) else [value] if value else []
        yield from ((str(token), f"special_tokens.{key}") for token in values)


def _tokenizer(cfg: Mapping[str, Any], seed_dir: Path) -> Any:
    from transformers import AutoTokenizer

    named = cfg.get("tokenizer_config")
    source = seed_dir if not named or named == cfg.get("base_model") else named
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=bool(cfg.get("trust_remote_code")))
    except (OSError, ValueError):  # Axolotl says more about it
        return None
