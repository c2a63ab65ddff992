"""A model's folder: where it is, which files it holds, which of them shape what the model says, and which lead out of
it.

A folder may come from anywhere, so no symlink is followed out of it and no index may name a file outside: else cutting
a model would copy what lies elsewhere on the disk into a folder that is shared later. One layout is known and followed:
a snapshot in the Hub's cache consists of links to the ``blobs`` beside it.
"""

import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PureWindowsPath
from typing import Any

from axolotl_sdft.core.errors import CheckpointError, ConfigError, first_line

ADAPTER_CONFIG = "adapter_config.json"
TEMPLATES_FOLDER, DECODING_FOLDER = "additional_chat_templates", "custom_generate"

# Patterns of lower-case names. What is not known to leave the model as it is counts: custom code may read any file.
_INERT = (
    *("readme*", "licen[cs]e*", "notice*", "use_policy*", "requirements*.txt", "*.md", "*.rst", "*.html", "*.pdf"),
    *("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", "*.log", "*.lock", "*.yml", "*.yaml", "*.tfevents.*"),
    *("*.jsonl", "*.csv", "*.parquet", "*.arrow"),
    # The state and the results of a training
    *("trainer_state.json", "tokens_state.json", "training_args.bin", "optimizer*", "scheduler.*", "scaler.*"),
    *("rng_state*", "random_states*", "dynsdpb_memory*.pt", "*_results.json", "latest", "zero_to_fp32.py"),
    # What the stages of this package tell about a model
    *("layer_pruning.json", "scores.json", "scoring.json", "sdft_trained_on.json", "sdft_merge.json"),
    *("summary.json", "report.json"),
    # Weights for other frameworks
    *("*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.tflite", "*.gguf", "openvino_*.bin", "openvino_*.xml"),
    "*.ipynb",
)
# Pickled weights, and those in Mistral's own layout, which are not read where one of the other files is there.
_SUPERSEDED = {
    **dict.fromkeys(
        ("pytorch_model*.bin*", "consolidated*.safetensors*", "consolidated*.pth"),
        ("model.safetensors", "model.safetensors.index.json"),
    ),
    "adapter_model.bin": ("adapter_model.safetensors",),
}
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")
_ADAPTER_WEIGHTS = ("adapter_model*.safetensors", "adapter_model*.bin")
_INDEXES = (".safetensors.index.json", ".bin.index.json")
_FOLDERS = {TEMPLATES_FOLDER: "*.jinja", DECODING_FOLDER: "*.py"}


def shaping_files(folder: Path) -> list[Path]:
    """Return the files of a model's folder that shape what the model says, sorted.

    These are weights, settings, tokenizer, chat templates, an adapter's files, custom code, and any other file that is
    not known to play no part, as model cards, licences, reports and the state of a training do. Folders inside are
    left out, but for chat templates, weights that an index names, and custom code.

    Raises:
        CheckpointError: The folder is missing, or one of the files lies outside.
    """
    try:
        listed = sorted(os.listdir(folder))
        names = {name for name in listed if _counts(name, listed)}
        for index in [name for name in names if name.endswith(_INDEXES)]:
            names |= set(indexed_files(folder, index).values())
        for inner, pattern in _FOLDERS.items():
            names |= {f"{inner}/{path.name}" for path in (folder / inner).glob(pattern)}
        if any(name.endswith(".py") for name in names):
            names |= set(_modules(folder))
        return [folder / name for name in sorted(names) if (folder / name).is_file() and own_path(folder, name)]
    except OSError as err:
        raise CheckpointError(f"the model in {folder} can't be read: {first_line(err)}") from err


def own_path(folder: Path, name: str) -> Path:
    """Return the path of a name in a model's folder, whether a file is there or not.

    Raises:
        CheckpointError: The name, or a symlink there, leads out of the folder.
    """
    path = folder / name
    if os.path.isabs(name) or PureWindowsPath(name).is_absolute() or ".." in PureWindowsPath(name).parts:
        raise CheckpointError(
            f"{name!r} is not the name of a file in {folder}: it leads out of the folder, which a model may not. "
            "Put the file into the folder and name it there"
        )
    target = _resolved(path)
    if not any(target.is_relative_to(root) for root in _roots(folder)):
        raise CheckpointError(
            f"{path} is a symlink to {target}, outside the model's folder, and is not followed. Replace the link by "
            "a copy of the file if it belongs to the model, or delete it"
        )
    return path


def indexed_files(folder: Path, index: str) -> dict[str, str]:
    """Return the ``weight_map`` of an index: the file of each tensor, each a name in the folder.

    Raises:
        CheckpointError: The index is broken, or names a file outside the folder.
    """
    path = own_path(folder, index)
    content = read_json_file(path)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) and name for name in weight_map.values()):
        raise CheckpointError(f"{path} is not an index of weight files: its weight_map must name a file per tensor")
    for name in sorted(set(weight_map.values())):
        try:
            own_path(folder, name)
        except CheckpointError as err:
            raise CheckpointError(f"{path}: weight_map names a file outside: {err}") from err
    return weight_map


def read_config(model_dir: Path) -> dict[str, Any]:
    """Return the ``config.json`` of a checkpoint.

    Raises:
        CheckpointError: The folder, or the file in it, is missing or broken.
    """
    if not model_dir.is_dir():
        raise CheckpointError(f"{model_dir} is not a folder; name the folder of a checkpoint")
    path = own_path(model_dir, "config.json")
    if not path.exists():
        names = sorted(path.name for path in model_dir.iterdir())
        there = ", ".join(names[:8]) or "nothing"
        packed = "; GGUF files can't be used here: name the checkpoint that they were made from"
        raise CheckpointError(
            f"{model_dir} has no config.json, so it is not a checkpoint; it holds {there}"
            f"{packed if any(name.lower().endswith('.gguf') for name in names) else ''}"
        )
    config = read_json_file(path)
    if not isinstance(config, dict):
        raise CheckpointError(f"{model_dir / 'config.json'} holds a {type(config).__name__} instead of settings")
    return config


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter rather than a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def is_adapter_beside_weights(folder: Path) -> bool:
    """Tell whether a folder that is taken for an adapter holds whole weights, too: one of two trainings left them."""
    return is_adapter(folder) and any(folder.glob("model*.safetensors"))


def holds_model(folder: Path) -> bool:
    """Tell whether a folder holds a model, whole or as an adapter: its settings, and weights.

    Axolotl writes settings and tokenizer before it trains; a training that stopped leaves those alone.
    """
    return _holds_settings(folder) and bool(weight_files(folder))


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a model's weights, or of an adapter's, in no order; an index counts as one."""
    patterns = _ADAPTER_WEIGHTS if is_adapter(folder) else _WEIGHTS
    return [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]


def _holds_settings(folder: Path) -> bool:
    return (folder / "config.json").is_file() or is_adapter(folder)


def read_adapter_config(adapter_dir: Path) -> dict[str, Any]:
    """Return the ``adapter_config.json`` of an adapter.

    Raises:
        CheckpointError: It is missing or broken.
    """
    path = own_path(adapter_dir, ADAPTER_CONFIG)
    settings = read_json_file(path)
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds a {type(settings).__name__} instead of settings")
    return settings


def read_json_file(path: Path) -> Any:
    """Return the value of a JSON file that came with a model.

    Raises:
        CheckpointError: The file is missing, is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise CheckpointError(f"{path} can't be read: its JSON is nested too deeply to be a model's") from None
    except (OSError, ValueError) as err:
        raise CheckpointError(f"{path} can't be read: {first_line(err)}") from err


def _counts(name: str, listed: Collection[str]) -> bool:
    lower = name.lower()
    if name.startswith(".") or any(fnmatchcase(lower, pattern) for pattern in _INERT):
        return False
    return not any(
        fnmatchcase(name, pattern) and any(better in listed for better in instead)
        for pattern, instead in _SUPERSEDED.items()
    )


def _modules(folder: Path) -> Iterator[str]:
    """Yield the modules in the folders inside, which custom code may import; folders of other models are left out."""
    for place, folders, names in os.walk(folder):
        inside = Path(place).relative_to(folder)
        folders[:] = [name for name in folders if not name.startswith(".") and not _holds_settings(Path(place, name))]
        for name in folders:
            own_path(folder, (inside / name).as_posix())
        if inside.parts:
            yield from ((inside / name).as_posix() for name in names if name.endswith(".py"))


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as err:  # a link that leads to itself, a name with a zero byte
        raise CheckpointError(f"{str(path)!r} can't be followed ({first_line(err)}); delete or rename it") from err


def _roots(folder: Path) -> Iterator[Path]:
    """Yield the folders in which a model's files may lie: its own, and the blobs of a snapshot in the Hub's cache."""
    root = _resolved(folder)
    yield root
    if root.parent.name == "snapshots":
        yield _resolved(root.parent.parent / "blobs")


# The card says the licence.
_SEED_FILES = (
    *("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py", "LICENSE*", "NOTICE*", "README.md"),
    *("*.tiktoken", "*.spm", "vocab.bpe", "bpe.codes"),  # tokenizers of Qwen-1, Marian, GPT-2 and PhoBERT
)
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
    except Exception as err:  # huggingface_hub's own errors, and where the connection breaks those of httpx
        reason = first_line(err)
        at = f" (revision {revision!r})" if revision else ""
        raise CheckpointError(
            f"{key} is {base_model!r}{at}, which is not a local folder and could not be downloaded: {reason}. Check "
            "the name, the connection and HF_HUB_OFFLINE"
        ) from err
    return path


def seed_dir_of_call(seed_model: str | Path, revision: str | None = None) -> Path:
    """Return the folder of the model that a call from Python names as ``seed_model``.

    Raises:
        ConfigError: It is something else than a name, such as the loaded model.
        CheckpointError: There is no such model.
    """
    if not isinstance(seed_model, str | Path):
        raise ConfigError(
            f"seed_model is a {type(seed_model).__name__}; name the folder or the Hub id that it was loaded from"
        )
    return resolve_seed(str(seed_model), revision, key="seed_model")


def folder_of(name: str, revision: str | None, files: Sequence[str]) -> Path | None:
    """Return the folder of a model that was loaded by this name; None where there is none.

    Args:
        name: A folder, or a Hub id.
        revision: That of the Hub id, such as the commit that was loaded.
        files: Patterns of what is needed of a Hub id; of these, what its repository holds is fetched where the Hub can
            be reached.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.absolute()
    try:
        return _download(name, revision, files)
    except Exception:  # as above
        return None


def _download(repository: str, revision: str | None, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    ignored = list(_NOT_SEED_FILES)
    return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files), ignore_patterns=ignored))
