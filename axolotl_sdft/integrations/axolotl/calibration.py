"""What layers are scored on, and a patch is fitted on: rows of the training set or of another dataset, or a mixture."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_sdft.config import CalibrationConfig, LayerPruningConfig
from axolotl_sdft.core.errors import DatasetError, error_context
from axolotl_sdft.core.texts import evenly_spaced
from axolotl_sdft.distillation.rows.validation import shown_features, stored_rows
from axolotl_sdft.integrations.axolotl.blocks import missing_chat_template, yaml_chat_template
from axolotl_sdft.integrations.axolotl.calibration_text import desirable_rows, texts_of
from axolotl_sdft.integrations.axolotl.datasets import (
    dataset_entries,
    entry_fingerprint,
    is_drawn,
    load_rows,
    shuffle_seed,
)
from axolotl_sdft.pruning.general_answers import GeneralText, calibration_prompts

LOG = logging.getLogger(__name__)

_STREAMED = "pretraining_dataset"


def calibration_entries(
    cfg: Any, calibration: CalibrationConfig, where: str = "layer_pruning.calibration"
) -> list[tuple[str, Any]]:
    """Return the dataset entries that the text comes from, with what messages call them.

    Without a ``path``: those of ``datasets``, else the first of ``pretraining_dataset``.
    """
    from axolotl.utils.dict import DictDefault

    if calibration.path is not None:
        chosen = calibration.model_dump(include={"path", "name", "split", "type"}, exclude_none=True)
        return [(where, DictDefault(chosen))]
    if cfg.get("datasets") or not cfg.get(_STREAMED):
        return list(dataset_entries(cfg))
    # Axolotl trains on the first corpus alone.
    named = cfg[_STREAMED]
    corpora = named if isinstance(named, list) else [named]
    if len(corpora) > 1:
        LOG.warning("%s names %d corpora, of which Axolotl reads the first alone", _STREAMED, len(corpora))
    corpus = {"path": corpora[0]} if isinstance(corpora[0], str) else dict(corpora[0])
    return [(f"{_STREAMED}[0]", DictDefault(_corpus_entry(corpus)))]


def _corpus_entry(corpus: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of ``pretraining_dataset`` as one of ``datasets``."""
    kept = {key: corpus[key] for key in ("path", "name", "data_files", "skip") if corpus.get(key)}
    column = corpus.get("text_column") or "text"
    return {**kept, "split": corpus.get("split") or "train", "type": "completion", "field": column}


def calibration_texts(cfg: Any, entries: Sequence[Any], calibration: CalibrationConfig, seed_dir: Path) -> list[str]:
    """Return one text for each of ``num_samples`` rows, spread evenly over all entries.

    Rows that hold no text, or a completion that ``rl: kto`` calls undesirable, are left out, which is logged. A
    pretraining corpus may be endless: its first rows are read, as a stream. A seed model without a chat template takes
    the one that the configuration names.

    Raises:
        DatasetError: There are no rows, they can't be loaded, or hold nothing that can be read as text.
    """
    from axolotl_sdft.inference.prompts import is_mistral_common

    tokenizer = _tokenizer(cfg, seed_dir)
    count = calibration.num_samples
    datasets = [
        (where, entry, _first_rows(cfg, entry, where, count) if _is_streamed(where) else _rows(cfg, entry, where))
        for where, entry in entries
    ]
    total = sum(len(rows) for *_, rows in datasets)
    if total == 0:
        raise DatasetError(f"{entries[0][0]} has no rows to score the layers on; check its path, split and filters")
    chosen = evenly_spaced(total, count)
    texts, start = [], 0
    own_template = tokenizer.chat_template
    for where, entry, rows in datasets:
        if not (own_template or is_mistral_common(tokenizer)):
            tokenizer.chat_template = yaml_chat_template(cfg, entry)
        picked = [rows[place - start] for place in chosen if start <= place < start + len(rows)]
        features = None if isinstance(rows, list) else shown_features(rows)
        read = texts_of(picked, entry, where, tokenizer, features)
        texts += [text for text in read if text.strip()]
        num_empty = sum(not text.strip() for text in read)
        if num_empty:
            LOG.warning(
                "%s: %d of %d rows hold no text and are left out of the calibration", where, num_empty, len(read)
            )
        start += len(rows)
    if not texts:
        raise DatasetError(
            f"{entries[0][0]} holds no text to score the layers on in any of {len(chosen)} rows; check its path, "
            "split, type and field names"
        )
    return texts


def _tokenizer(cfg: Any, seed_dir: Path) -> Any:
    from transformers import AutoTokenizer

    from axolotl_sdft.pruning.scoring.loading import loading_failure

    with error_context(loading_failure(seed_dir)):
        return AutoTokenizer.from_pretrained(seed_dir, trust_remote_code=bool(cfg.get("trust_remote_code")))


def _rows(cfg: Any, entry: Any, where: str) -> Any:
    return desirable_rows(stored_rows(load_rows(cfg, entry, where), where), entry, where)


def _is_streamed(where: str) -> bool:
    return where.startswith(_STREAMED)


def _first_rows(cfg: Any, entry: Any, where: str, count: int) -> list[dict[str, Any]]:
    """Return the first rows of a corpus, after those that it says to skip."""
    try:
        rows = _stream(cfg, entry)
        return list(rows.skip(entry.get("skip") or 0).take(count))
    except Exception as err:  # whatever the loader of that kind of file raises
        raise DatasetError(
            f"{where}.path is {entry.path!r}, which could not be loaded ({type(err).__name__}: {err}); check the path, "
            "name, split and data_files, or set layer_pruning.calibration.path"
        ) from err


def _stream(cfg: Any, entry: Any) -> Any:
    """Return a corpus as Axolotl reads it: ``path`` may be a kind of file, such as ``json``, of ``data_files``."""
    from axolotl.utils.data.shared import load_dataset_with_config
    from datasets import load_dataset

    if Path(entry.path).exists():
        return load_dataset_with_config(entry, cfg.get("hf_use_auth_token") or False, streaming=True)
    files = entry.get("data_files")
    named = {"name": entry.get("name"), "data_files": files.to_list() if hasattr(files, "to_list") else files}
    return load_dataset(entry.path, streaming=True, split=entry.split, **named)


@dataclass(frozen=True)
class Source:
    """Where some of the calibration text comes from: entries of datasets."""

    config: CalibrationConfig
    """How many rows are read."""
    entries: tuple[tuple[str, Any], ...] = ()
    identity: Any = ()
    """What changes with the text."""


def calibration_sources(cfg: Any, calibration: CalibrationConfig, seed_dir: Path) -> list[Source]:
    """Return what is read; no rows are read yet. General prompts are no part of it."""
    if not calibration.parts:
        return [_source(cfg, calibration, calibration_entries(cfg, calibration), seed_dir)]
    sources = []
    for number, (part, config) in enumerate(zip(calibration.parts, calibration.sources, strict=True)):
        if not part.general_prompts:
            entries = calibration_entries(cfg, config, f"layer_pruning.calibration[{number}]")
            sources.append(_source(cfg, config, entries, seed_dir))
    return sources


def _source(cfg: Any, config: CalibrationConfig, entries: Sequence[tuple[str, Any]], seed_dir: Path) -> Source:
    return Source(config, tuple(entries), [_entry_identity(cfg, entry, seed_dir) for _, entry in entries])


def _entry_identity(cfg: Any, entry: Any, seed_dir: Path) -> Any:
    """Return what changes with the text of an entry: what it reads, the random seed that draws rows of it, and a chat
    template that the seed model lacks."""
    seed = shuffle_seed(cfg) if is_drawn(entry) else None
    found = {"chat_template": missing_chat_template(cfg, seed_dir, entry), "seed": seed}
    more = {key: value for key, value in found.items() if value is not None}
    return [entry_fingerprint(entry), more] if more else entry_fingerprint(entry)


def source_texts(cfg: Any, sources: Sequence[Source], seed_dir: Path) -> list[str]:
    """Return the texts of all sources.

    Raises:
        DatasetError: A source names no dataset, or one that can't be read.
    """
    texts: list[str] = []
    for source in sources:
        if not source.entries:
            raise DatasetError(
                "neither datasets, pretraining_dataset nor layer_pruning.calibration.path is set; set the last, or "
                "layer_pruning.patch: none"
            )
        texts += calibration_texts(cfg, source.entries, source.config, seed_dir)
    return texts


def general_text(cfg: Any, config: LayerPruningConfig, seed_dir: Path) -> GeneralText | None:
    """Return what the seed model writes itself for the patch, by default or as a part; None where it writes nothing.

    Nothing is generated yet.
    """
    calibration = config.calibration
    num_prompts = calibration.num_general_prompts
    if config.patch == "none":
        if num_prompts:
            LOG.warning(
                "layer_pruning.patch is none, so the part of layer_pruning.calibration with general_prompts is without "
                "effect: layers are scored on the other parts"
            )
        return None
    if not (num_prompts or calibration.asks_by_default):
        return None
    available = len(calibration_prompts())
    if num_prompts > available:
        LOG.info("layer_pruning.calibration asks for %d general prompts; there are %d", num_prompts, available)
    return GeneralText(
        share=None if num_prompts else calibration.general_share,
        num_prompts=num_prompts or None,
        chat_template=missing_chat_template(cfg, seed_dir),
    )
