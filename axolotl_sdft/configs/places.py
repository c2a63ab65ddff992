"""Where a configuration says that things are: on this machine alone, or where others find them too. No torch."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

from axolotl_sdft.configs.findings import Finding, advice, fault
from axolotl_sdft.core.texts import texts_with_keys

_MODEL_KEYS = (
    *("base_model", "base_model_config", "tokenizer_config", "processor_config"),
    *("lora_model_dir", "resume_from_checkpoint"),
)
_FILE_KEYS = ("deepspeed", "deepspeed_config")
_OWN_WORDS = ("base_model", "output_dir")  # what merge.models means by them is the configuration's own
_OUTPUT_KEYS = (
    *("output_dir", "dataset_prepared_path", "layer_pruning.output_dir", "self_distillation.output_dir"),
    *("merge.output_dir", "recovery_report.output_dir"),
)
_DATA_KEYS = (
    *("layer_pruning.calibration.path", "recovery_report.held_out.path", "recovery_report.general_prompts.path"),
    *("recovery_report.lm_eval.include_path",),
)
_ACCOUNT_KEYS = ("wandb_entity", "hub_model_id")
_DATASET_LISTS = ("datasets", "test_datasets", "pretraining_dataset")
_BUILDERS = frozenset(
    {"json", "csv", "parquet", "arrow", "text", "xml", "webdataset", "imagefolder", "audiofolder", "videofolder"}
)
"""Loaders of the datasets library: no datasets, so ``data_files`` says where the rows are."""
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+://")
_BUCKET = re.compile(r"(?:s3a?|gs|gcs|az|adl|abfss?|oci)://")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_DATA_SUFFIXES = frozenset(
    {".arrow", ".csv", ".gz", ".jinja", ".json", ".jsonl", ".parquet", ".tsv", ".txt", ".yaml", ".yml", ".zst"}
)
_SERVED_PATH_KEYS = re.compile(r"(^|[._])(urls?|endpoints?|routes?|extra_body|chat_template_kwargs)([.\[]|$)")
_FOLDER_PATH = re.compile(
    r"""(?<![\w.:/~-])(?:~|/[\w.+-]+)(?:/[\w.+-]+)+/?|file:///?[\w./+-]+|(?<!\w)[A-Za-z]:[\\/][^\s"',;]+|"""
    r"""\\\\[\w.-]+\\[^\s"',;]+"""
)
_HOME = re.compile(r"^(file://)?(/home/|/Users/|/root(/|$)|[A-Za-z]:[\\/]Users[\\/])")
_OWN_MACHINE = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


def place_findings(raw: Mapping[str, Any], text: str, folder: Path) -> Iterator[Finding]:
    """Yield what a configuration names that others do not have, or that may change under them.

    Args:
        raw: The YAML as it was read.
        text: The file itself, for its comments.
        folder: The folder of the file: data below it can be sent along.
    """
    found = list(_known_place_findings(raw, folder))
    yield from found
    told = {finding.key for finding in found}
    for key, value in texts_with_keys(raw, ""):
        if key not in told and _is_folder_path(value) and not _SERVED_PATH_KEYS.search(key):
            yield fault(key, f"{value!r} is on this machine only; name something that others have, or remove it")
    yield from _comment_findings(text)


def _known_place_findings(raw: Mapping[str, Any], folder: Path) -> Iterator[Finding]:
    """Yield findings about the keys that are known to hold places."""
    for key in _MODEL_KEYS:
        yield from _model_findings(key, _at(raw, key), folder)
    for key, value in _further_models(raw):
        yield from _further_model_findings(key, value, folder)
    for key in (*_DATA_KEYS, *_FILE_KEYS):
        yield from _data_findings(key, _at(raw, key), folder)
    for key, path in _calibration_paths(raw):
        yield from _data_findings(key, path, folder)
    yield from _template_findings("chat_template_jinja", raw.get("chat_template_jinja"), folder)
    for name, entry in _entries(raw):
        yield from _entry_findings(name, entry, folder)
    for key in _ACCOUNT_KEYS:
        if raw.get(key):
            yield fault(key, f"{raw[key]!r} is yours, and others can't write there; take it out")
    for key in _OUTPUT_KEYS:
        if is_absolute(_at(raw, key)):
            yield fault(
                key, f"{_at(raw, key)!r} is a folder of this machine; write a relative one, such as outputs/name"
            )
    if _is_hub_name(raw.get("base_model"), folder) and not _is_commit(raw.get("revision_of_model")):
        yield advice("revision_of_model", _unpinned(raw.get("revision_of_model"), raw["base_model"]))
    yield from _server_findings(raw)


def _further_models(raw: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the models that the blocks name, with their keys."""
    merged, reported = _at(raw, "merge.models"), _at(raw, "recovery_report.models")
    for index, value in enumerate(merged if isinstance(merged, list) else []):
        if value not in _OWN_WORDS:
            yield f"merge.models[{index}]", value
    for name, value in reported.items() if isinstance(reported, Mapping) else []:
        yield f"recovery_report.models.{name}", value


def _entry_findings(name: str, entry: Mapping[str, Any], folder: Path) -> Iterator[Finding]:
    """Yield findings about one entry of the datasets: its path, its files, its revision."""
    path, files = entry.get("path"), entry.get("data_files")
    is_builder = path in _BUILDERS
    if not is_builder:
        yield from _data_findings(f"{name}.path", path, folder)
        yield from _revision_findings(name, entry, folder)
    listed = list(texts_with_keys(files, f"{name}.data_files"))
    for key, file in listed:
        if is_builder or is_absolute(file):  # with a dataset of the Hub, they are files of its repository
            yield from _data_findings(key, file, folder)
    if is_builder and not listed and not entry.get("data_dir"):
        yield fault(f"{name}.data_files", f"is not set, but {path!r} is a kind of file, not a dataset; name the files")
    if is_builder:
        yield from _data_findings(f"{name}.data_dir", entry.get("data_dir"), folder)
    yield from _template_findings(f"{name}.chat_template_jinja", entry.get("chat_template_jinja"), folder)
    yield from _server_findings(entry, f"{name}.")


def _calibration_paths(raw: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the paths of a mixture of calibration texts; a list stands for its ``parts``."""
    key = "layer_pruning.calibration"
    calibration = _at(raw, key)
    if not isinstance(calibration, list):
        key, calibration = f"{key}.parts", _at(raw, f"{key}.parts")
    for index, part in enumerate(calibration if isinstance(calibration, list) else []):
        yield f"{key}[{index}].path", _at(part, "path")


def _template_findings(key: str, value: Any, folder: Path) -> Iterator[Finding]:
    if isinstance(value, str) and "{" not in value:  # else it is the template's text
        yield from _data_findings(key, value, folder)


def _is_folder_path(text: str) -> bool:
    """Say whether a text is, as a whole, a path on a machine; ``/no_think`` in a prompt is not."""
    return bool(_FOLDER_PATH.fullmatch(text.strip()))


def _comment_findings(text: str) -> Iterator[Finding]:
    """Yield a finding for the first path of a machine in the comments: a home folder gives a name away."""
    comments = [line if line.lstrip().startswith("#") else line.partition(" #")[2] for line in text.splitlines()]
    paths = [path for comment in comments for path in _FOLDER_PATH.findall(comment)]
    homes = [path for path in paths if _HOME.match(path)]
    if homes:
        yield fault("comments", f"one names {homes[0]!r}, a folder of this machine; take it out")
    elif paths:
        yield advice("comments", f"one names {paths[0]!r}, which others may not have")


def is_absolute(value: Any) -> bool:
    """Say whether a text is a path from the root or the home of a machine, of any system."""
    if not isinstance(value, str):
        return False
    return value.startswith(("/", "~", "file:")) or bool(PureWindowsPath(value).drive)


def _at(raw: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        raw = raw.get(part) if isinstance(raw, Mapping) else None
    return raw


def _entries(raw: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the datasets with what findings call them."""
    for name in _DATASET_LISTS:
        listed = raw.get(name)
        for index, entry in enumerate(listed if isinstance(listed, list) else []):
            if isinstance(entry, Mapping):
                yield f"{name}[{index}]", entry


def _model_findings(key: str, value: Any, folder: Path) -> Iterator[Finding]:
    if isinstance(value, str) and _is_local(value, folder):
        yield fault(key, f"{value!r} is a folder of this machine; publish it on the Hub and write its name there")


def _further_model_findings(key: str, value: Any, folder: Path) -> Iterator[Finding]:
    """Yield findings about a model to compare or merge with: one below the folder is what another run makes there."""
    if isinstance(value, str) and not is_absolute(value) and not value.startswith("..") and _is_local(value, folder):
        yield advice(key, f"{value!r} is what another run makes; say in the description which")
    else:
        yield from _model_findings(key, value, folder)


def _data_findings(key: str, value: Any, folder: Path) -> Iterator[Finding]:
    if not isinstance(value, str):
        return
    if _BUCKET.match(value):
        yield advice(key, f"{value!r} is a bucket that others may not read; publish it on the Hub, or say that they do")
    elif _REMOTE.match(value) and not is_absolute(value):
        return
    elif is_absolute(value) or value.startswith(".."):
        yield fault(key, f"{value!r} is on this machine only; put the file beside the configuration, or on the Hub")
    elif _is_local(value, folder):
        if any(_exists(value, root) for root in (folder, Path())):
            yield advice(key, f"{value!r} is a local file; send it along, or publish it on the Hub")
        else:
            yield fault(key, f"{value!r} is neither beside the configuration nor in the current folder")


def _exists(value: str, root: Path) -> bool:
    """Say whether a file, a folder, or something that a pattern such as ``rows/*.jsonl`` fits is there."""
    try:
        return (root / value).exists() or ("*" in value and any(root.glob(value)))
    except (OSError, ValueError, NotImplementedError):
        return False


def _is_local(value: str, folder: Path) -> bool:
    """Say whether a text names a file or a folder rather than something on the Hub or another server."""
    if is_absolute(value) or value.startswith("."):
        return True
    if _REMOTE.match(value):
        return False
    is_file_name = Path(value).suffix.lower() in _DATA_SUFFIXES
    return is_file_name or not _HUB_NAME.fullmatch(value) or any(_exists(value, root) for root in (folder, Path()))


def _is_hub_name(value: Any, folder: Path) -> bool:
    return isinstance(value, str) and not _REMOTE.match(value) and not _is_local(value, folder)


def _revision_findings(name: str, entry: Mapping[str, Any], folder: Path) -> Iterator[Finding]:
    if _is_hub_name(entry.get("path"), folder) and not _is_commit(entry.get("revision")):
        yield advice(f"{name}.revision", _unpinned(entry.get("revision"), entry["path"]))


def _is_commit(revision: Any) -> bool:
    return isinstance(revision, str) and bool(_COMMIT.fullmatch(revision))


def _unpinned(revision: Any, name: str) -> str:
    found = "is not set" if revision is None else f"{revision!r} may move"
    return f"{found}, so {name} may change under others; pin the commit that you used"


def _server_findings(raw: Mapping[str, Any], where: str = "") -> Iterator[Finding]:
    key = "self_distillation.generation.base_urls"
    urls = _at(raw, key)
    for url in [urls] if isinstance(urls, str) else urls if isinstance(urls, list) else []:
        try:
            host = urlsplit(str(url)).hostname
        except ValueError:  # what the blocks refuse
            continue
        if host not in _OWN_MACHINE:
            yield advice(
                f"{where}{key}", f"{host} is a server of yours; say in the description that others put in their own"
            )
