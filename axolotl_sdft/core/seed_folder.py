"""Finds the folder of a seed model, and a short name for it. No torch is imported here."""

import re
from collections.abc import Sequence
from pathlib import Path

from axolotl_sdft.core.errors import CheckpointError, first_line

_SEED_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py", "LICENSE*", "NOTICE*")
_LEGACY_SEED_FILES = ("pytorch_model*.bin",)
_NOT_SEED_FILES = ("*/*.safetensors", "*/*.bin", "consolidated*")  # the same weights again, in other layouts


def slug(seed_name: str) -> str:
    """Return a file name that keeps a Hub id whole, or a folder's own name: ``org/model`` becomes ``org--model``.

    Axolotl looks for words such as ``llama`` in the name of the base model.
    """
    folder = Path(seed_name).expanduser()
    name = folder.resolve().name if folder.is_dir() else seed_name
    return re.sub(r"[^\w.-]+", "-", name.strip("/").replace("/", "--")).strip(".-") or "model"


def resolve_seed(base_model: str, revision: str | None = None, key: str = "base_model") -> Path:
    """Return the folder of a model: the one named, or the download of a Hub id.

    Pickled ``.bin`` weights are fetched only where the repository has no safetensors.

    Raises:
        CheckpointError: There is neither; the message names ``key``.
    """
    folder = Path(base_model).expanduser()
    if folder.is_dir():
        return folder.absolute()
    try:
        path = _download(base_model, revision, _SEED_FILES)
        if not any(path.glob("*.safetensors")):
            path = _download(base_model, revision, (*_SEED_FILES, *_LEGACY_SEED_FILES))
    except (OSError, ValueError) as err:  # huggingface_hub's own errors inherit one of the two
        reason = first_line(err)
        at = f" (revision {revision!r})" if revision else ""
        raise CheckpointError(
            f"{key} is {base_model!r}{at}, which is no folder here and can't be had from the Hub: {reason}. Check "
            "the name, the connection and HF_HUB_OFFLINE"
        ) from err
    return path


def _download(repository: str, revision: str | None, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    ignored = list(_NOT_SEED_FILES)
    return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files), ignore_patterns=ignored))
