"""Writes what the seed model finds likely at each trained token beside the rows of a dataset.

The columns are those that Axolotl's own plugin for knowledge distillation reads (``axolotl.integrations.kd``): of each
position, the log-probabilities of the k most likely next tokens, and which tokens these are. A row's lists are aligned
with the end of its tokens and begin at the position before the first trained one.

Shapes: T tokens of a row, P positions with predictions, K tokens kept.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset, Features, Value
from datasets import Sequence as ListOf
from torch import Tensor

from axolotl_sdft.core.artifacts import atomic_folder, fingerprint, write_json
from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.distillation.rows.validation import storable

LOG = logging.getLogger(__name__)

LOG_PROBS_COLUMN, TOKEN_IDS_COLUMN = "logprobs", "target_token_ids"
_IGNORED_LABEL = -100
_ROWS_AT_A_TIME = 32  # whose predictions are in memory
_CHUNK = 256  # positions whose distributions are in float32 at a time


@dataclass(frozen=True)
class TokenizedRow:
    """A row as it will be trained."""

    place: int
    """In the dataset."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def start(self) -> int:
        """The position that predicts the first trained token."""
        first = next((place for place, label in enumerate(self.labels) if label != _IGNORED_LABEL), 0)
        return max(0, first - 1)

    @property
    def is_trained(self) -> bool:
        """Whether any of its tokens is trained."""
        return any(label != _IGNORED_LABEL for label in self.labels)


def logits_dir(distilled_dir: Path, rows: Sequence[TokenizedRow], top_k: int, seed_identity: str) -> Path:
    """Return the folder of a dataset with predictions, named by all that shapes them."""
    tokens = hashlib.sha256(json.dumps([[row.place, row.input_ids, row.labels] for row in rows]).encode()).hexdigest()
    return distilled_dir.with_name(f"{distilled_dir.name}-top{top_k}-{fingerprint([tokens, seed_identity])}")


def write_logits(model: Any, dataset: Dataset, rows: Sequence[TokenizedRow], top_k: int, folder: Path) -> Path:
    """Write the rows with what a model finds likely, and return their folder, which is written whole or not at all.

    Args:
        model: A causal language model in evaluation mode.
        dataset: The rows.
        rows: Those that are written, tokenized.
        top_k: Tokens kept for each position.
        folder: Must not exist.

    Raises:
        DatasetError: A column has the name of one that is added, a token is unknown to the model, or no row is left.
    """
    taken = {LOG_PROBS_COLUMN, TOKEN_IDS_COLUMN} & set(dataset.column_names)
    if taken:
        raise DatasetError(f"the dataset has a column {min(taken)!r} already; rename it, or leave out --logits")
    rows = [row for row in rows if row.is_trained]
    if not rows:
        raise DatasetError("no row has a trained token within sequence_len, so there is nothing to write for --logits")
    size = model.get_input_embeddings().weight.shape[0]
    largest = max(max(row.input_ids) for row in rows)
    if largest >= size:
        raise DatasetError(
            f"token {largest} of the rows is unknown to the seed model, whose vocabulary has {size}; leave out the "
            "added tokens (tokens, special_tokens), or --logits"
        )
    lists = {
        name: ListOf(ListOf(Value(kind))) for name, kind in ((LOG_PROBS_COLUMN, "float32"), (TOKEN_IDS_COLUMN, "int32"))
    }

    def with_predictions(row: dict[str, Any], index: int) -> dict[str, Any]:
        log_probs_PK, token_ids_PK = top_log_probs(model, rows[index], top_k)
        stored = {name: storable([value], dataset.features[name])[0] for name, value in row.items()}
        return {**stored, LOG_PROBS_COLUMN: log_probs_PK.tolist(), TOKEN_IDS_COLUMN: token_ids_PK.tolist()}

    with atomic_folder(folder) as temporary, TemporaryDirectory(prefix=".rows-", dir=temporary) as scratch:
        written = dataset.select([row.place for row in rows]).map(
            with_predictions,
            with_indices=True,
            features=Features({**dataset.features, **lists}),
            load_from_cache_file=False,
            cache_file_name=f"{scratch}/rows.arrow",  # dozens of numbers for each token would fill the memory
            writer_batch_size=_ROWS_AT_A_TIME,
            new_fingerprint=fingerprint(folder.name),  # else the model would be hashed
        )
        written.save_to_disk(temporary)
        write_json(temporary / "logits.json", {"top_k": top_k, "num_rows": len(rows)})
    return folder


@torch.no_grad()
def top_log_probs(model: Any, row: TokenizedRow, top_k: int) -> tuple[Tensor, Tensor]:
    """Return log-probabilities [P, K] in float32 and tokens [P, K], the most likely first.

    The prediction at a position is that of the token after it, from all tokens up to it.
    """
    ids_1T = torch.tensor([row.input_ids], device=next(model.parameters()).device)
    logits_PV = model(input_ids=ids_1T, use_cache=False).logits[0, row.start :]
    parts = [
        part_CV.float().log_softmax(-1).topk(min(top_k, logits_PV.shape[-1])) for part_CV in logits_PV.split(_CHUNK)
    ]
    return torch.cat([part.values for part in parts]).cpu(), torch.cat([part.indices for part in parts]).cpu()
