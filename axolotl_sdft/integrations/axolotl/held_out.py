"""Sets the rows of ``val_set_size`` aside before anything is rewritten, so that they keep their original answers.

Axolotl splits off validation rows at the very end, after it has merged and tokenized the datasets. Rewriting comes
first, so here the same split is made on the numbers of the rows, by Axolotl's own functions: merged, shuffled and cut
in the same way, with the same random seed, which is set where the configuration has none. The rows held out are then
those that Axolotl would have held out (exactly those where no row is dropped for its length), a validation loss
compares with that of a run without the plugin, and every rank, command and restart finds the same ones. Only the others
are rewritten. Axolotl is then given both parts as ``datasets`` and ``test_datasets``; packing, lengths and
``dataset_shard_num`` apply to each by itself.

What follows from this: the training rows, and with them the folder of the distilled dataset, depend on
``val_set_size``, on ``seed`` and the shuffling keys, and on the number of rows of all datasets. Where that is too dear,
because datasets come and go, name ``test_datasets`` instead; then each dataset depends on itself alone.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.core.artifacts import DEFAULT_ROOT, atomic_folder, find_or_make
from axolotl_sdft.core.errors import ConfigError, SdftError
from axolotl_sdft.distillation.digest import all_rows, encoded
from axolotl_sdft.distillation.output.dataset import refuse_damaged_rows
from axolotl_sdft.distillation.rows.chat import ChatRows
from axolotl_sdft.distillation.rows.formats import resolve_row_format
from axolotl_sdft.distillation.rows.validation import stored_rows
from axolotl_sdft.integrations.axolotl.calibration_text import plain_column
from axolotl_sdft.integrations.axolotl.datasets import dataset_entries, load_rows, shuffle_seed

if TYPE_CHECKING:
    from datasets import Dataset

LOG = logging.getLogger(__name__)

_CHAT_KEYS = (
    *("chat_template", "chat_template_jinja", "drop_system_message", "split_thinking"),
    *("roles_to_train", "train_on_eos", "train_on_eot"),
)
"""Keys of an entry that decide how a conversation becomes tokens and labels."""


def is_split(cfg: Any) -> bool:
    """Whether validation rows are to be split off ``datasets``."""
    return bool(float(cfg.get("val_set_size") or 0)) and not cfg.get("test_datasets")


def set_missing_seed(cfg: Any) -> bool:
    """Let Axolotl split off the rows that are told here, also where ``seed`` is unset; tell whether it had to be set.

    Without one Axolotl shuffles at random, so that nobody could say afterwards which rows were never trained on. It
    splits rows that it finds prepared in the order in which they lie there, so those shuffled at random stay aside.
    """
    from axolotl.common.const import DEFAULT_DATASET_PREPARED_PATH

    if not is_split(cfg) or cfg.get("seed") is not None:
        return False
    cfg["seed"] = shuffle_seed(cfg)
    if cfg.get("self_distillation") is None:  # else both parts lie apart before Axolotl prepares them
        prepared = cfg.get("dataset_prepared_path") or DEFAULT_DATASET_PREPARED_PATH
        cfg["dataset_prepared_path"] = str(Path(prepared) / f"seed-{cfg['seed']}")
    return True


@dataclass(frozen=True)
class Parts:
    """The rows of a dataset entry, as far as they take part in training."""

    training: "Dataset"

    held_out: "Dataset | None" = None
    """Those of the validation set; None where none is split off."""

    num_repeats: int = 0
    """Rows that train what another row trains, and are left out."""

    @property
    def is_emptied(self) -> bool:
        """Whether nothing is left to train, although there were rows."""
        return not len(self.training) and bool(self.num_repeats or self.held_out)


def parts_of(cfg: Any, sources: "Sequence[tuple[str, Any, Dataset]]") -> list[Parts]:
    """Return the parts of each dataset, given by what messages call it, its entry and its rows.

    With ``dataset_exact_deduplication`` one of several rows that train the same is left, in whichever dataset it
    stands; without a validation set it is the first.

    Raises:
        ConfigError: ``val_set_size`` does not go with the number of rows.
    """
    datasets = [rows for *_, rows in sources]
    digests = None
    if cfg.get("dataset_exact_deduplication"):
        digests = [_trained_digests(rows, entry, where) for where, entry, rows in sources]
    if is_split(cfg):
        split = split_rows(cfg, datasets, digests)
    else:
        split = [(rows, None) for rows in (datasets if digests is None else without_repeats(datasets, digests))]
    parts = [
        Parts(training, held_out, len(rows) - len(training) - len(held_out or ()))
        for rows, (training, held_out) in zip(datasets, split, strict=True)
    ]
    for (where, _, rows), part in zip(sources, parts, strict=True):
        if part.num_repeats:
            LOG.warning(
                "dataset_exact_deduplication: %d of %d rows of %s train what another row trains, and are left out%s",
                *(part.num_repeats, len(rows), where),
                "; nothing of it is left to train, and training goes on with the other datasets"
                if part.is_emptied
                else "",
            )
    return parts


def split_off(cfg: Any) -> "Iterator[tuple[str, Any, Dataset]]":
    """Yield what ``val_set_size`` splits off: for each dataset what messages call it, its entry and its rows.

    Raises:
        DatasetError: A dataset can't be loaded.
        ConfigError: ``val_set_size`` does not go with the number of rows.
    """
    sources = [(where, entry, load_rows(cfg, entry, where)) for where, entry in dataset_entries(cfg)]
    for (where, entry, _), part in zip(sources, parts_of(cfg, sources) if sources else [], strict=True):
        if part.held_out:
            yield where, entry, part.held_out


def split_rows(
    cfg: Any, datasets: "Sequence[Dataset]", digests: Sequence[Sequence[bytes]] | None = None
) -> "list[tuple[Dataset, Dataset]]":
    """Return for each dataset the rows to train on and the rows held out, both in their order.

    Of rows with one digest the first is left in the order in which Axolotl has them when it compares.

    Raises:
        ConfigError: ``val_set_size`` does not go with the number of rows.
    """
    flat = None if digests is None else [digest for each in digests for digest in each]
    in_training, held_out = (set(places) for places in _places(cfg, [len(rows) for rows in datasets], flat))
    parts, start = [], 0
    for rows in datasets:
        places = range(start, start + len(rows))
        chosen = ([place - start for place in places if place in part] for part in (in_training, held_out))
        training_rows, held_out_rows = (rows.select(each) for each in chosen)
        parts.append((training_rows, held_out_rows))
        start += len(rows)
    return parts


def _places(cfg: Any, sizes: list[int], digests: list[bytes] | None) -> tuple[list[int], list[int]]:
    """Return the numbers of the rows to train on and of those held out, counted over all datasets."""
    from axolotl.utils.data.shared import create_train_validation_split, merge_datasets
    from axolotl.utils.dict import DictDefault
    from datasets import Dataset

    named = ("curriculum_sampling", "shuffle_before_merging_datasets")
    # Shuffling is Axolotl's default, which a configuration that it has not validated yet does not hold.
    settings = {"shuffle_merged_datasets": cfg.get("shuffle_merged_datasets", True), "seed": shuffle_seed(cfg)}
    split_cfg = DictDefault({**{key: cfg.get(key) for key in named}, **settings})
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    places = [Dataset.from_dict({"place": range(end - size, end)}) for size, end in zip(sizes, ends, strict=True)]
    size = float(cfg["val_set_size"])
    num_rows = sum(sizes)
    try:
        merged = merge_datasets(places, split_cfg)
        if digests is not None:
            merged = merged.select(_firsts(digests[place] for place in merged["place"]))
            num_rows = len(merged)
        training, held_out = create_train_validation_split(merged, split_cfg, int(size) if size > 1 else size)
    except (TypeError, ValueError) as err:
        raise ConfigError(
            f"val_set_size is {size:g}, which can't be split off the {num_rows} rows of datasets ({err}); set a "
            "fraction such as 0.05, a smaller number of rows, or 0"
        ) from err
    return list(training["place"]), list(held_out["place"])


def without_repeats(datasets: "Sequence[Dataset]", digests: Sequence[Sequence[bytes]]) -> "list[Dataset]":
    """Return the datasets without rows that have the digest of an earlier one.

    For ``dataset_exact_deduplication``: once each of two equal rows has a new answer, Axolotl no longer sees that they
    were equal, and one of them may be trained while the other is held out.
    """
    firsts = set(_firsts(digest for each in digests for digest in each))
    kept, start = [], 0
    for rows in datasets:
        kept.append(rows.select([row for row in range(len(rows)) if start + row in firsts]))
        start += len(rows)
    return kept


def _firsts(digests: Iterable[bytes]) -> list[int]:
    """Return where each digest stands for the first time."""
    seen: set[bytes] = set()
    return [place for place, digest in enumerate(digests) if not (digest in seen or seen.add(digest))]  # type: ignore[func-returns-value]


def _trained_digests(rows: "Dataset", entry: Any, where: str) -> list[bytes]:
    """Return a digest of what is trained of each row: what the columns say that its type reads.

    Axolotl compares tokens and labels. Rows in the same words but of other types make other tokens, so that they count
    as equal only where their texts are equal with all that the types put around them.
    """
    kind, trained = _reader(entry, where)
    return [hashlib.sha256(encoded([kind, trained(row)])).digest() for row in all_rows(stored_rows(rows, where))]


def _reader(entry: Any, where: str) -> tuple[Any, Callable[[dict[str, Any]], Any]]:
    """Return what rows of an entry are compared as, and what reads that from a row."""
    column = plain_column(entry)
    if column is not None:
        return "text", lambda row: row.get(column)
    try:
        row_format = resolve_row_format(entry, where)
    except SdftError:  # a type that is not rewritten: of its columns any may be trained
        return str(entry.get("type")), lambda row: row
    if isinstance(row_format, ChatRows):
        return ["chat", {key: entry.get(key) for key in _CHAT_KEYS}], row_format.trained
    trained = getattr(row_format, "trained", None)
    return type(row_format).__name__, trained or (lambda row: row)


def rows_folder(rows: "Dataset", root: Path, name: str) -> Path:
    """Return a folder with these rows as they are, named by their content; made unless it is there.

    Where ``root`` can only be read, such as rewritten rows of somebody else, it is made where such folders are by
    default.

    Raises:
        ArtifactError: It is there, but a file of it is missing or damaged.
    """
    target = root / rows_name(rows, name)
    if not target.exists() and root.is_dir() and not os.access(root, os.W_OK):
        target = Path(DEFAULT_ROOT).absolute() / target.name
    target.parent.mkdir(parents=True, exist_ok=True)

    def make() -> None:
        with atomic_folder(target) as folder:
            rows.save_to_disk(folder)

    if not find_or_make(target, make, target.exists):
        refuse_damaged_rows(target, len(rows), "delete the folder and start again, which makes it anew")
    return target


def rows_name(rows: "Dataset", name: str) -> str:
    """Return what the folder of rows is called, made of a name and their content."""
    digest = hashlib.sha256()
    for row in all_rows(stored_rows(rows, name)):
        digest.update(encoded(row))
    return f"{name}-{digest.hexdigest()[:12]}"
