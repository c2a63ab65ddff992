"""The text that layers are scored on: rows of the training set or of another dataset, as the model would see them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from axolotl_sdft.config import CalibrationConfig
from axolotl_sdft.distillation.row_formats import resolve_row_format
from axolotl_sdft.errors import DatasetError, UnknownNameError
from axolotl_sdft.host.datasets import dataset_entries, load_rows
from axolotl_sdft.sampling import evenly_spaced


def calibration_entries(cfg: Any, calibration: CalibrationConfig) -> list[tuple[str, Any]]:
    """Return the dataset entries that the text comes from, with what messages call them."""
    if calibration.path is None:
        return list(dataset_entries(cfg))
    from axolotl.utils.dict import DictDefault

    chosen = calibration.model_dump(include={"path", "name", "split", "type"}, exclude_none=True)
    return [("layer_pruning.calibration", DictDefault(chosen))]


def calibration_texts(cfg: Any, entries: Sequence[Any], calibration: CalibrationConfig, seed_dir: Path) -> list[str]:
    """Return one text for each of ``num_samples`` rows, spread evenly over all entries."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(seed_dir)
    datasets = [(where, entry, load_rows(cfg, entry, where)) for where, entry in entries]
    total = sum(len(rows) for *_, rows in datasets)
    if total == 0:
        raise DatasetError(f"{entries[0][0]} has no rows to score the layers on; check its path, split and filters")
    chosen = evenly_spaced(total, calibration.num_samples)
    texts, start = [], 0
    for where, entry, rows in datasets:
        picked = [rows[place - start] for place in chosen if start <= place < start + len(rows)]
        texts += [_text_of(row, entry, where, tokenizer) for row in picked]
        start += len(rows)
    return texts


def _text_of(row: dict, entry: Any, where: str, tokenizer: Any) -> str:
    """Return a row as the model would see it: its whole conversation in the chat template, or its ``text``."""
    if isinstance(row.get("text"), str) and not entry.get("type"):
        return row["text"]
    row_format = resolve_row_format(entry if entry.get("type") else _guessed_type(row, where))
    last = row_format.num_targets(row) - 1
    if last < 0:
        return ""
    target = row_format.target(row, last)
    messages = [*target.context, {"role": "assistant", "content": target.reference}]
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(messages, tokenize=False)
    return "\n\n".join(message["content"] for message in messages)


def _guessed_type(row: dict, where: str) -> dict[str, str]:
    """Return the first row format whose columns are there."""
    for name in ("chat_template", "alpaca", "alpaca_chat.load_qa"):
        try:
            if not resolve_row_format({"type": name}).missing_columns(list(row)):
                return {"type": name}
        except UnknownNameError:
            continue
    raise DatasetError(
        f"{where}.type is not set, and the columns {', '.join(row)} fit no known row format; set the type"
    )
