"""The text that layers are scored on: rows of the training set or of another dataset, as the model would see them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from axolotl_sdft.config import CalibrationConfig
from axolotl_sdft.errors import DatasetError
from axolotl_sdft.host.calibration_text import text_of
from axolotl_sdft.host.datasets import dataset_entries, load_rows
from axolotl_sdft.sampling import evenly_spaced

_STREAMED = "pretraining_dataset"


def calibration_entries(cfg: Any, calibration: CalibrationConfig) -> list[tuple[str, Any]]:
    """Return the dataset entries that the text comes from, with what messages call them.

    Without a ``path``: those of ``datasets``, else of ``pretraining_dataset``.
    """
    from axolotl.utils.dict import DictDefault

    if calibration.path is not None:
        chosen = calibration.model_dump(include={"path", "name", "split", "type"}, exclude_none=True)
        return [("layer_pruning.calibration", DictDefault(chosen))]
    if cfg.get("datasets") or not cfg.get(_STREAMED):
        return list(dataset_entries(cfg))
    named = cfg[_STREAMED]
    corpora = [{"path": named}] if isinstance(named, str) else [dict(corpus) for corpus in named]
    return [(f"{_STREAMED}[{index}]", DictDefault(_corpus_entry(corpus))) for index, corpus in enumerate(corpora)]


def _corpus_entry(corpus: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of ``pretraining_dataset`` as one of ``datasets``."""
    kept = {key: corpus[key] for key in ("path", "name", "data_files", "skip") if corpus.get(key)}
    column = corpus.get("text_column") or "text"
    return {**kept, "split": corpus.get("split") or "train", "type": "completion", "field": column}


def calibration_texts(cfg: Any, entries: Sequence[Any], calibration: CalibrationConfig, seed_dir: Path) -> list[str]:
    """Return one text for each of ``num_samples`` rows, spread evenly over all entries.

    A pretraining corpus may be endless: its first rows are read, as a stream.

    Raises:
        DatasetError: There are no rows, they can't be loaded, or hold nothing that can be read as text.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(seed_dir, trust_remote_code=bool(cfg.get("trust_remote_code")))
    count = calibration.num_samples
    datasets = [
        (where, entry, _first_rows(cfg, entry, where, count) if _is_streamed(where) else load_rows(cfg, entry, where))
        for where, entry in entries
    ]
    total = sum(len(rows) for *_, rows in datasets)
    if total == 0:
        raise DatasetError(f"{entries[0][0]} has no rows to score the layers on; check its path, split and filters")
    chosen = evenly_spaced(total, count)
    texts, start = [], 0
    for where, entry, rows in datasets:
        picked = [rows[place - start] for place in chosen if start <= place < start + len(rows)]
        texts += [text_of(row, entry, where, tokenizer) for row in picked]
        start += len(rows)
    return texts


def _is_streamed(where: str) -> bool:
    return where.startswith(_STREAMED)


def _first_rows(cfg: Any, entry: Any, where: str, count: int) -> list[dict[str, Any]]:
    """Return the first rows of a corpus, after those that it says to skip."""
    from axolotl.utils.data.shared import load_dataset_with_config

    try:
        rows = load_dataset_with_config(entry, cfg.get("hf_use_auth_token") or False, streaming=True)
        return list(rows.skip(entry.get("skip") or 0).take(count))
    except Exception as err:  # whatever the loader of that kind of file raises
        raise DatasetError(
            f"{where}.path is {entry.path!r}, which could not be loaded ({type(err).__name__}: {err}); check the path, "
            "name, split and data_files, or set layer_pruning.calibration.path"
        ) from err
