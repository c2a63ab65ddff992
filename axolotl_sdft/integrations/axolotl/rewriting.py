"""Rewrites the datasets of a configuration and points it to the result; writes logits for Axolotl's own KD plugin."""

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import SelfDistillationConfig, TransformersGeneration
from axolotl_sdft.core.artifacts import ensure_writable, find_or_make
from axolotl_sdft.core.errors import ConfigError, error_context
from axolotl_sdft.distillation.output.dataset import refuse_damaged_rows
from axolotl_sdft.distillation.rows.formats import KD_TYPE, PROMPT_FIELD
from axolotl_sdft.integrations.axolotl import compat
from axolotl_sdft.integrations.axolotl.blocks import (
    missing_chat_template,
    read_blocks,
    seed_dir_of,
    seed_of,
    yaml_chat_template,
)
from axolotl_sdft.integrations.axolotl.datasets import (
    OVERRIDE,
    DatasetConfig,
    dataset_config,
    dataset_entries,
    keep_caches_out,
    load_rows,
    own_key,
    rewritten_entry,
)
from axolotl_sdft.integrations.axolotl.held_out import is_split, parts_of, rows_folder
from axolotl_sdft.integrations.axolotl.stream import REWRITING, announce

if TYPE_CHECKING:
    from datasets import Dataset

    from axolotl_sdft.distillation.interfaces import RowLimit
    from axolotl_sdft.distillation.output.logits import TokenizedRow
    from axolotl_sdft.distillation.spec import DistillationSpec

LOG = logging.getLogger(__name__)

_FIELD_TOOLS = "field_tools"


@dataclass(frozen=True)
class Source:
    """An entry of ``datasets``, and what is to become of its rows."""

    entry: Any
    spec: "DistillationSpec | None"
    """The rewriting of its training rows; None leaves them as they are."""

    training: "Dataset | None" = None
    """Its training rows where some rows are split off for validation or left out as repeats; None: all of them."""

    held_out: "Dataset | None" = None
    """Its rows for validation, where ``val_set_size`` splits some off; else None."""


def check_distillation(cfg: Any) -> None:
    """Refuse what would stop the rewriting later: names, datasets, columns, a seed model without chat template.

    Where the rewritten rows are there already, no server is asked and no folder is written to: both may be gone by now.
    """
    from axolotl_sdft.distillation.pipeline import refuse_damaged_dataset, refuse_separate_output

    checked = set()
    named = distillation_specs(cfg)
    _warn_of_unread_tools(named)
    specs = [spec for _, spec in named]
    if specs:
        refuse_separate_output(specs[0].root, is_finished=all(spec.is_finished for spec in specs))
    for spec in specs:
        refuse_damaged_dataset(spec)
        generation = spec.config.generation
        if spec.is_done or generation in checked:
            continue
        ensure_writable(spec.root, "self_distillation.output_dir")
        with closing(spec.backend_factory(spec.seed_dir, generation)) as backend:
            spec.check_backend(backend)
        checked.add(generation)


def _warn_of_unread_tools(named: "list[tuple[Any, DistillationSpec]]") -> None:
    for entry, spec in named:
        column = entry.get(_FIELD_TOOLS)
        if column not in (None, "tools") and not compat.reads_field_tools():
            LOG.warning(
                "%s.%s is %r, which this version of Axolotl does not read: functions are trained, and shown to the "
                "seed model, from the column 'tools' alone; rename the column",
                *(spec.where, _FIELD_TOOLS, column),
            )


def rewrite_datasets(cfg: Any, config: SelfDistillationConfig, only_if_done: bool = False) -> list[Path]:
    """Point ``datasets`` to distilled ones, made unless they are there, and return their folders.

    Where ``val_set_size`` splits off rows for validation, these become ``test_datasets``, as they are.

    With ``only_if_done``, nothing is generated: datasets that were never rewritten keep their rows.
    """
    from axolotl_sdft.distillation.pipeline import run_distillation

    sources = _sources(cfg)
    is_used = [source.spec is not None and (source.spec.is_done or not only_if_done) for source in sources]
    for source, used in zip(sources, is_used, strict=True):
        if source.spec and not used:
            LOG.warning("%s has not been rewritten yet; using its original rows", source.spec.where)
    if not any(is_used):
        return []
    if not only_if_done:
        specs = [source.spec for source in sources if source.spec]
        num_done = sum(spec.is_done for spec in specs)
        announce(read_blocks(cfg), REWRITING, f"{num_done} of {len(specs)} datasets reused")
    held_out = [
        rewritten_entry(source.entry, rows_folder(source.held_out, config.root, "held-out"))
        for source in sources
        if source.held_out
    ]
    entries, distilled = [], []
    for source, used in zip(sources, is_used, strict=True):
        if source.spec and used:
            distilled.append(run_distillation(source.spec))
            entries.append(rewritten_entry(source.entry, distilled[-1]))
        elif source.training is None:
            entries.append(source.entry)
        elif len(source.training):
            entries.append(rewritten_entry(source.entry, rows_folder(source.training, config.root, "kept")))
    keep_caches_out([*entries, *held_out])
    cfg.datasets = entries
    if held_out:
        cfg.test_datasets, cfg.val_set_size = held_out, 0
    return distilled


def distillation_specs(cfg: Any) -> "list[tuple[Any, DistillationSpec]]":
    """Return each dataset entry that is rewritten, with its spec. Settings and columns are checked; no model is loaded.

    Raises:
        ConfigError: A dataset's own settings are wrong, or every dataset is to be left alone.
        DatasetError: A dataset can't be loaded, or its rows can't be rewritten.
    """
    return [(source.entry, source.spec) for source in _sources(cfg) if source.spec]


def _sources(cfg: Any) -> list[Source]:
    named = [(where, entry, dataset_config(cfg, _index(where))) for where, entry in dataset_entries(cfg)]
    general = list(_general_sources(cfg))
    if not general and not any(own.enabled for _, _, own in named):
        raise ConfigError(
            f"{OVERRIDE} is on, but each of the datasets says {OVERRIDE}: {{enabled: false}}; enable one, set "
            "general_rows, or remove the top-level block"
        )
    return [*_dataset_sources(cfg, named), *general]


def _general_sources(cfg: Any) -> Iterator[Source]:
    """Yield the rows from outside the task, where the block asks for some. None of them is split off for validation."""
    from axolotl.utils.dict import DictDefault

    config = read_blocks(cfg).self_distillation
    if config is None or not config.general_rows:
        return
    from axolotl_sdft.distillation.general_rows import ROW_FORMAT, general_spec

    seed_dir, entry = seed_dir_of(cfg), DictDefault(ROW_FORMAT)
    settings = _ready(cfg, config, seed_dir, entry)
    spec = general_spec(settings, seed_dir, seed_of(cfg)[0], _row_limit(cfg, entry))
    yield Source(entry, spec, training=spec.dataset.select([]))  # unanswered prompts are no rows to train on


def _dataset_sources(cfg: Any, named: list[tuple[str, Any, DatasetConfig]]) -> list[Source]:
    if not is_split(cfg) and not cfg.get("dataset_exact_deduplication"):
        return [
            Source(entry, _spec(cfg, load_rows(cfg, entry, where), own, entry, where) if own.enabled else None)
            for where, entry, own in named
        ]
    loaded = [load_rows(cfg, entry, where) for where, entry, _ in named]
    parts = parts_of(cfg, [(where, entry, rows) for (where, entry, _), rows in zip(named, loaded, strict=True)])
    sources = []
    for (where, entry, own), part in zip(named, parts, strict=True):
        is_left_alone = not own.enabled or part.is_emptied
        spec = None if is_left_alone else _spec(cfg, part.training, own, entry, where)
        is_whole = part.held_out is None and not part.num_repeats
        sources.append(Source(entry, spec, None if is_whole else part.training, part.held_out))
    return sources


def _spec(cfg: Any, rows: "Dataset", own: DatasetConfig, entry: Any, where: str) -> "DistillationSpec":
    from axolotl_sdft.distillation.spec import DistillationSpec

    read = {**entry, PROMPT_FIELD: own.prompt_field} if own.prompt_field else dict(entry)
    if not compat.reads_field_tools():
        read.pop(_FIELD_TOOLS, None)
    seed_dir = seed_dir_of(cfg)
    settings = _ready(cfg, own.settings(), seed_dir, entry)
    with error_context(own_key(cfg, _index(where))):
        return DistillationSpec(rows, settings, seed_dir, read, seed_of(cfg)[0], where, _row_limit(cfg, entry))


def _row_limit(cfg: Any, entry: Any) -> "RowLimit":
    limit = compat.row_limit(cfg, entry)
    is_chat = str(entry.get("type")).startswith("chat_template")
    return replace(limit, chat_template=yaml_chat_template(cfg, entry)) if is_chat else limit


def _ready(cfg: Any, config: SelfDistillationConfig, seed_dir: Path, entry: Any) -> SelfDistillationConfig:
    """Return settings with what the rest of the configuration says of the seed model."""
    settings = _trusting_as_axolotl(cfg, config)
    template = missing_chat_template(cfg, seed_dir, entry)
    if template is None or settings.generation.chat_template is not None:
        return settings
    generation = settings.generation.model_copy(update={"chat_template": template})
    return settings.model_copy(update={"generation": generation})


def _trusting_as_axolotl(cfg: Any, config: SelfDistillationConfig) -> SelfDistillationConfig:
    """Let the seed model run code of its own where the whole configuration allows it."""
    generation = config.generation
    if not cfg.get("trust_remote_code") or generation.trust_remote_code is not None:
        return config
    trusting = generation.model_copy(update={"trust_remote_code": True})
    return config.model_copy(update={"generation": trusting})


def _index(where: str) -> int:
    return int(where.removeprefix("datasets[").removesuffix("]"))


def check_logits(specs: "list[tuple[Any, DistillationSpec]]") -> None:
    """Refuse datasets that the plugin for knowledge distillation can't read, before anything is rewritten.

    Raises:
        ConfigError: An entry is of another type than ``chat_template``.
    """
    for entry, spec in specs:
        kind = entry.get("type")
        if kind != "chat_template":
            raise ConfigError(
                f"{spec.where}.type is {kind!r}, but --logits writes for {KD_TYPE}, which reads conversations alone; "
                "convert the rows to messages and set type: chat_template, or leave out --logits"
            )


def logit_lines(cfg: Any, entry: Any, spec: "DistillationSpec", distilled_dir: Path, top_k: int) -> Iterator[str]:
    """Write the seed model's predictions beside rewritten rows, unless they are there; yield what was written.

    Args:
        cfg: The raw configuration.
        entry: Of ``datasets``.
        spec: How its rows were rewritten.
        distilled_dir: The rewritten rows.
        top_k: Tokens kept for each position.
    """
    from datasets import load_from_disk

    from axolotl_sdft.core.identity import model_identity
    from axolotl_sdft.distillation.output.logits import logits_dir, write_logits
    from axolotl_sdft.inference.loading import load_seed_model

    dataset = load_from_disk(str(distilled_dir))
    rows = list(tokenized_rows(cfg, entry, dataset))
    folder = logits_dir(distilled_dir, rows, top_k, model_identity(spec.seed_dir))
    num_rows = sum(row.is_trained for row in rows)

    def make() -> None:
        write_logits(load_seed_model(spec.seed_dir, _local(spec.config.generation)), dataset, rows, top_k, folder)

    if not find_or_make(folder, make, folder.exists):
        refuse_damaged_rows(folder, num_rows, "delete the folder and start again, which makes it anew")
    yield f"{spec.where}: {num_rows} of {len(dataset)} rows with the seed model's {top_k} most likely tokens: {folder}"
    is_named = spec.where.startswith("datasets[")  # else they are general rows, which the plugin adds
    place = f"in the place of {spec.where}" if is_named else "behind the entries of datasets"
    yield (
        f"  to train on them, remove {OVERRIDE}, add axolotl.integrations.kd.KDPlugin to plugins, set kd_trainer: "
        f"true, kd_alpha and kd_ce_alpha, and write {place}: {{{_as_yaml(kd_entry(entry, folder))}}}"
    )


def kd_entry(entry: Any, folder: Path) -> dict[str, Any]:
    """Return the dataset entry that trains on a folder of predictions."""
    from axolotl_sdft.distillation.output.logits import LOG_PROBS_COLUMN

    kept = rewritten_entry(entry, folder)
    return {**kept, "type": KD_TYPE, "logprobs_field": LOG_PROBS_COLUMN}


def tokenized_rows(cfg: Any, entry: Any, dataset: Any) -> "Iterator[TokenizedRow]":
    """Yield the rows as Axolotl tokenizes them for training; those longer than ``sequence_len`` are left out."""
    from axolotl_sdft.distillation.output.logits import TokenizedRow

    strategy, limit = compat.tokenizing_strategy(cfg, entry), compat.row_limit(cfg, entry).max_tokens
    for place, row in enumerate(dataset):
        tokens = strategy.tokenize_prompt(row)
        if len(tokens["input_ids"]) <= limit:
            yield TokenizedRow(place, tuple(tokens["input_ids"]), tuple(tokens["labels"]))


def _local(generation: Any) -> TransformersGeneration:
    """Return how the seed model is loaded here, also where a server rewrites the answers."""
    if isinstance(generation, TransformersGeneration):
        return generation
    return TransformersGeneration(trust_remote_code=bool(generation.trust_remote_code))


def _as_yaml(entry: dict[str, Any]) -> str:
    import json

    return ", ".join(f"{key}: {json.dumps(value)}" for key, value in entry.items() if value is not None)
