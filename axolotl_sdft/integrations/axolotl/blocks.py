"""Reads the blocks out of an Axolotl configuration, and which model it starts from, before and after pruning."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from axolotl_sdft.config import (
    BLOCKS,
    DynSDPBConfig,
    LayerPruningConfig,
    LogitDistillationConfig,
    MergeConfig,
    RecoveryReportConfig,
    SelfDistillationConfig,
    yaml_path,
)
from axolotl_sdft.config.block import models_in
from axolotl_sdft.core.artifacts import read_json
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.core.model_folder import folder_of, resolve_seed
from axolotl_sdft.core.safe_output import masked
from axolotl_sdft.core.trained_on import PROVENANCE_FILE, PROVENANCE_FOLDER, seed_dir_of_pruned

SEED_KEY = "sdft_seed_model"
"""Where the plugin keeps the seed model after ``base_model`` has become the pruned checkpoint."""


STAGES = ("layer_pruning", "self_distillation", "logit_distillation", "dynsdpb")
"""The blocks of which each switches on a stage of training."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of a configuration; None where one is not there."""

    layer_pruning: LayerPruningConfig | None
    self_distillation: SelfDistillationConfig | None
    dynsdpb: DynSDPBConfig | None
    logit_distillation: LogitDistillationConfig | None = None
    merge: MergeConfig | None = None
    recovery_report: RecoveryReportConfig | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no block is there."""
        return all(getattr(self, name) is None for name in BLOCKS)

    @property
    def has_stage(self) -> bool:
        """Whether a stage of training is on. The other blocks only say what commands of their own do."""
        return bool(self.named_stages)

    @property
    def trainer_blocks(self) -> tuple[str, ...]:
        """The blocks that bring a trainer, by name."""
        return tuple(name for name in self.named_stages if name in ("logit_distillation", "dynsdpb"))

    @property
    def named_stages(self) -> list[str]:
        """The blocks of the stages that are on, by name."""
        return [name for name in STAGES if getattr(self, name) is not None]


_TEXT = (TypeAdapter(str), "a text; write one, in quotes where it looks like a number")
_NUMBER = (TypeAdapter(int), "a whole number")
_ENTRIES = (TypeAdapter(list[dict[Any, Any]]), "a list of datasets; write each with a dash, as - path: rows.jsonl")
_READ_EARLY: Mapping[str, tuple[TypeAdapter[Any], str]] = {
    **dict.fromkeys(
        ("base_model", "revision_of_model", "output_dir", "lora_model_dir", "dataset_prepared_path"), _TEXT
    ),
    **dict.fromkeys(("seed", "sequence_len", "dataset_num_proc"), _NUMBER),
    **dict.fromkeys(("context_parallel_size", "sequence_parallel_degree", "tensor_parallel_size"), _NUMBER),
    **dict.fromkeys(("datasets", "test_datasets"), _ENTRIES),
    "plugins": (TypeAdapter(list[str]), "a list of names; write it as [axolotl_sdft.SDFTPlugin]"),
    "val_set_size": (TypeAdapter(float), "a fraction such as 0.05, or a number of rows"),
}
"""Keys of Axolotl that are read before it validates a configuration, with the kinds of value that it takes there."""


def read_blocks(cfg: Mapping[str, Any]) -> Blocks:
    """Return the blocks of a configuration, raw or validated.

    Raises:
        ConfigError: A block is wrong, or a key of Axolotl that a stage reads holds a value of another kind; one line
            per fault, each with its dotted key and value. Or a top-level key is a block's name misspelt, which Axolotl
            would drop without a word.
    """
    faults = [*_kind_faults(cfg)]
    faults += [
        f"{key} is not a key of Axolotl or its plugins; did you mean {near[0]!r}?"
        for key in cfg
        if key not in BLOCKS and key != SEED_KEY and (near := difflib.get_close_matches(str(key), BLOCKS, 1, 0.85))
    ]
    blocks = {}
    for name, model in BLOCKS.items():
        value = cfg.get(name)
        try:
            blocks[name] = None if value is None else model.model_validate(plain(value))
        except ValidationError as err:
            faults += [fault_line(name, error) for error in err.errors()]
    if faults:
        raise ConfigError("\n".join(faults))
    return Blocks(**blocks)  # type: ignore[arg-type]


def _kind_faults(cfg: Mapping[str, Any]) -> Iterator[str]:
    for key, (adapter, kind) in _READ_EARLY.items():
        value = cfg.get(key)
        try:
            if value is not None:
                adapter.validate_python(value)
        except ValidationError:
            yield f"{key} is {masked(plain(value), key)!r}, which is not {kind}"


def empty_blocks(cfg: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with each block under whose key nothing stands: for Axolotl the key is not set."""
    empty = [name for name in STAGES if name in cfg and cfg[name] is None]
    for name, model in BLOCKS.items():
        block = cfg.get(name)
        if isinstance(block, Mapping):
            holders = [key for key, field in model.model_fields.items() if any(models_in(field.annotation))]
            empty += [f"{name}.{key}" for key in holders if key in block and block[key] is None]
    return [
        f"{key}: is empty, which counts as not set; write {key.rpartition('.')[2]}: {{}} to have its defaults, or "
        "remove the key"
        for key in empty
    ]


def fault_line(block: str, error: Any) -> str:
    """Return what is wrong with a block: the dotted key, its value, and what it should be."""
    place = yaml_path(error["loc"])
    key = ".".join([block, *map(str, place)])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":  # our own rules tell the values themselves
        return f"{key}: {message}"
    return f"{key} is {masked(error['input'], str((place or ('',))[-1]))!r}: {message}"


def plain(value: Any) -> Any:
    """Return nested mappings as plain dicts: Axolotl's own type answers None for any missing key."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


_DEFAULT = "tokenizer_default"
_FALLBACK = "tokenizer_default_fallback_"


def seed_of(cfg: Any) -> tuple[str, str | None]:
    """Return the seed model and its revision, whether ``base_model`` names it, or the checkpoint that it was pruned to
    by now or before."""
    if (pruned_dir := pruned_before(cfg)) is not None:
        return str(read_json(pruned_dir / PROVENANCE_FILE).get("seed_model")), None
    return cfg.get(SEED_KEY) or cfg.base_model, cfg.get("revision_of_model")


def seed_dir_of(cfg: Any) -> Path:
    """Return the folder of the seed model; a Hub id is downloaded.

    Raises:
        CheckpointError: It is nowhere, or is not the one any more that ``base_model`` was pruned from.
    """
    if (pruned_dir := pruned_before(cfg)) is not None:
        way_out = f"take {PROVENANCE_FOLDER} out of that folder, and the pruned model counts as the seed model"
        return seed_dir_of_pruned(pruned_dir, "this configuration", way_out)
    return resolve_seed(*seed_of(cfg))


def base_dir_of(cfg: Any) -> Path:
    """Return the folder of what ``base_model`` names now; a Hub id is downloaded."""
    return resolve_seed(cfg.base_model, cfg.get("revision_of_model"))


def pruned_before(cfg: Any) -> Path | None:
    """Return the folder of a ``base_model`` that ``axolotl prune-layers`` wrote earlier; None for any other, and where
    this configuration prunes it."""
    if cfg.get("layer_pruning") is not None or cfg.get(SEED_KEY) or not cfg.get("base_model"):
        return None
    folder = folder_of(cfg.base_model, cfg.get("revision_of_model"), ("config.json", PROVENANCE_FILE))
    return folder if folder is not None and (folder / PROVENANCE_FILE).is_file() else None


def yaml_chat_template(cfg: Any, entry: Any = None) -> str | None:
    """Return the chat template that a configuration names; None where it names none, or the tokenizer's own.

    Axolotl gives it to the tokenizer that is trained. The key may stand in an entry of ``datasets``.

    Raises:
        ConfigError: ``chat_template`` names no template that Axolotl knows, or its Jinja text is missing.
    """
    choice, jinja = _named_template(entry or {})
    if choice is None:
        choice, jinja = _named_template(cfg)
    if choice is None:
        return None
    from axolotl.utils.chat_templates import get_chat_template

    try:
        template = get_chat_template(choice, jinja_template=jinja)
    except ValueError as err:
        raise ConfigError(
            f"chat_template is {choice!r}, which can't be used ({err}); name one of Axolotl's templates, such as "
            "chatml, or write it under chat_template_jinja"
        ) from err
    system = cfg.get("default_system_message")
    return template.replace("You are a helpful assistant.", system) if system and choice == "chatml" else template


def missing_chat_template(cfg: Any, seed_dir: Path, entry: Any = None) -> str | None:
    """Return the chat template that a configuration names where its seed model has none; None where it needs none."""
    if all(_named_template(keys)[0] is None for keys in (entry or {}, cfg)):
        return None
    has_own = _has_chat_template(seed_dir, bool(cfg.get("trust_remote_code")))
    return None if has_own else yaml_chat_template(cfg, entry)


@lru_cache(maxsize=8)
def _has_chat_template(seed_dir: Path, trust_remote_code: bool) -> bool:
    from axolotl_sdft.inference.prompts import is_mistral_common, load_tokenizer

    try:
        tokenizer = load_tokenizer(seed_dir, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):  # there is no tokenizer, which its backend says where it needs one
        return True
    return is_mistral_common(tokenizer) or bool(tokenizer.chat_template)


def _named_template(keys: Any) -> tuple[str | None, str | None]:
    """Return ``chat_template`` and ``chat_template_jinja``; the tokenizer's own one counts as none."""
    jinja = keys.get("chat_template_jinja")
    choice = keys.get("chat_template") or ("jinja" if jinja else None)
    choice = getattr(choice, "value", choice)
    if choice is None or choice == _DEFAULT:
        return None, None
    return str(choice).removeprefix(_FALLBACK), jinja
