"""Loads the rows that Axolotl would load, and points its configuration to rewritten ones."""

from collections.abc import Iterator, Mapping
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.core.artifacts import fingerprint
from axolotl_sdft.core.errors import DatasetError, first_line
from axolotl_sdft.core.identity import file_digests

if TYPE_CHECKING:
    from datasets import Dataset

# Keys of a dataset entry that choose rows: done with once the rows have been rewritten into a folder of their own.
_CONSUMED = (
    *("path", "split", "name", "data_files", "revision", "shards", "shards_idx", "preprocess_shards"),
    *("ds_type", "trust_remote_code", "weight"),
)

OVERRIDE = "self_distillation"
"""Key under which an entry changes the top-level block of that name."""

_SHUFFLE_SEED = 42


def shuffle_seed(cfg: Any) -> int:
    """Return the seed that rows are shuffled with.

    Axolotl leaves ``seed`` unset by default, and then each rank would shuffle differently.
    """
    return _SHUFFLE_SEED if cfg.get("seed") is None else int(cfg["seed"])


def dataset_entries(cfg: Any) -> Iterator[tuple[str, Any]]:
    """Yield each entry of ``datasets``, expanded as Axolotl does, with what messages call it.

    A ``self_distillation`` block of the entry is left out: it says nothing about what the entry reads.
    """
    from axolotl.utils.data.shared import datasets_with_name_generator
    from axolotl.utils.dict import DictDefault

    for index, entry in enumerate(cfg.datasets or []):
        own = {key: value for key, value in entry.items() if key != OVERRIDE}
        for expanded in datasets_with_name_generator([DictDefault(own)]):
            yield f"datasets[{index}]", expanded


def load_rows(cfg: Any, entry: Any, where: str) -> "Dataset":
    """Return the raw rows of a dataset entry, chosen as Axolotl chooses them: split, shards and weight.

    Raises:
        DatasetError: They can't be loaded, or there are none.
    """
    from axolotl.utils.data.shared import load_dataset_with_config

    if not entry.get("path"):
        raise DatasetError(f"{where}.path is not set; name a file, a folder or a Hub id")
    local = Path(entry.path)
    if local.is_file() and local.stat().st_size == 0:
        raise DatasetError(f"{where}.path is {entry.path!r}, which has no rows: the file is empty")
    try:
        rows = load_dataset_with_config(entry, cfg.get("hf_use_auth_token") or False, streaming=False)
    except Exception as err:  # whatever the loader of that kind of file raises
        raise DatasetError(
            f"{where}.path is {entry.path!r}, which could not be loaded ({type(err).__name__}: {err}); "
            "check the path, name, split and data_files"
        ) from err
    rows = _of_split(rows, entry, where)
    seed = shuffle_seed(cfg)
    if entry.get("shards"):
        rows = rows.shuffle(seed=seed).shard(num_shards=entry.shards, index=entry.get("shards_idx") or 0)
    if entry.get("weight") is not None and entry.weight < 1.0:
        rows = rows.shuffle(seed=seed).select(range(min(len(rows), max(1, int(len(rows) * entry.weight)))))
    return rows


def _of_split(rows: Any, entry: Any, where: str) -> "Dataset":
    from datasets import DatasetDict

    if not isinstance(rows, DatasetDict):
        return rows
    split = entry.get("split") if entry.get("split") in rows else "train"
    if split not in rows:
        raise DatasetError(f"{where}.split is {entry.get('split')!r}; {entry.path!r} has the splits {', '.join(rows)}")
    return rows[split]


def rewritten_entry(entry: Any, folder: Path) -> Any:
    """Return a dataset entry that reads a folder of rows instead, with the same row format."""
    from axolotl.utils.dict import DictDefault

    kept = {key: value for key, value in entry.items() if key not in _CONSUMED and value is not None}
    return DictDefault({**kept, "path": str(folder)})


def entry_fingerprint(entry: Any) -> str:
    """Return 12 hex digits of what a dataset entry reads: its keys, and every byte where ``path`` is local.

    So do the local files that ``data_files`` names. Where a local path lies does not count.

    Raises:
        DatasetError: A file can't be read.
    """
    path = Path(str(entry.get("path")))
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    named = {file.relative_to(path).as_posix() if path.is_dir() else file.name: file for file in inside}
    is_local = any(file.is_file() for file in inside)
    named |= {file: Path(file) for file in _local_data_files(entry.get("data_files"))}
    files = {name: file for name, file in named.items() if file.is_file()}
    keys = {key: value for key, value in entry.items() if value is not None and not (is_local and key == "path")}
    try:
        return fingerprint([keys, list(zip(files, file_digests(files.values()), strict=True))])
    except OSError as err:
        raise DatasetError(f"the data of path {str(path)!r} can't be read: {first_line(err)}") from err


def _local_data_files(named: Any) -> list[str]:
    """Return the files here that ``data_files`` names: a pattern, a list, or a mapping from splits to either."""
    if isinstance(named, str):
        return sorted(glob(named, recursive=True))
    if isinstance(named, Mapping):
        named = list(named.values())
    return [file for part in named or [] for file in _local_data_files(part)]
