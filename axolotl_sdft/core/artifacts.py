"""Folders that are written whole or not at all, named by a fingerprint of everything that shaped them."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from axolotl_sdft.core.errors import ArtifactError, ConfigError, first_line
from axolotl_sdft.core.locks import only_one

DEFAULT_ROOT = "sdft_prepared"
_UNFINISHED = ".unfinished"
_MAX_NAME_BYTES = 255
_LONGEST_MADE = 240  # bytes below the root: an unfinished folder with a file in it


def fingerprint(value: Any) -> str:
    """Return 12 hex digits that change when anything in a JSON-like value does.

    Raises:
        ConfigError: The value holds something else than texts, numbers, lists and mappings, such as a date.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    except (TypeError, ValueError) as err:  # its text might hold an address, which changes with each run
        raise ConfigError(
            f"a setting holds something else than texts, numbers, lists and mappings: {first_line(err)}. In YAML, put "
            "a date or another such value in quotes"
        ) from err
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def refuse_long_path(folder: Path, yaml_key: str) -> None:
    """Raise :class:`ArtifactError` when the file system can't hold what is made in a folder: its path is too long."""
    try:
        is_too_long = any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in folder.parts)
        os.lstat(folder / ("x" * _LONGEST_MADE))
    except OSError as err:
        is_too_long |= err.errno == errno.ENAMETOOLONG
    except ValueError as err:  # a null byte, or half a surrogate pair
        raise ArtifactError(f"{yaml_key} is {str(folder)!r}, which is not a path ({err}); name another folder") from err
    if is_too_long:
        raise ArtifactError(
            f"{yaml_key} is {str(folder)[:60]}... ({len(os.fsencode(folder))} bytes), longer than the file system "
            "allows for what is made there; name a folder with a shorter path"
        )


def ensure_writable(folder: Path, yaml_key: str) -> None:
    """Create a folder and prove that files can be written there.

    Raises:
        ArtifactError: They can't; the message names the YAML key, the folder and the cause.
    """
    refuse_long_path(folder, yaml_key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0")
    except OSError as err:
        cause = _in_the_way(folder) or err.strerror or err
        raise ArtifactError(f"{yaml_key}: can't write to {folder} ({cause}); name another folder") from err


def _in_the_way(folder: Path) -> str | None:
    """Return what stands where a folder or one above it would be, such as a link to a disk that is gone; else None."""
    for path in (folder, *folder.parents):
        if os.path.exists(path):  # unlike the methods of Path, it raises nothing where one may not look
            return None if os.path.isdir(path) else f"{path} is not a folder"
        if os.path.islink(path):
            return f"{path} is a link to {os.readlink(path)}, which is not there"
    return None


def ensure_free_space(folder: Path, num_bytes: int, yaml_key: str) -> None:
    """Raise :class:`ArtifactError` when the disk that holds a folder has less free space than needed."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise ArtifactError(
            f"{yaml_key}: {num_bytes / 1e9:.2f} GB are needed in {folder}, but {free / 1e9:.2f} GB are free; "
            "make room or name another folder"
        )


@contextmanager
def atomic_folder(target: Path, final: Callable[[], Path] | None = None) -> Iterator[Path]:
    """Give a temporary folder beside ``target`` that becomes it when the block ends, and vanishes when it raises.

    What a killed process left of the same target is removed first; a folder that a living one still fills is not.
    Where its name depends on what was written, ``final`` tells it in the end.

    Raises:
        ArtifactError: ``target`` exists already, or the disk refuses.
    """
    if os.path.lexists(target):
        raise ArtifactError(f"{target} exists already; delete it or name another folder")
    try:
        _remove_abandoned(target)
        temporary, lock = _locked_folder(target)
    except OSError as err:
        raise ArtifactError(f"{target} could not be written ({err}); nothing was left behind") from err
    try:
        # mkdtemp makes it private to the owner, but a checkpoint is shared like any other folder.
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        os.replace(temporary, final() if final else target)
    except OSError as err:
        if isinstance(err, ArtifactError):
            raise
        raise ArtifactError(f"{target} could not be written ({err}); nothing was left behind") from err
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def _locked_folder(target: Path) -> tuple[Path, int]:
    """Return a new folder beside ``target``, and the open folder whose lock tells others that this process lives."""
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_UNFINISHED, dir=target.parent))
        lock = os.open(temporary, os.O_RDONLY)
        if _try_lock(lock) is not False and temporary.exists():
            return temporary, lock
        os.close(lock)  # before it was locked, another process took it for abandoned


def _remove_abandoned(target: Path) -> None:
    for path in target.parent.iterdir():
        if not (path.name.startswith(f".{target.name}.") and path.name.endswith(_UNFINISHED) and path.is_dir()):
            continue
        try:
            lock = os.open(path, os.O_RDONLY)
        except OSError:  # its owner has just finished, or is another user who has just begun
            continue
        if _try_lock(lock):
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _try_lock(descriptor: int) -> bool | None:
    """Lock an open folder and tell whether that went; None where the system can't lock folders."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # such as on some network file systems: nothing is taken for abandoned there
        return None
    return True


def find_or_make(target: Path, make: Callable[[], None], is_ready: Callable[[], bool]) -> bool:
    """Make an artifact unless it is there; of several processes one makes it and the others wait.

    A file lock rather than a barrier: it works before torch.distributed is set up, and one waits as long as the other
    works. What is waited for is logged every minute.

    Returns:
        True if this process made it.

    Raises:
        ArtifactError: The process that is at it is on another machine and has given no sign of life for long.
    """
    if is_ready():
        return False
    with only_one(target.parent / f".{target.name}.lock", str(target)):
        if is_ready():
            return False
        make()
        return True


def package_versions(*names: str) -> dict[str, str]:
    """Return the installed versions of packages, for provenance; missing ones are left out."""
    versions = {}
    for name in ("axolotl-sdft", *names):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file that takes the place of ``path`` when the block ends: a reader sees the old or the new one.

    Raises:
        ArtifactError: The disk refuses; what was there before stays, and nothing else is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            yield Path(folder) / path.name
            os.replace(Path(folder) / path.name, path)
    except OSError as err:
        if isinstance(err, ArtifactError):
            raise
        raise ArtifactError(
            f"{path} can't be written ({err.strerror or err}); make room there, or name another folder"
        ) from err


def replace_json(path: Path, value: Any) -> None:
    """Write a value as JSON as :func:`replacing` does.

    Raises:
        ArtifactError: The disk refuses.
    """
    with replacing(path) as temporary:
        write_json(temporary, value)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        ArtifactError: The file is missing, is not JSON, or holds something else than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ArtifactError(f"{path} can't be read: its JSON is nested too deeply") from None
    except (OSError, ValueError) as err:
        raise ArtifactError(f"{path} can't be read: {err}") from err
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} can't be read: it holds a {type(content).__name__} instead of an object")
    return content


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
