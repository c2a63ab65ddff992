"""Rewrites a dataset with the seed model: generate into the journal, then build the dataset from it."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import SelfDistillationConfig
from axolotl_sdft.core.artifacts import ensure_writable
from axolotl_sdft.core.errors import ArtifactError, SdftError
from axolotl_sdft.core.identity import model_identity
from axolotl_sdft.core.ranks import together
from axolotl_sdft.core.runtime import rank, world_size
from axolotl_sdft.core.shared_folders import refuse_separate_folders
from axolotl_sdft.core.terminal import tells_what_is_kept
from axolotl_sdft.distillation.generation.journal import Journal
from axolotl_sdft.distillation.generation.judging import Judging
from axolotl_sdft.distillation.generation.rounds import Generation
from axolotl_sdft.distillation.generation.selection import SOURCE_COLUMN
from axolotl_sdft.distillation.output.dataset import build_dataset, read_summary, refuse_damaged_rows
from axolotl_sdft.distillation.rows.validation import require_whole_dataset, shown_features
from axolotl_sdft.distillation.spec import DistillationSpec
from axolotl_sdft.inference.interfaces import Backend

if TYPE_CHECKING:
    from datasets import Dataset

LOG = logging.getLogger(__name__)

REJECTED_COLUMN = "sdft_rejected"
_SEPARATE = (
    "name one there, or start in a folder there; or run axolotl self-distill on one machine and copy this folder to "
    "each"
)


def distill_dataset(
    dataset: "Dataset",
    config: SelfDistillationConfig,
    *,
    seed_model: str | Path,
    revision: str | None = None,
    dataset_config: Mapping[str, Any] | None = None,
    rejected_attempts: bool = False,
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
        dataset_config: The row format, as an entry of Axolotl's ``datasets``: ``type`` and its field names. Unset, the
            columns tell it, and the log says which was taken: ``messages`` or ``conversations``; ``prompt`` and
            ``completion``, both text or both messages, as in TRL; ``instruction`` and ``output``; ``question`` and
            ``answer``.
        rejected_attempts: Add a third column, ``sdft_rejected``: the attempts that were rejected, each with ``answer``
            (which trained answer of the row, from 0), ``attempt`` (from 0), ``text``, ``check`` and ``reason``. It is
            held in memory, and not in the folder.

    Raises:
        DatasetError: The dataset is streamed or has several splits, its columns show no format or several, one is
            missing or holds something else than text, there is no answer to rewrite, or rewriting would undo what its
            rows are for, as with preferences.
        ConfigError: The seed model has no chat template.

    Example:
        >>> from datasets import load_dataset
        >>> from axolotl_sdft import SelfDistillationConfig, distill_dataset
        >>> rows = load_dataset("json", data_files="train.jsonl", split="train")
        >>> seed = "HuggingFaceTB/SmolLM2-135M-Instruct"
        >>> distilled = distill_dataset(rows, SelfDistillationConfig(), seed_model=seed)
    """
    from datasets import load_from_disk

    from axolotl_sdft.core.model_folder import seed_dir_of_call
    from axolotl_sdft.distillation.rows.recognition import recognised_config

    require_whole_dataset(dataset, "dataset")
    if config.general_rows:
        LOG.warning(
            "general_rows is %d, but distill_dataset returns the rows of its dataset alone; call distill_general_rows "
            "for those",
            config.general_rows,
        )
    entry = dataset_config or recognised_config(shown_features(dataset))
    seed_dir = seed_dir_of_call(seed_model, revision)
    spec = DistillationSpec(dataset, config, seed_dir, entry, str(seed_model))
    distilled = load_from_disk(str(run_distillation(spec)))
    return _with_rejected(distilled, spec) if rejected_attempts else distilled


def _with_rejected(distilled: "Dataset", spec: DistillationSpec) -> "Dataset":
    """Return the rows with a column of the attempts that were rejected."""
    from datasets import Dataset, Features, Value, concatenate_datasets

    from axolotl_sdft.distillation.output.corrections import rejected_attempts

    kinds = {"answer": "int32", "attempt": "int32", "text": "string", "check": "string", "reason": "string"}
    features = Features({REJECTED_COLUMN: [{name: Value(kind) for name, kind in kinds.items()}]})
    column = Dataset.from_dict({REJECTED_COLUMN: list(rejected_attempts(spec))}, features=features)
    return concatenate_datasets([distilled, column], axis=1)


def refuse_separate_output(root: Path, *, is_finished: bool) -> None:
    """Raise :class:`ArtifactError` on all ranks where they don't share the output folder, and a dataset is to be made.

    All ranks must call this at the same point of their work.
    """
    refuse_separate_folders(root, "self_distillation.output_dir", _SEPARATE, is_finished=is_finished)


def refuse_damaged_dataset(spec: DistillationSpec) -> None:
    """Raise :class:`ArtifactError` where the distilled dataset is there, but not all of it."""
    found = spec.finished_dir
    if found is None:
        return
    way_out = f"put its files back; or delete the folder and start again: the answers are kept in {spec.answers_dir}"
    try:
        summary = read_summary(found)
    except ArtifactError as err:
        raise ArtifactError(f"{err}; {way_out}") from err
    refuse_damaged_rows(found, summary["rows"] - summary["rows_dropped"], way_out)


def run_distillation(spec: DistillationSpec) -> Path:
    """Return the folder of the distilled dataset, made unless it is there.

    Under several ranks all of them call this; each generates its share, one builds the dataset. Answers that
    failed, and those that a check could not judge, are tried again by each call until they are there: the dataset
    is then made anew, in another folder.

    Raises:
        ArtifactError: It is there, but a file of it is missing or damaged.
    """
    found = spec.finished_dir
    refuse_separate_output(spec.root, is_finished=spec.is_finished)
    refuse_damaged_dataset(spec)
    if found == spec.dataset_dir:
        LOG.info("%s: using the distilled dataset %s", spec.where, found)
        return found
    if found is None:
        return _made(spec)
    lacking = read_summary(found)["to_try_again"]
    LOG.info(
        "%s: %s lacks %d answers that failed and %d that could not be judged; they are tried again",
        *(spec.where, found, lacking["failed"], lacking["not_judged"]),
    )
    try:
        return _made(spec)
    except SdftError as err:
        LOG.warning("%s: they could not be tried again (%s); using %s as it is", spec.where, err, found)
        return found


def _made(spec: DistillationSpec) -> Path:
    """Return the folder of the dataset, made anew unless one that lacks answers is still all that can be had."""
    if SOURCE_COLUMN in spec.dataset.column_names and rank() == 0:
        LOG.warning(
            "%s: its answers were rewritten before (column %s), and now serve as the references of another rewriting, "
            "in which errors add up; rewrite the original rows instead",
            *(spec.where, SOURCE_COLUMN),
        )
    ensure_writable(spec.root, "self_distillation.output_dir")
    ensure_writable(spec.answers_dir, "self_distillation.output_dir")
    meeting = spec.root / f".{spec.dataset_dir.name}.ranks"
    busy = (
        f"{spec.dataset_dir} is being filled by another run; let it end, or stop it, and start again (what it made "
        "is kept), or name another self_distillation.output_dir"
    )
    backend = spec.backend_factory(spec.seed_dir, spec.config.generation)
    with ExitStack() as stack:
        stack.enter_context(tells_what_is_kept(lambda: _kept(spec), LOG))
        stack.callback(backend.close)
        group = stack.enter_context(together(meeting, rank(), world_size(), f"rewriting {spec.where}", busy))
        spec.check_backend(backend)
        journal = Journal(spec.answers_dir, group.run_ids)
        stack.callback(journal.close)
        writer = stack.enter_context(journal.writer(group.run_id))
        judging = Judging.of(spec, journal, writer)
        Generation(spec, backend, journal, judging, group).run(writer)
        built = _build(spec, backend, journal, judging) if group.rank == 0 else None
        names = group.reach("built the dataset", built.name if built else "")
        return spec.root / names[0]


def _kept(spec: DistillationSpec) -> str:
    return (
        f"all answers that are there are kept in {spec.answers_dir}. To go on, start the same command again: it asks "
        "for the first answer that is not there yet"
    )


def _build(spec: DistillationSpec, backend: Backend, journal: Journal, judging: Judging) -> Path:
    """Build the dataset from the answers, all of which are there. One process at a time is here."""
    found = spec.finished_dir  # looked at again: another run may have ended just before this one got the lock
    if found == spec.dataset_dir:
        LOG.info("%s: using the distilled dataset %s, which another run has just made", spec.where, found)
        return found
    if model_identity(spec.seed_dir) != spec.seed_fingerprint:
        raise ArtifactError(
            f"{spec.where}: the seed model in {spec.seed_dir} was changed while it wrote the answers in "
            f"{spec.answers_dir}, which are kept. Start again to have the model as it is now write them anew; "
            "or, if it had been loaded before the change, put the previous files back and start again to use them"
        )
    if found is not None and not journal.num_new and not read_summary(found)["to_try_again"]["not_judged"]:
        LOG.warning("%s: the same answers failed again; using %s as it is", spec.where, found)
        return found
    return build_dataset(spec, backend, judging, found)
