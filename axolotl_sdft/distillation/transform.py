"""Rewrites a dataset with the seed model: generate into the journal, then build the dataset from it.

Two folders come out of it, both named by their content. ``answers-*`` holds the journal: what the seed model wrote for
these rows with these generation settings. ``distilled-*`` holds the dataset after the checks, so that trying other
checks on single-turn rows generates nothing again. (In a conversation, a verdict changes what the next turn is asked;
there the checks belong to the answers as well.)
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from axolotl_sdft.artifacts import (
    DEFAULT_ROOT,
    checkpoint_fingerprint,
    ensure_writable,
    fingerprint,
)
from axolotl_sdft.config import SelfDistillationConfig
from axolotl_sdft.distillation.build import SUMMARY_FILE, build_dataset
from axolotl_sdft.distillation.checks import resolve_checks
from axolotl_sdft.distillation.generation import Generation
from axolotl_sdft.distillation.interfaces import Backend, RowFormat
from axolotl_sdft.distillation.journal import Journal, Key
from axolotl_sdft.distillation.row_formats import resolve_row_format
from axolotl_sdft.distillation.templates import resolve_template
from axolotl_sdft.errors import DatasetError
from axolotl_sdft.plugins import BACKENDS, registry
from axolotl_sdft.runtime import rank

if TYPE_CHECKING:
    from datasets import Dataset

LOG = logging.getLogger(__name__)

_POLL_S = 0.5


def distill_dataset(
    dataset: "Dataset",
    config: SelfDistillationConfig,
    *,
    seed_model: str | Path,
    revision: str | None = None,
    dataset_config: Mapping[str, Any] | None = None,
) -> "Dataset":
    """Return the dataset with its answers rewritten by the seed model (SDFT, arXiv 2402.13669).

    Rows stay in their order; columns that hold no trained answer are untouched. Two columns are added: ``sdft_source``
    (``distilled`` or ``original``) and ``sdft_reasons`` (for each trained answer, why it was kept original, or an empty
    text). The result stays in a folder, from which a second call with the same arguments takes it.

    Args:
        dataset: The rows.
        config: How they are rewritten.
        seed_model: Folder or Hub id of the model that rewrites.
        revision: Revision of the seed model on the Hub.
        dataset_config: The row format, as an entry of Axolotl's ``datasets``: ``type`` and its field names. Default:
            ``{"type": "alpaca"}``.

    Raises:
        DatasetError: A column is missing, or there is no answer to rewrite.
        ConfigError: The seed model has no chat template.

    Example:
        >>> from datasets import load_dataset
        >>> from axolotl_sdft import SelfDistillationConfig, distill_dataset
        >>> rows = load_dataset("json", data_files="train.jsonl", split="train")
        >>> seed = "HuggingFaceTB/SmolLM2-135M-Instruct"
        >>> distilled = distill_dataset(rows, SelfDistillationConfig(), seed_model=seed)
    """
    from datasets import load_from_disk

    from axolotl_sdft.pruning.prune import resolve_seed

    seed_dir = resolve_seed(str(seed_model), revision)
    task = DistillationTask(dataset, config, seed_dir, dataset_config or {"type": "alpaca"}, str(seed_model))
    return load_from_disk(str(task.run()))


@dataclass(frozen=True)
class DistillationTask:
    """One dataset to be rewritten. Creating it checks the settings and the columns, and costs no model."""

    dataset: "Dataset"
    config: SelfDistillationConfig
    seed_dir: Path
    dataset_config: Mapping[str, Any]
    seed_name: str
    where: str = "dataset"
    """What messages call the dataset, such as ``datasets[0]``."""

    def __post_init__(self) -> None:
        if len(self.dataset) == 0:
            raise DatasetError(f"{self.where} has no rows; check its path, split and filters")
        missing = self.row_format.missing_columns(self.dataset.column_names)
        if missing:
            raise DatasetError(
                f"{self.where} has no column {missing[0]!r}, which its type {self.dataset_config.get('type')!r} needs; "
                f"its columns: {', '.join(self.dataset.column_names)}. Set another type or the field names"
            )
        _ = self.checks, self.template, self.backend_factory  # unknown names are refused now

    @cached_property
    def row_format(self) -> RowFormat:
        """Where the answers are."""
        return resolve_row_format(self.dataset_config, self.where)

    @cached_property
    def checks(self) -> Any:
        """Names and functions of the checks, in order."""
        return resolve_checks(self.config.checks)

    @cached_property
    def template(self) -> Any:
        """The rewriting template."""
        return resolve_template(self.config.template)

    @cached_property
    def backend_factory(self) -> Any:
        """What makes the backend."""
        return registry().resolve(BACKENDS, self.config.generation.backend, "self_distillation.generation.backend")

    @cached_property
    def root(self) -> Path:
        """Folder that holds the artifacts."""
        return Path(self.config.output_dir or DEFAULT_ROOT).absolute()

    @cached_property
    def _content(self) -> tuple[str, str, int]:
        """Digests of all rows and of what the seed model is asked about them, and the most answers in one row."""
        rows, requests, most = hashlib.sha256(), hashlib.sha256(), 0
        for row in self.dataset:
            rows.update(json.dumps(row, sort_keys=True, default=str).encode())
            num_targets = self.row_format.num_targets(row)
            most = max(most, num_targets)
            for turn in range(num_targets):
                requests.update(json.dumps(self.template(self.row_format.target(row, turn))).encode())
        if most == 0:
            raise DatasetError(f"{self.where} holds no answer to rewrite; check its type and field names")
        return rows.hexdigest(), requests.hexdigest(), most

    @cached_property
    def answers_dir(self) -> Path:
        """Folder of the journal."""
        settings = self.config.model_dump(mode="json")
        generation = {
            key: value for key, value in settings["generation"].items() if key not in ("batch_tokens", "batch_rows")
        }
        made_of = [checkpoint_fingerprint(self.seed_dir), self._content[1], generation]
        if self._content[2] > 1:
            made_of.append(settings["checks"])
        return self.root / f"answers-{fingerprint(made_of)}"

    @cached_property
    def dataset_dir(self) -> Path:
        """Folder of the distilled dataset."""
        made_of = [self.answers_dir.name, self._content[0], self.config.checks, self.config.on_reject]
        return self.root / f"distilled-{fingerprint(made_of)}"

    @property
    def is_done(self) -> bool:
        """Whether the distilled dataset is there."""
        return (self.dataset_dir / SUMMARY_FILE).exists()

    def run(self) -> Path:
        """Return the folder of the distilled dataset, made unless it is there.

        Under several ranks all of them call this; each generates its share, one builds the dataset.
        """
        if self.is_done:
            LOG.info("%s: using the distilled dataset %s", self.where, self.dataset_dir)
            return self.dataset_dir
        backend = self.backend_factory(self.seed_dir, self.config.generation)
        backend.check()
        ensure_writable(self.root, "self_distillation.output_dir")
        ensure_writable(self.answers_dir, "self_distillation.output_dir")
        journal = Journal(self.answers_dir)
        try:
            with journal.writer(rank()) as writer:
                Generation(self, backend, journal).run(writer)
            self._build_once(backend, journal)
        finally:
            backend.close()
        return self.dataset_dir

    def _build_once(self, backend: Backend, journal: Journal) -> None:
        """Wait until every rank has written its share, then let the first one that sees it build the dataset."""
        while True:
            with FileLock(self.root / f".{self.dataset_dir.name}.lock"):
                if self.is_done:
                    return
                answers = journal.answers()
                if all(key in answers for key in self.answer_keys()):
                    build_dataset(self, backend, answers, journal.seconds())
                    return
            time.sleep(_POLL_S)

    def answer_keys(self) -> Iterator[Key]:
        """Yield row and turn of every answer to be rewritten."""
        for index, row in enumerate(self.dataset):
            for turn in range(self.row_format.num_targets(row)):
                yield index, turn
