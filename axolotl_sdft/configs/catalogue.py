"""The configurations that ship with the package: their descriptions, and copies of them to where they are to run.

A description is the first lines of a file: ``# key: value``, and ``#   more of the value``.
"""

import difflib
import filecmp
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from axolotl_sdft.core.artifacts import replacing
from axolotl_sdft.core.errors import ArtifactError, UnknownNameError

FOLDER = "example_configs"

REQUIRED_KEYS = ("title", "needs", "expects", "source")
"""What a description must say: what the file does, what it needs, what to expect, and where it comes from."""

_KEY = re.compile(r"# ([a-z]+): +(\S.*)")
_MORE = re.compile(r"#  +(\S.*)")


@dataclass(frozen=True)
class SharedConfig:
    """A configuration that ships with the package."""

    name: str
    """Folder and file without its suffix, such as ``sdft/llama-2-7b-chat-gsm8k``."""

    path: Path

    def text(self) -> str:
        """Return the file as it is."""
        return self.path.read_text(encoding="utf-8")

    def description(self) -> dict[str, str]:
        """Return what its first lines say, by key."""
        return read_description(self.text())


def configs_dir() -> Path:
    """Return the folder of the configurations: within the package, or beside it in the repository.

    Raises:
        ArtifactError: It is in neither place.
    """
    package = Path(__file__).parent.parent
    places = [package / FOLDER, package.parent / FOLDER]
    for place in places:
        if place.is_dir():
            return place
    raise ArtifactError(f"{FOLDER} is neither in {package} nor beside it; install axolotl-sdft again")


def shared_configs() -> list[SharedConfig]:
    """Return all configurations that ship with the package, sorted by name, ``less-10`` after ``less-2``."""
    root = configs_dir()
    configs = [
        SharedConfig(path.relative_to(root).as_posix().removesuffix(".yml"), path) for path in root.rglob("*.yml")
    ]
    return sorted(configs, key=lambda config: [part.zfill(8) for part in re.split(r"(\d+)", config.name)])


def find_config(name: str) -> SharedConfig:
    """Return the configuration of a name; its folder may be left out where that is clear, and so may ``.yml``.

    Raises:
        UnknownNameError: There is none, or several; the message holds those that come nearest.
    """
    wanted = name.removesuffix(".yml")
    known = {config.name: config for config in shared_configs()}
    if wanted in known:
        return known[wanted]
    same_file = [full for full in known if full.rpartition("/")[2] == wanted]
    if len(same_file) == 1:
        return known[same_file[0]]
    near = same_file or _nearest(wanted, list(known))
    hint = f"did you mean {' or '.join(near)}?" if near else "see: axolotl sdft-configs list"
    raise UnknownNameError(f"there is no configuration {name!r}; {hint}")


def _nearest(wanted: str, names: list[str]) -> list[str]:
    """Return up to three names that are like what was asked for, or whose last part is."""
    by_file = {name.rpartition("/")[2]: name for name in names}
    like_file = [by_file[file] for file in difflib.get_close_matches(wanted.rpartition("/")[2], by_file, 3, 0.6)]
    return (difflib.get_close_matches(wanted, names, 3, 0.6) or like_file)[:3]


def read_description(text: str) -> dict[str, str]:
    """Return the description that a file begins with, by key, each value on one line; empty where there is none."""
    found: dict[str, str] = {}
    last = None
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if key := _KEY.fullmatch(line):
            last = key[1]
            found[last] = key[2].strip()
        elif last is not None and (more := _MORE.fullmatch(line)):
            found[last] += f" {more[1].strip()}"
        else:
            last = None
    return found


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
    for path, source in beside.items():
        with replacing(path) as copy:
            shutil.copyfile(source, copy)
    with replacing(target) as copy:
        copy.write_text(text, encoding="utf-8")
    return [target, *beside]


def _named_files(text: str) -> Iterator[tuple[str, Path]]:
    """Yield the files of the package that a configuration names: the path inside its folder, and where it is."""
    root = configs_dir()
    for inside in sorted(set(re.findall(rf"{FOLDER}/([\w./-]*\w)", text))):
        if (root / inside).is_file():
            yield inside, root / inside
