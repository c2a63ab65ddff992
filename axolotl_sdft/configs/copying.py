"""Copies a configuration that ships with the package, with the small files that it names, to where it is to run."""

import filecmp
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from axolotl_sdft.configs.catalogue import FOLDER, SharedConfig, configs_dir
from axolotl_sdft.core.errors import ArtifactError


def copy_config(config: SharedConfig, destination: Path, force: bool = False) -> list[Path]:
    """Copy a configuration, and the data and scripts of the package that it names; return the copies, the file first.

    The paths in the copy are relative to its own folder, where it is to run. Nothing is written where one of the files
    is there already with other content.

    Args:
        config: What to copy.
        destination: The new file, or a folder for it.
        force: Overwrite what is there.

    Raises:
        ArtifactError: A file is there already, or can't be written.
    """
    target = destination / config.path.name if destination.is_dir() else destination
    text = config.text()
    named = dict(_named_files(text))
    beside = {target.parent / inside: source for inside, source in named.items()}
    if target.exists() and not force:
        raise ArtifactError(f"{target} is there already; name another file, or overwrite it with --force")
    for path, source in beside.items():
        if path.exists() and not force and not filecmp.cmp(path, source, shallow=False):
            raise ArtifactError(f"{path} is there already with other content; name another folder, or use --force")
    for inside in named:
        text = text.replace(f"{FOLDER}/{inside}", inside)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for path, source in beside.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)
        target.write_text(text, encoding="utf-8")
    except OSError as err:
        raise ArtifactError(f"{target} can't be written: {err}") from err
    return [target, *beside]


def _named_files(text: str) -> Iterator[tuple[str, Path]]:
    """Yield the files of the package that a configuration names: the path inside its folder, and where it is."""
    root = configs_dir()
    for inside in sorted(set(re.findall(rf"{FOLDER}/([\w./-]*\w)", text))):
        if (root / inside).is_file():
            yield inside, root / inside
