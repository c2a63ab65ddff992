"""Loads the rows that Axolotl would load, with what single datasets change about the ``self_distillation`` block.

An entry of ``datasets`` may hold a block of its own, which is laid over the top-level one: what it names counts, the
rest stays, also inside ``generation``; where it names another backend, what that one doesn't have is left out.
Axolotl's schema knows no such key in an entry and drops it without a word. So ``register`` takes the blocks out before
Axolotl validates, and keeps them under a key that the plugin declares; every command, rank and Ray worker finds them
there.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from axolotl_sdft.config import SelfDistillationConfig, overridden
from axolotl_sdft.core.artifacts import fingerprint
from axolotl_sdft.core.errors import ConfigError, DatasetError, Explain, SdftError, first_line, keyed
from axolotl_sdft.core.identity import file_digests, local_data_files
from axolotl_sdft.integrations.axolotl.blocks import fault_line, plain

if TYPE_CHECKING:
    from datasets import Dataset

LOG = logging.getLogger(__name__)

# Keys of a dataset entry that choose rows: done with once the rows have been rewritten into a folder of their own.
_CONSUMED = (
    *("path", "split", "name", "data_files", "revision", "shards", "shards_idx", "preprocess_shards"),
    *("ds_type", "trust_remote_code", "weight"),
)

# Names in a folder of rows: caches that the datasets library writes there, locks, and what is said of the rows.
_BESIDE_ROWS = ("cache-*.arrow", "*.lock", "LICENSE", "LICENSE.md", "NOTICE", "NOTICE.md")

OVERRIDE = "self_distillation"
"""Key under which an entry changes the top-level block of that name."""

_SHUFFLE_SEED = 42


def shuffle_seed(cfg: Any) -> int:
    """Return the random seed that rows are shuffled with.

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
        rows = _shuffled(rows, seed).shard(num_shards=entry.shards, index=entry.get("shards_idx") or 0)
    if _has_share(entry):
        rows = _shuffled(rows, seed).select(range(min(len(rows), max(1, int(len(rows) * entry.weight)))))
    return rows


def is_drawn(entry: Any) -> bool:
    """Whether the random seed chooses which rows of an entry are read."""
    return bool(entry.get("shards")) or _has_share(entry)


def _has_share(entry: Any) -> bool:
    return entry.get("weight") is not None and bool(entry.weight < 1.0)


def _shuffled(rows: "Dataset", seed: int) -> "Dataset":
    """Return rows in another order, which is kept in memory: datasets would write it into the folder of the rows."""
    return rows.shuffle(seed=seed, keep_in_memory=True)


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


def keep_caches_out(entries: Iterable[Any]) -> None:
    """Let Axolotl's tokenizing leave its caches in temporary files where a folder of rewritten rows can only be read.

    The datasets library puts a cache beside the rows, and fails where it can't: somebody else may own them.
    """
    import datasets

    shut = [path for entry in entries if (path := str(entry.get("path"))) and not _may_hold_caches(Path(path))]
    if shut and datasets.is_caching_enabled():
        LOG.info("%s can only be read: what Axolotl makes of rows is kept in temporary files", shut[0])
        datasets.disable_caching()


def _may_hold_caches(path: Path) -> bool:
    return not (path / "dataset_info.json").is_file() or os.access(path, os.W_OK)


def entry_fingerprint(entry: Any) -> str:
    """Return 12 hex digits of what a dataset entry reads: its keys, and every byte where ``path`` is local.

    So do the local files that ``data_files`` names. Where a local path lies does not count, nor what lies in it beside
    the rows, such as caches and hidden files.

    Raises:
        DatasetError: A file can't be read.
    """
    path = Path(str(entry.get("path")))
    inside = sorted(_files_of_rows(path)) if path.is_dir() else [path]
    named = {file.relative_to(path).as_posix() if path.is_dir() else file.name: file for file in inside}
    is_local = any(file.is_file() for file in inside)
    named |= {file: Path(file) for file in local_data_files(entry.get("data_files"))}
    files = {name: file for name, file in named.items() if file.is_file()}
    keys = {key: value for key, value in entry.items() if value is not None and not (is_local and key == "path")}
    try:
        return fingerprint([keys, list(zip(files, file_digests(files.values()), strict=True))])
    except OSError as err:
        raise DatasetError(f"the data of path {str(path)!r} can't be read: {first_line(err)}") from err


def _files_of_rows(folder: Path) -> Iterator[Path]:
    """Yield what a folder of rows holds, but for what comes and goes while the rows stay, and what no loader reads."""
    for path in folder.rglob("*"):
        *folders, name = path.relative_to(folder).parts
        is_hidden = name.startswith(".") or any(part.startswith((".", "__")) for part in folders)
        if not (is_hidden or any(fnmatchcase(name, pattern) for pattern in _BESIDE_ROWS) or _is_plain_card(path)):
            yield path


def _is_plain_card(path: Path) -> bool:
    """Whether a file is a dataset card without a header: with one, it may say which files are read."""
    if path.name != "README.md" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(3) != b"---"


OVERRIDES_KEY = "sdft_datasets"
"""Where the plugin keeps the blocks: one for each entry of ``datasets``, empty where it has none."""


class DatasetConfig(SelfDistillationConfig):
    """How one dataset is rewritten: the top-level block with what the dataset's own block changes."""

    enabled: bool = True
    """``false`` leaves this dataset as it is."""

    prompt_field: str | None = None
    """For ``type: completion``: the column that holds the beginning of each text. What follows it is rewritten."""

    def settings(self) -> SelfDistillationConfig:
        """Return the settings that a dataset shares with the top-level block."""
        own = set(type(self).model_fields) - set(SelfDistillationConfig.model_fields)
        return SelfDistillationConfig.model_validate(self.model_dump(exclude=own, exclude_unset=True))


def check_overrides(cfg: Mapping[str, Any]) -> None:
    """Refuse blocks of single datasets that can't work, all at once. The top-level block is right already.

    Raises:
        ConfigError: One line per fault, each with a key such as ``datasets[0].self_distillation.template``.
    """
    faults = [fault for index in range(len(_overrides(cfg))) for fault in _merged(cfg, index)[1]]
    faults += [
        f"test_datasets[{index}].{OVERRIDE} is set, but test sets are never rewritten; remove it"
        for index, entry in enumerate(_entries(cfg, "test_datasets"))
        if OVERRIDE in entry
    ]
    if faults:
        raise ConfigError("\n".join(faults))


def take_out_overrides(cfg: Any) -> None:
    """Move the blocks out of the entries of ``datasets`` to the plugin's own key. Can be called again."""
    if cfg.get(OVERRIDES_KEY) is not None:
        return
    overrides = _overrides(cfg)
    if not any(OVERRIDE in entry for entry in _entries(cfg)):
        return
    for entry in _entries(cfg):
        entry.pop(OVERRIDE, None)
    cfg[OVERRIDES_KEY] = overrides


def dataset_config(cfg: Mapping[str, Any], index: int) -> DatasetConfig:
    """Return how an entry of ``datasets`` is rewritten.

    Raises:
        ConfigError: Its block is wrong.
    """
    merged, faults = _merged(cfg, index)
    if merged is None:
        raise ConfigError("\n".join(faults))
    return merged


def own_key(cfg: Mapping[str, Any], index: int) -> Explain:
    """Let errors about a key of ``self_distillation`` name the dataset's own block where that has set the key.

    Returns:
        What :func:`error_context` takes.
    """

    def prefix(err: SdftError) -> str:
        found = re.match(rf"{OVERRIDE}\.(\w+)", str(err))
        return "" if found is None or found[1] not in _overrides(cfg)[index] else f"datasets[{index}]."

    return keyed(prefix)


def _merged(cfg: Mapping[str, Any], index: int) -> tuple[DatasetConfig | None, list[str]]:
    """Return a dataset's settings, or None and what is wrong with its block."""
    where, own, common = f"datasets[{index}].{OVERRIDE}", _overrides(cfg)[index], cfg.get(OVERRIDE)
    if own and common is None:
        return None, [f"{where} is set, but there is no top-level block; an empty one will do: {OVERRIDE}: {{}}"]
    if not isinstance(own, Mapping):
        return None, [f"{where} is {own!r}; write its keys under it, such as enabled: false"]
    if "general_rows" in own:
        return None, [f"{where}.general_rows is set, but these rows belong to no dataset; set {OVERRIDE}.general_rows"]
    base = plain(common or {})
    merged = {**base, **own}
    if isinstance(base.get("generation"), Mapping) and isinstance(own.get("generation"), Mapping):
        merged["generation"] = overridden(base["generation"], own["generation"])
    try:
        return DatasetConfig.model_validate(merged), []
    except ValidationError as err:
        return None, [fault_line(where, error) for error in err.errors()]


def _overrides(cfg: Mapping[str, Any]) -> list[Any]:
    kept = cfg.get(OVERRIDES_KEY)
    if kept is not None and not isinstance(kept, list):
        raise ConfigError(
            f"{OVERRIDES_KEY} is {kept!r}, but the plugin sets this key itself; remove it, and write a block "
            f"{OVERRIDE} below each entry of datasets that is to be rewritten in another way"
        )
    own = [entry.get(OVERRIDE) for entry in _entries(cfg)]
    if kept is not None:
        own = [*kept, *own[len(kept) :]]
    return [{} if block is None else plain(block) for block in own]


def _entries(cfg: Mapping[str, Any], key: str = "datasets") -> list[Any]:
    entries = cfg.get(key)
    return [entry if isinstance(entry, Mapping) else {} for entry in entries] if isinstance(entries, list) else []
