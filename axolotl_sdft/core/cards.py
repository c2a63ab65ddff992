"""What cards for the Hub are made of: metadata by ``huggingface_hub``, and Markdown that no text can break.

Cards are made to be published: they name no folder of this machine.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CardData, metadata_load

from axolotl_sdft.core.texts import one_line

CARD_FILE = "README.md"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&])")


def card_with(data: CardData, markdown: str) -> str:
    """Return a card: the metadata as a block of YAML, then Markdown."""
    return f"---\n{data.to_yaml()}\n---\n\n{markdown}"


def metadata_of(folder: Path) -> dict[str, Any]:
    """Return the metadata of the card in a folder; empty where there is none that can be read."""
    try:
        return metadata_load(folder / CARD_FILE) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def is_hub_id(name: str) -> bool:
    """Whether a name may be that of a repository, such as ``org/model``."""
    return _HUB_ID.fullmatch(name) is not None


def is_local(name: str) -> bool:
    """Whether a text is a path of this machine by its form."""
    return Path(name).is_absolute() or name.startswith(("~", "./", "../"))


def public_name(name: str) -> str:
    """Return what others may know of a model: its id on the Hub, or the last part of a folder of this machine."""
    path = Path(name).expanduser()
    if is_hub_id(name) and not path.is_dir():
        return name
    return path.absolute().name or "model"


def versions_text(provenance: Mapping[str, Any]) -> str:
    """Return the versions of the packages that made something."""
    versions = provenance.get("package_versions") or {}
    return ", ".join(f"{package} {version}" for package, version in versions.items()) or "not recorded"


def escaped(text: str) -> str:
    """Return a text on one line that Markdown shows as it is."""
    return _MARKDOWN.sub(r"\\\1", one_line(text))


def code(text: str) -> str:
    """Return a text on one line as Markdown code, whatever it holds."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    gap = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{gap}{one_line(text)}{gap}{ticks}"


def fenced(text: str, language: str) -> str:
    """Return a block of Markdown code that no line of it can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}{fence}"
