"""Sets the rows of ``val_set_size`` aside before anything is rewritten, so that they keep their original answers.

Axolotl splits off validation rows at the very end, after it has merged and tokenized the datasets. Rewriting comes
first, so here the same split is made on the numbers of the rows, by Axolotl's own functions: merged, shuffled and cut
in the same way, with the same seed. The rows held out are then those that Axolotl would have held out (exactly those
where ``seed`` is set and no row is dropped for its length), a validation loss compares with that of a run without the
plugin, and every rank, command and restart finds the same ones. Only the others are rewritten. Axolotl is then given
both parts as ``datasets`` and ``test_datasets``; packing, lengths and ``dataset_shard_num`` apply to each by itself.

What follows from this: the training rows, and with them the folder of the distilled dataset, depend on
``val_set_size``, on ``seed`` and the shuffling keys, and on the number of rows of all datasets. Where that is too dear,
because datasets come and go, name ``test_datasets`` instead; then each dataset depends on itself alone.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.artifacts import atomic_folder, find_or_make
from axolotl_sdft.distillation.content import rows_between
from axolotl_sdft.errors import ConfigError
from axolotl_sdft.host.datasets import shuffle_seed

if TYPE_CHECKING:
    from datasets import Dataset

_SLICE_ROWS = 1024


def is_split(cfg: Any) -> bool:
    """Whether validation rows are to be split off ``datasets``."""
    return bool(cfg.get("val_set_size")) and not cfg.get("test_datasets")


def split_rows(cfg: Any, datasets: "Sequence[Dataset]") -> "list[tuple[Dataset, Dataset]]":
    """Return for each dataset the rows to train on and the rows held out, both in their order.

    Raises:
        ConfigError: ``val_set_size`` does not go with the number of rows.
    """
    held_out = _held_out_places(cfg, [len(rows) for rows in datasets])
    parts, start = [], 0
    for rows in datasets:
        own = {place - start for place in held_out if start <= place < start + len(rows)}
        parts.append((rows.select([row for row in range(len(rows)) if row not in own]), rows.select(sorted(own))))
        start += len(rows)
    return parts


def _held_out_places(cfg: Any, sizes: list[int]) -> list[int]:
    """Return the numbers of the rows held out, counted over all datasets."""
    from axolotl.utils.data.shared import create_train_validation_split, merge_datasets
    from axolotl.utils.dict import DictDefault
    from datasets import Dataset

    named = ("curriculum_sampling", "shuffle_before_merging_datasets")
    # Shuffling is Axolotl's default, which a configuration that it has not validated yet does not hold.
    settings = {"shuffle_merged_datasets": cfg.get("shuffle_merged_datasets", True), "seed": shuffle_seed(cfg)}
    split_cfg = DictDefault({**{key: cfg.get(key) for key in named}, **settings})
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    places = [Dataset.from_dict({"place": range(end - size, end)}) for size, end in zip(sizes, ends, strict=True)]
    size = cfg["val_set_size"]
    try:
        merged = merge_datasets(places, split_cfg)
        _, held_out = create_train_validation_split(merged, split_cfg, int(size) if size > 1 else float(size))
    except (TypeError, ValueError) as err:
        raise ConfigError(
            f"val_set_size is {size!r}, which can't be split off the {sum(sizes)} rows of datasets ({err}); set a "
            "fraction such as 0.05, a smaller number of rows, or 0"
        ) from err
    return list(held_out["place"])


def without_repeats(datasets: "Sequence[Dataset]") -> "list[Dataset]":
    """Return the datasets without rows that are equal to an earlier one.

    For ``dataset_exact_deduplication``: once each of two equal rows has a new answer, Axolotl no longer sees that they
    were equal, and one of them may be trained while the other is held out.
    """
    seen: set[bytes] = set()
    kept_datasets = []
    for rows in datasets:
        kept = []
        for index, row in enumerate(_rows(rows)):
            digest = hashlib.sha256(_encoded(row)).digest()
            if digest not in seen:
                seen.add(digest)
                kept.append(index)
        kept_datasets.append(rows.select(kept))
    return kept_datasets


def rows_folder(rows: "Dataset", root: Path, name: str) -> Path:
    """Return a folder with these rows as they are, named by their content; made unless it is there."""
    digest = hashlib.sha256()
    for row in _rows(rows):
        digest.update(_encoded(row))
    target = root / f"{name}-{digest.hexdigest()[:12]}"
    root.mkdir(parents=True, exist_ok=True)

    def make() -> None:
        with atomic_folder(target) as folder:
            rows.save_to_disk(folder)

    find_or_make(target, make, target.exists)
    return target


def _rows(rows: "Dataset") -> Any:
    for start in range(0, len(rows), _SLICE_ROWS):
        yield from rows_between(rows, start, start + _SLICE_ROWS)


def _encoded(row: dict[str, Any]) -> bytes:
    return json.dumps(row, sort_keys=True, default=str).encode()
