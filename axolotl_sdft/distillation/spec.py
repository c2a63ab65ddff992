"""What is asked of the self-distilled dataset: rows, settings, and the folders that follow from their content.

Two folders come out of it, both named by their content. ``answers-*`` holds the journal: what the seed model answered
with these generation settings, whatever dataset asked, and what the checks said of it. ``distilled-*`` holds the
dataset after the checks. So other rows or other checks generate only what was never asked before.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from axolotl_sdft.config import SelfDistillationConfig
from axolotl_sdft.core.artifacts import fingerprint, refuse_long_path
from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.core.identity import model_identity
from axolotl_sdft.distillation.checks import resolve_checks
from axolotl_sdft.distillation.checks.function_calls import function_call
from axolotl_sdft.distillation.digest import DatasetDigest, digest_dataset
from axolotl_sdft.distillation.generation.selection import SelectionPolicy
from axolotl_sdft.distillation.interfaces import RowFormat, RowLimit, Template
from axolotl_sdft.distillation.rows.formats import resolve_row_format
from axolotl_sdft.distillation.rows.left_alone import TOO_LONG_ROW, LeftAlone, LeftAloneCounts
from axolotl_sdft.distillation.rows.validation import (
    refuse_tokenized,
    require_columns,
    require_text,
    require_whole_dataset,
    row_lengths,
    shown_features,
    stored_rows,
)
from axolotl_sdft.distillation.templates import resolve_template, with_answer_prefix
from axolotl_sdft.inference.interfaces import Backend, Sampling
from axolotl_sdft.plugins.registry import BACKENDS, registry

if TYPE_CHECKING:
    from datasets import Dataset

LOG = logging.getLogger(__name__)

SUMMARY_FILE = "summary.json"
INCOMPLETE = "-incomplete-"
"""Stands in the name of a dataset some answers of which are to be tried again."""

_JOURNAL_FORMAT = 3  # answers in another form, or sampled in another way, are not taken for these


@dataclass(frozen=True)
class DistillationSpec:
    """One dataset to be rewritten. Creating it checks the settings and the columns, and costs no model."""

    dataset: "Dataset"
    config: SelfDistillationConfig
    seed_dir: Path
    dataset_config: Mapping[str, Any]
    seed_name: str
    where: str = "dataset"
    """What messages call the dataset, such as ``datasets[0]``."""

    row_limit: RowLimit | None = None
    """How long a row may be to be trained; None where that is not known."""

    if_rejected: str = "self_distillation.on_reject is drop; set on_reject: original, other checks, or another template"
    """What is said where all rows are rejected and left out: why that ends the run, and what to do."""

    if_unanswered: str = (
        "To train these rows as they are, set self_distillation: {enabled: false} in their entry of datasets"
    )
    """What else to do where the seed model answers no prompt."""

    features: Any = field(init=False, repr=False)
    """Types of the columns as the dataset came; rows themselves are read as they are stored."""

    def __post_init__(self) -> None:
        require_whole_dataset(self.dataset, self.where)
        if len(self.dataset) == 0:
            raise DatasetError(f"{self.where} has no rows; check its path, split and filters")
        object.__setattr__(self, "features", self.dataset.features)
        object.__setattr__(self, "dataset", stored_rows(self.dataset, self.where))
        columns, kind = self.dataset.column_names, self.dataset_config.get("type")
        refuse_tokenized(columns, self.where)
        require_columns(self.row_format.missing_columns(columns), columns, kind, self.where)
        require_text(shown_features(self.dataset), self.row_format, kind, self.where)
        _ = self.checks, self.templates, self.backend_factory  # unknown names are refused now

    @cached_property
    def row_format(self) -> RowFormat:
        """Where the answers are. Those that call functions are only rewritten when a check compares the calls."""
        row_format: Any = resolve_row_format(self.dataset_config, self.where)
        compares_calls = any(name == function_call.__name__ for name, _ in self.checks)
        if compares_calls or not hasattr(row_format, "leaves_calls"):
            return row_format
        return replace(row_format, leaves_calls=True)

    @cached_property
    def checks(self) -> Any:
        """Names and functions of the checks, in order."""
        return resolve_checks(self.config.checks, self._requests)  # an answer may hold its prefix, of course

    @cached_property
    def _requests(self) -> tuple[Template, ...]:
        return tuple(resolve_template(template, self.config.examples) for template in self.config.templates)

    @cached_property
    def templates(self) -> tuple[Template, ...]:
        """The rewriting templates, in the order in which they are tried, with the beginning of the answer if any."""
        return tuple(with_answer_prefix(request, self.config.answer_prefix) for request in self._requests)

    @cached_property
    def backend_factory(self) -> Any:
        """What makes the backend."""
        return registry().resolve(BACKENDS, self.config.generation.backend, "self_distillation.generation.backend")

    def check_backend(self, backend: Backend) -> None:
        """Find what would keep the seed model from answering; loads no weights.

        Raises:
            ConfigError: It can't answer chats, or can't go on behind ``answer_prefix``.
            ServerError: No server answers.
        """
        backend.check()
        generation, prefix = self.config.generation, self.config.answer_prefix
        if not prefix:
            return
        from axolotl_sdft.inference.prompts import load_tokenizer, require_room_for_prefix

        trusts = bool(generation.trust_remote_code)
        try:
            tokenizer = load_tokenizer(self.seed_dir, trust_remote_code=trusts, chat_template=generation.chat_template)
        except (OSError, ValueError):  # servers may have a tokenizer that is not here
            return
        if tokenizer.chat_template:
            require_room_for_prefix(tokenizer, prefix, generation.template_arguments)

    @cached_property
    def root(self) -> Path:
        """Folder that holds the artifacts."""
        refuse_long_path(self.config.root, "self_distillation.output_dir")
        return self.config.root

    @cached_property
    def policy(self) -> SelectionPolicy:
        """How often answers are asked for, and which one is taken."""
        return SelectionPolicy.of(self.config)

    @cached_property
    def seed_fingerprint(self) -> str:
        """Identity of the seed model as it was when first asked for."""
        return model_identity(self.seed_dir)

    @cached_property
    def content(self) -> DatasetDigest:
        """What the dataset holds, in short."""
        content = digest_dataset(self.dataset, self.row_format, self.templates)
        if content.most_targets == 0:
            self._require_meant(content.left_alone)
        elif content.left_alone.answers:
            level = logging.WARNING if content.left_alone.num_trained else logging.INFO
            LOG.log(level, "%s: left alone: %s", self.where, content.left_alone.named())
        return content

    @cached_property
    def too_long(self) -> NDArray[np.bool_]:
        """Which rows training leaves out for their length as they are; nothing is asked about them. Reads all rows.

        Raises:
            DatasetError: A row can't be tokenized, which would stop the training.
        """
        too_long = self.too_long_among()
        if self.row_limit is not None and too_long.any():
            LOG.warning(
                "%s: %d of %d rows have more tokens than sequence_len (%d) as they are, so the seed model is not asked "
                "about them: training leaves them out, or cuts them off; raise sequence_len to train them",
                *(self.where, too_long.sum(), len(too_long), self.row_limit.max_tokens),
            )
        return too_long

    def too_long_among(self, indices: Sequence[int] | None = None) -> NDArray[np.bool_]:
        """Return which of some rows training leaves out for their length as they are, without a word; None: of all."""
        limit = self.row_limit
        if limit is None:
            return np.zeros(len(self.dataset) if indices is None else len(indices), np.bool_)
        kind = self.dataset_config.get("type")
        too_long: NDArray[np.bool_] = row_lengths(self.dataset, limit, kind, self.where, indices) > limit.max_tokens
        return too_long

    def why_not_asked(self, index: int) -> LeftAlone | None:
        """Return why the seed model is asked about no answer of a row at all, or None."""
        return TOO_LONG_ROW if self.too_long[index] else None

    def _require_meant(self, left_alone: LeftAloneCounts) -> None:
        """Raise unless all answers are left alone for what they are: then the dataset is trained as it is."""
        reasons = left_alone.named()
        if not left_alone.is_meant:
            raise DatasetError(f"{self.where} holds no answer to rewrite: {reasons}")
        LOG.warning("%s holds no answer to rewrite and stays as it is: %s", self.where, reasons)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json")

    @cached_property
    def sampling(self) -> Sampling:
        """What makes different answers of the same question."""
        return Sampling(self.config.generation.seed, self.config.generation.temperature)

    @cached_property
    def answers_dir(self) -> Path:
        """Folder of the journal: all that this seed model answered with these settings, whatever dataset asked."""
        generation = self.config.generation.shaping_answers()
        generation.pop("seed", None)  # it counts where an answer is sampled, and is a part of that answer's key
        return self.root / f"answers-{fingerprint([_JOURNAL_FORMAT, self.seed_fingerprint, generation])}"

    @cached_property
    def dataset_dir(self) -> Path:
        """Folder of the distilled dataset, once none of its answers has failed."""
        config, policy = self.config, self.policy
        is_sampled = config.generation.temperature > 0 or config.max_attempts > 1
        judging = [self._settings["checks"], config.max_attempts, policy.min_attempts]
        if self.row_limit:  # which rows are too long, and which answers make them so
            judging += filter(None, [self.row_limit.max_tokens, self.row_limit.chat_template])
        content = [self.content.requests_digest, self.content.rows_digest]
        seed = config.generation.seed if is_sampled else None
        return (
            self.root / f"distilled-{fingerprint([self.answers_dir.name, *content, config.on_reject, judging, seed])}"
        )

    @property
    def finished_dir(self) -> Path | None:
        """Folder of the distilled dataset as far as there is one: without failed answers, else the newest with some."""
        if (self.dataset_dir / SUMMARY_FILE).exists():
            return self.dataset_dir
        unfinished = self.root.glob(f"{self.dataset_dir.name}{INCOMPLETE}*/{SUMMARY_FILE}")
        return max((path.parent for path in unfinished), key=lambda path: path.stat().st_mtime_ns, default=None)

    @property
    def is_done(self) -> bool:
        """Whether the distilled dataset is there, if with answers that failed."""
        return self.finished_dir is not None

    @property
    def is_finished(self) -> bool:
        """Whether the distilled dataset is there, and no answer is to be tried again."""
        return self.finished_dir == self.dataset_dir
