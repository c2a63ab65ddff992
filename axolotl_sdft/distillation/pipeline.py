"""Rewrites a dataset with the seed model: generate into the journal, then build the dataset from it.

Two folders come out of it, both named by their content. ``answers-*`` holds the journal: what the seed model answered
with these generation settings, whatever dataset asked, and what the checks said of it. ``distilled-*`` holds the
dataset after the checks. So other rows or other checks generate only what was never asked before.
"""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import SelfDistillationConfig
from axolotl_sdft.core.artifacts import DEFAULT_ROOT, ensure_writable, fingerprint, refuse_long_path
from axolotl_sdft.core.errors import ArtifactError, DatasetError, SdftError
from axolotl_sdft.core.identity import model_identity
from axolotl_sdft.core.ranks import together
from axolotl_sdft.core.runtime import rank, world_size
from axolotl_sdft.distillation.checks import resolve_checks
from axolotl_sdft.distillation.checks.function_calls import function_call
from axolotl_sdft.distillation.digest import Content, read_content
from axolotl_sdft.distillation.generation.journal import Journal
from axolotl_sdft.distillation.generation.judging import Judging
from axolotl_sdft.distillation.generation.rounds import Generation
from axolotl_sdft.distillation.generation.selection import Policy
from axolotl_sdft.distillation.interfaces import RowFormat
from axolotl_sdft.distillation.output.dataset import INCOMPLETE, SUMMARY_FILE, build_dataset, read_summary
from axolotl_sdft.distillation.rows.formats import resolve_row_format
from axolotl_sdft.distillation.rows.left_alone import LeftAloneCounts
from axolotl_sdft.distillation.rows.validation import (
    refuse_tokenized,
    require_columns,
    require_text,
    require_whole_dataset,
    stored_rows,
)
from axolotl_sdft.distillation.templates import resolve_template
from axolotl_sdft.inference.interfaces import Backend
from axolotl_sdft.inference.questions import Sampling
from axolotl_sdft.plugins.registry import BACKENDS, registry

if TYPE_CHECKING:
    from datasets import Dataset

LOG = logging.getLogger(__name__)

_JOURNAL_FORMAT = 3  # answers in another form, or sampled in another way, are not taken for these


def distill_dataset(
    dataset: "Dataset",
    config: SelfDistillationConfig,
    *,
    seed_model: str | Path,
    revision: str | None = None,
    dataset_config: Mapping[str, Any] | None = None,
) -> "Dataset":
    """Return the dataset with its answers rewritten by the seed model (SDFT, arXiv 2402.13669).

    Rows are taken as they are stored: a format of the dataset (``with_format``) or a transform is left out, which is
    logged. They stay in their order; columns that hold no trained answer are untouched. Two columns are added:
    ``sdft_source`` (``distilled`` or ``original``) and ``sdft_reasons`` (for each trained answer, why it was kept
    original, or an empty text; those that were left alone come last). The result stays in a folder, from which a second
    call with the same arguments takes it. Beside the rows are ``report.html`` (acceptance and reasons, lengths, the
    distribution gap, sample answers), ``summary.json`` and a dataset card, ``README.md``; the log says where, and so
    does ``distilled.cache_files``.

    Args:
        dataset: The rows.
        config: How they are rewritten.
        seed_model: Folder or Hub id of the model that rewrites.
        revision: Revision of the seed model on the Hub.
        dataset_config: The row format, as an entry of Axolotl's ``datasets``: ``type`` and its field names. Default:
            ``{"type": "alpaca"}``. For columns ``prompt`` and ``completion``: ``{"type": {"field_instruction":
            "prompt", "field_output": "completion"}}``.

    Raises:
        DatasetError: The dataset is streamed or has several splits, a column is missing or holds something else than
            text, there is no answer to rewrite, or rewriting would undo what its rows are for, as with preferences.
        ConfigError: The seed model has no chat template.

    Example:
        >>> from datasets import load_dataset
        >>> from axolotl_sdft import SelfDistillationConfig, distill_dataset
        >>> rows = load_dataset("json", data_files="train.jsonl", split="train")
        >>> seed = "HuggingFaceTB/SmolLM2-135M-Instruct"
        >>> distilled = distill_dataset(rows, SelfDistillationConfig(), seed_model=seed)
    """
    from datasets import load_from_disk

    from axolotl_sdft.core.seed_folder import resolve_seed

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
        require_text(self.dataset.features, self.row_format, kind, self.where)
        _ = self.checks, self.template, self.backend_factory  # unknown names are refused now

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
        return resolve_checks(self.config.checks, self.template)

    @cached_property
    def template(self) -> Any:
        """The rewriting template."""
        return resolve_template(self.config.template, self.config.examples)

    @cached_property
    def backend_factory(self) -> Any:
        """What makes the backend."""
        return registry().resolve(BACKENDS, self.config.generation.backend, "self_distillation.generation.backend")

    @cached_property
    def root(self) -> Path:
        """Folder that holds the artifacts."""
        root = Path(self.config.output_dir or DEFAULT_ROOT).absolute()
        refuse_long_path(root, "self_distillation.output_dir")
        return root

    @cached_property
    def policy(self) -> Policy:
        """How often answers are asked for, and which one is taken."""
        config = self.config
        retries = config.retries if config.on_reject == "retry" else 0
        return Policy(config.candidates, config.choose, retries)

    @cached_property
    def seed_fingerprint(self) -> str:
        """Identity of the seed model as it was when first asked for."""
        return model_identity(self.seed_dir)

    @cached_property
    def content(self) -> Content:
        """What the dataset holds, in short."""
        content = read_content(self.dataset, self.row_format, self.template)
        if content.most_targets == 0:
            self._require_meant(content.left_alone)
        elif content.left_alone.answers:
            level = logging.WARNING if content.left_alone.num_trained else logging.INFO
            LOG.log(level, "%s: left alone: %s", self.where, content.left_alone.named())
        return content

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
        del generation["seed"]  # it counts where an answer is sampled, and is a part of that answer's key
        return self.root / f"answers-{fingerprint([_JOURNAL_FORMAT, self.seed_fingerprint, generation])}"

    @cached_property
    def dataset_dir(self) -> Path:
        """Folder of the distilled dataset, once none of its answers has failed."""
        config, policy = self.config, self.policy
        is_sampled = config.generation.temperature > 0 or policy.num_attempts > 1
        judging = [self._settings["checks"], policy.candidates, policy.choose, policy.retries]
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

    def run(self) -> Path:
        """Return the folder of the distilled dataset, made unless it is there.

        Under several ranks all of them call this; each generates its share, one builds the dataset. Answers that
        failed, and those that a check could not judge, are tried again by each call until they are there: the dataset
        is then made anew, in another folder.
        """
        found = self.finished_dir
        if found == self.dataset_dir:
            LOG.info("%s: using the distilled dataset %s", self.where, found)
            return found
        if found is None:
            return self._made(None)
        lacking = read_summary(found)["to_try_again"]
        LOG.info(
            "%s: %s lacks %d answers that failed and %d that could not be judged; they are tried again",
            *(self.where, found, lacking["failed"], lacking["not_judged"]),
        )
        try:
            return self._made(found)
        except SdftError as err:
            LOG.warning("%s: they could not be tried again (%s); using %s as it is", self.where, err, found)
            return found

    def _made(self, found: Path | None) -> Path:
        """Return the folder of the dataset, made anew unless ``found`` is still all that can be had."""
        ensure_writable(self.root, "self_distillation.output_dir")
        ensure_writable(self.answers_dir, "self_distillation.output_dir")
        meeting = self.root / f".{self.dataset_dir.name}.ranks"
        busy = (
            f"{self.dataset_dir} is being filled by another run; let it end, or stop it, and start again (what it made "
            "is kept), or name another self_distillation.output_dir"
        )
        backend = self.backend_factory(self.seed_dir, self.config.generation)
        with ExitStack() as stack:
            stack.callback(backend.close)
            group = stack.enter_context(together(meeting, rank(), world_size(), f"rewriting {self.where}", busy))
            backend.check()
            journal = Journal(self.answers_dir, group.run_ids)
            stack.callback(journal.close)
            writer = stack.enter_context(journal.writer(group.run_id))
            judging = Judging(self.template, self.sampling, self.checks, journal, writer)
            Generation(self, backend, journal, judging, group).run(writer)
            built = self._build(backend, journal, judging, found) if group.rank == 0 else None
            names = group.reach("built the dataset", built.name if built else "")
            return self.root / names[0]

    def _build(self, backend: Backend, journal: Journal, judging: Judging, found: Path | None) -> Path:
        """Build the dataset from the answers, all of which are there. One process at a time is here."""
        if model_identity(self.seed_dir) != self.seed_fingerprint:
            raise ArtifactError(
                f"{self.where}: the seed model in {self.seed_dir} was changed while it wrote the answers in "
                f"{self.answers_dir}, which are kept. Start again to have the model as it is now write them anew; "
                "or, if it had been loaded before the change, put the former files back and start again to use them"
            )
        if found is not None and not journal.num_new and not read_summary(found)["to_try_again"]["not_judged"]:
            LOG.warning("%s: the same answers failed again; using %s as it is", self.where, found)
            return found
        return build_dataset(self, backend, judging, found)
