"""The identity of a model: a digest of every byte that shapes what it says, wherever its folder lies.

Whole files are hashed, several at a time, and large ones are remembered in a cache file of the user's, so that asking
again costs milliseconds. The cache is a convenience: without it, or with a damaged one, the digests are the same.
"""

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from typing import Any

from axolotl_sdft.core.errors import CheckpointError, first_line
from axolotl_sdft.core.model_folder import ADAPTER_CONFIG, read_json_file, shaping_files

_FORMAT = 1
"""Counts up when other files, or other parts of them, make the identity."""

_CHUNK_BYTES = 2**18
_REMEMBERED_BYTES = 2**20  # smaller files are hashed faster than they are looked up
_MAX_REMEMBERED = 10_000
_MAX_THREADS = 16
# A file that was written so recently may be written again without another date: such a digest is not remembered.
_SETTLED_NS = 2 * 10**9
_SHA256 = re.compile(r"[0-9a-f]{64}")


def model_identity(folder: Path) -> str:
    """Return 64 hex digits that are equal for two folders when, and only when, the same model is in them.

    Every byte counts of weights, settings (``config.json``, ``generation_config.json``), tokenizer, chat templates,
    adapter and custom code. Model card, licence, reports and the state of a training do not. Nor does the place of an
    adapter's base model, so an adapter's identity says nothing of its base: join it with the base's own.

    Raises:
        CheckpointError: The folder is missing, a file can't be read, or one lies outside the folder.
    """
    files = shaping_files(folder)
    try:
        digests = dict(zip(files, file_digests(files), strict=True))
    except OSError as err:
        raise CheckpointError(f"the model in {folder} can't be read: {first_line(err)}") from err
    if folder / ADAPTER_CONFIG in digests:
        digests[folder / ADAPTER_CONFIG] = _adapter_settings(folder / ADAPTER_CONFIG)
    content = [[path.relative_to(folder).as_posix(), digest] for path, digest in digests.items()]
    return hashlib.sha256(json.dumps([_FORMAT, content]).encode()).hexdigest()


def file_digests(paths: Iterable[Path]) -> list[str]:
    """Return the sha256 of each file's content, in 64 hex digits.

    A file of the Hub's cache is not read when its name there is its sha256 already.

    Raises:
        OSError: A file can't be read.
    """
    cache = _DigestCache()
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as threads:
        digests = list(threads.map(cache.digest, paths))
    cache.write()
    return digests


def local_data_files(named: Any) -> list[str]:
    """Return the files here that ``data_files`` names: a pattern, a list, or a mapping from splits to either."""
    if isinstance(named, str):
        return sorted(glob(named, recursive=True))
    if isinstance(named, Mapping):
        named = list(named.values())
    return [file for part in named or [] for file in local_data_files(part)]


def _adapter_settings(path: Path) -> str:
    settings = read_json_file(path)
    if isinstance(settings, dict):
        settings.pop("base_model_name_or_path", None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


class _DigestCache:
    """Digests of large files by path, size, dates and inode. Threads may share it."""

    def __init__(self) -> None:
        self._path = _cache_path()
        self._known = _read(self._path)
        self._new: dict[str, list[int | str]] = {}

    def digest(self, path: Path) -> str:
        """Return the sha256 of a file, from the cache where it holds the file as it is now."""
        real = path.resolve()
        if path.is_symlink() and (named := _sha256_of_blob(path, real)):
            return named
        before = _state(real)
        if self._known.get(str(real), [])[1:] == before:
            return str(self._known[str(real)][0])
        digest = _sha256(real)
        self._remember(real, before, digest)
        return digest

    def _remember(self, path: Path, before: list[int], digest: str) -> None:
        size, *dates, _ = before
        is_settled = time.time_ns() - max(dates) > _SETTLED_NS
        if size >= _REMEMBERED_BYTES and is_settled and _state(path) == before:
            self._new[str(path)] = [digest, *before]

    def write(self) -> None:
        """Add what is new to the cache file, which is replaced whole; where that fails, nothing is remembered."""
        if not self._new or self._path is None:
            return
        entries = _read(self._path)  # another process may have written since
        merged = {path: entry for path, entry in entries.items() if path not in self._new} | self._new
        kept = dict(list(merged.items())[-_MAX_REMEMBERED:])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".writing-", dir=self._path.parent) as folder:
                temporary = Path(folder) / self._path.name
                temporary.write_text(json.dumps({"format": _FORMAT, "files": kept}), encoding="utf-8")
                os.replace(temporary, self._path)
        except (OSError, ValueError):  # a full or read-only disk; a path that is not Unicode
            return


def _cache_path() -> Path | None:
    """Return the cache file in the user's cache folder; None where the user has no home."""
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(root) / "axolotl-sdft" / "file_digests.json"


def _read(path: Path | None) -> dict[str, list[int | str]]:
    """Return the entries of a cache file; what is damaged in it is left out."""
    if path is None:
        return {}
    try:
        files = json.loads(path.read_bytes())["files"]
        return {name: entry for name, entry in files.items() if _is_entry(entry)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, list) or len(entry) != 5:
        return False
    digest, *state = entry
    is_digest = isinstance(digest, str) and _SHA256.fullmatch(digest) is not None
    return is_digest and all(isinstance(number, int) for number in state)


def _state(path: Path) -> list[int]:
    """Return what changes when a file does: size, both dates, inode. The second date can't be set back by a copy."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _sha256_of_blob(path: Path, real: Path) -> str | None:
    """Return the sha256 that names a large file in the Hub's cache: ``snapshots/REVISION/name`` links to it."""
    snapshot = path.absolute().parent
    while snapshot.parent.name != "snapshots":
        if snapshot == snapshot.parent:
            return None
        snapshot = snapshot.parent
    is_blob = real.parent == (snapshot.parent.parent / "blobs").resolve()
    return real.name if is_blob and _SHA256.fullmatch(real.name) else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
