"""Where a configuration says that things are: on this machine alone, or where others find them too. No torch."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

from axolotl_sdft.sharing.findings import Finding, advice, fault

_MODEL_KEYS = (
    *("base_model", "base_model_config", "tokenizer_config", "processor_config"),
    *("lora_model_dir", "resume_from_checkpoint"),
)
_FILE_KEYS = ("deepspeed", "deepspeed_config")
_OUTPUT_KEYS = (
    *("output_dir", "dataset_prepared_path", "layer_pruning.output_dir", "self_distillation.output_dir"),
    *("merge.output_dir", "recovery_report.output_dir"),
)
_DATA_KEYS = (
    *("layer_pruning.calibration.path", "recovery_report.held_out.path", "recovery_report.general_prompts.path"),
    *("recovery_report.lm_eval.include_path",),
)
_DATASET_LISTS = ("datasets", "test_datasets", "pretraining_dataset")
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+://")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_DATA_SUFFIXES = frozenset(
    {".arrow", ".csv", ".gz", ".jinja", ".json", ".jsonl", ".parquet", ".tsv", ".txt", ".yaml", ".yml", ".zst"}
)
_OWN_MACHINE = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


def place_findings(raw: Mapping[str, Any], folder: Path) -> Iterator[Finding]:
    """Yield what a configuration names that others do not have, or that may change under them.

    Args:
        raw: The YAML as it was read.
        folder: The folder of the file: data below it can be sent along.
    """
    for key in _MODEL_KEYS:
        yield from _model_findings(key, _at(raw, key), folder)
    for key in (*_DATA_KEYS, *_FILE_KEYS):
        yield from _data_findings(key, _at(raw, key), folder)
    for name, entry in _entries(raw):
        yield from _data_findings(f"{name}.path", entry.get("path"), folder)
        yield from _revision_findings(name, entry, folder)
    for key in _OUTPUT_KEYS:
        if is_absolute(_at(raw, key)):
            yield fault(
                key, f"{_at(raw, key)!r} is a folder of this machine; write a relative one, such as outputs/name"
            )
    if _is_hub_name(raw.get("base_model"), folder) and not _is_commit(raw.get("revision_of_model")):
        yield advice("revision_of_model", _unpinned(raw.get("revision_of_model"), raw["base_model"]))
    yield from _server_findings(_at(raw, "self_distillation.generation.base_urls"))


def is_absolute(value: Any) -> bool:
    """Say whether a text is a path from the root or the home of a machine, of any system."""
    if not isinstance(value, str):
        return False
    return value.startswith(("/", "~", "file://")) or bool(PureWindowsPath(value).drive)


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


def _data_findings(key: str, value: Any, folder: Path) -> Iterator[Finding]:
    if not isinstance(value, str) or (_REMOTE.match(value) and not is_absolute(value)):
        return
    if is_absolute(value) or value.startswith(".."):
        yield fault(key, f"{value!r} is on this machine only; put the file beside the configuration, or on the Hub")
    elif _is_local(value, folder):
        if (folder / value).exists() or Path(value).exists():
            yield advice(key, f"{value!r} is a local file; send it along, or publish it on the Hub")
        else:
            yield fault(key, f"{value!r} is neither beside the configuration nor in the current folder")


def _is_local(value: str, folder: Path) -> bool:
    """Say whether a text names a file or a folder rather than something on the Hub or another server."""
    if is_absolute(value) or value.startswith("."):
        return True
    if _REMOTE.match(value):
        return False
    is_file_name = Path(value).suffix.lower() in _DATA_SUFFIXES
    return is_file_name or not _HUB_NAME.fullmatch(value) or (folder / value).exists() or Path(value).exists()


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


def _server_findings(urls: Any) -> Iterator[Finding]:
    for url in [urls] if isinstance(urls, str) else urls if isinstance(urls, list) else []:
        key, host = "self_distillation.generation.base_urls", urlsplit(str(url)).hostname
        if host not in _OWN_MACHINE:
            yield advice(key, f"{host} is a server of yours; say in the description that others put in their own")
