"""What a run made, as it may be published on the Hub: which files, under which card, without what others must not see.

Nothing leaves this machine that names a folder of it or looks like a key: a setting with such a value is replaced where
it is known what others need there, and is refused elsewhere.
"""

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, Protocol

from huggingface_hub import CommitOperationAdd, HfApi

from axolotl_sdft.core.artifacts import read_json
from axolotl_sdft.core.cards import CARD_FILE, is_hub_id, is_local, public_name
from axolotl_sdft.core.errors import ArtifactError, CheckpointError, ConfigError, error_context, failure
from axolotl_sdft.core.model_folder import (
    ADAPTER_CONFIG,
    holds_model,
    is_adapter,
    is_adapter_beside_weights,
    shaping_files,
    weight_files,
)
from axolotl_sdft.core.safe_output import looks_secret
from axolotl_sdft.core.texts import texts_with_keys
from axolotl_sdft.core.trained_on import PROVENANCE_FILE
from axolotl_sdft.distillation.output.card import published_card
from axolotl_sdft.distillation.output.dataset import refuse_damaged_rows
from axolotl_sdft.distillation.spec import SUMMARY_FILE
from axolotl_sdft.evaluation.figures import model_fingerprint
from axolotl_sdft.evaluation.pipeline import JSON_FILE
from axolotl_sdft.evaluation.report.published import published_model_card, published_report
from axolotl_sdft.evaluation.spec import ReportedModel
from axolotl_sdft.evaluation.summary import Artifacts
from axolotl_sdft.pruning.checkpoint.legacy_files import is_legacy
from axolotl_sdft.pruning.checkpoint.tensor_files import read_checkpoint, read_header

LOG = logging.getLogger(__name__)

Kind = Literal["checkpoint", "dataset", "report", "model"]
KINDS: tuple[Kind, ...] = ("checkpoint", "dataset", "report", "model")
_MERGED_BY = {"merged": "merge-lora", "sdft_merged": "sdft-merge"}
"""Where Axolotl merges an adapter, and where ``axolotl sdft-merge`` does, in ``output_dir``."""
_BASE_KEYS = ("_name_or_path", "base_model_name_or_path")
_DIGESTS = ("seed", "calibration_text", "general_text", "metric_code")
"""Keys of a pruned checkpoint's record."""
_LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_ROWS_FILE = "data/train-00000-of-00001.parquet"


class Hub(Protocol):
    """What is asked of ``huggingface_hub.HfApi``."""

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> Any:
        """Make sure that the repository is there."""

    def repo_info(self, repo_id: str, *, repo_type: str) -> Any:
        """Tell what the repository is."""

    def create_commit(self, repo_id: str, operations: Any, *, commit_message: str, repo_type: str) -> Any:
        """Upload files in one commit."""


@dataclass(frozen=True)
class Upload:
    """Files that are published together."""

    kind: Kind
    source: Path
    """The folder that they come from."""
    files: Mapping[str, Path | bytes]
    """By their path in the repository: a file as it is, or other content in its place."""

    @property
    def repo_type(self) -> str:
        """The kind of repository on the Hub."""
        return "dataset" if self.kind == "dataset" else "model"

    @property
    def card(self) -> str:
        """The text of the card."""
        content = self.files[CARD_FILE]
        return content.decode() if isinstance(content, bytes) else content.read_text(encoding="utf-8")

    def lines(self) -> Iterator[str]:
        """Yield the files with their sizes, and the card."""
        yield f"{self.kind}: {self.source}"
        for name, content in sorted(self.files.items()):
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            yield f"  {size / 1e6:12,.3f} MB  {name}"
        yield f"{CARD_FILE}:"
        yield from (f"  {line}" for line in self.card.splitlines())


def plan_upload(
    artifacts: Artifacts,
    kind: Kind,
    report_dir: Path,
    base_repo: str | None = None,
    licence: str | None = None,
    index: int | None = None,
) -> Upload:
    """Return what would be published, without the Hub.

    Args:
        artifacts: What the stages made.
        kind: ``checkpoint`` is the pruned checkpoint; ``model`` what was trained, merged where it was merged.
        report_dir: Where the recovery report is.
        base_repo: Where on the Hub the checkpoint is, or will be, that an adapter was trained on.
        licence: The Hub's name of a licence, for the card; unset, the seed model's where its card says it.
        index: Which of several self-distilled datasets, counted from 0.

    Raises:
        ArtifactError: That has not been made yet, is not whole, or there are two of it; or a file holds a key or a
            folder of this machine.
        ConfigError: There are several datasets, or an adapter's base is not on the Hub.
    """
    if kind == "dataset":
        return _dataset(artifacts, licence, index)
    if kind == "report":
        if not (report_dir / JSON_FILE).is_file():
            raise ArtifactError(f"there is no report in {report_dir}; run: axolotl recovery-report CONFIG")
        if holds_model(artifacts.output_dir) and not _is_measured(artifacts.output_dir, artifacts, report_dir):
            LOG.warning(
                "%s. To publish its figures, run first: axolotl recovery-report CONFIG",
                _unmeasured(artifacts.output_dir, report_dir),
            )
        texts = published_report(report_dir, licence)
        files = {name: _checked(text, str(report_dir / name)).encode() for name, text in texts.items()}
        return Upload(kind, report_dir, files)
    folder = _model_folder(artifacts, kind)
    return Upload(kind, folder, dict(_model_files(artifacts, folder, report_dir, base_repo, licence)))


def publish(upload: Upload, repo_id: str, private: bool, hub: Hub | None = None) -> str:
    """Upload what was planned in one commit, and return its address.

    Raises:
        ConfigError: ``repo_id`` is not the name of a repository, or ``private`` is asked for and it is public already.
        ArtifactError: The Hub refused, or was not reached.
    """
    if not is_hub_id(repo_id):
        raise ConfigError(f"--repo-id is {repo_id!r}; write it as your-name/name-of-the-{upload.repo_type}")
    hub = HfApi() if hub is None else hub
    operations = [
        CommitOperationAdd(name, BytesIO(content) if isinstance(content, bytes) else content)
        for name, content in sorted(upload.files.items())
    ]
    message = f"Add the {upload.kind} made with axolotl-sdft"
    way_out = (
        "check the connection and the name, and that the token may write (log in with: hf auth login); then start the "
        "same command again"
    )
    with error_context(failure(f"{repo_id} could not be written", way_out, ArtifactError)):
        hub.create_repo(repo_id, repo_type=upload.repo_type, private=private, exist_ok=True)
        if private and hub.repo_info(repo_id, repo_type=upload.repo_type).private is False:
            raise ConfigError(
                f"--private makes a new repository private, but {repo_id} is there already, and public; nothing was "
                "uploaded. Make it private in its settings on the Hub, or name another one"
            )
        done = hub.create_commit(repo_id, operations, commit_message=message, repo_type=upload.repo_type)
    return str(getattr(done, "repo_url", done))


def _model_folder(artifacts: Artifacts, kind: Kind) -> Path:
    if kind == "checkpoint":
        if artifacts.pruned_dir is None or not holds_model(artifacts.pruned_dir):
            raise ArtifactError("there is no pruned checkpoint yet; run: axolotl prune-layers CONFIG")
        _require_whole(artifacts.pruned_dir, "prune-layers")
        return artifacts.pruned_dir
    places = [*(artifacts.output_dir / name for name in _MERGED_BY), artifacts.output_dir]
    found = [folder for folder in places if holds_model(folder)]
    if not found:
        raise ArtifactError(f"{artifacts.output_dir} holds no trained model yet; run: axolotl train CONFIG")
    folder = found[0]
    if is_adapter_beside_weights(folder):
        raise ArtifactError(
            f"{folder} holds an adapter beside the weights of a whole model: two trainings have left them, and both "
            f"would be published. Delete what is not to be: {ADAPTER_CONFIG} with adapter_model*, or model*.safetensors"
        )
    _require_whole(folder, "train" if folder == artifacts.output_dir else _MERGED_BY[folder.name])
    _warn_of_newer_weights(folder, artifacts.output_dir)
    return folder


def _require_whole(folder: Path, command: str) -> None:
    """Refuse what a command that was stopped has left of a model. Of safetensors the headers are read.

    Raises:
        ArtifactError: A weight file is missing, or is shorter than its header says.
    """
    try:
        if is_adapter(folder):
            for path in weight_files(folder):
                if path.suffix == ".safetensors":
                    read_header(path)
        elif not is_legacy(folder):
            read_checkpoint(folder)
    except CheckpointError as err:
        raise ArtifactError(
            f"the model in {folder} is not whole: {err}. Delete the folder if it is not wanted any more, or make it "
            f"again: axolotl {command} CONFIG"
        ) from err


def _warn_of_newer_weights(merged: Path, output_dir: Path) -> None:
    """Say where a merge seems to be of an earlier training than that whose weights lie beside it."""
    newest = [
        max((path.stat().st_mtime_ns for path in weight_files(folder)), default=0) for folder in (merged, output_dir)
    ]
    if merged != output_dir and newest[1] > newest[0]:
        LOG.warning(
            "%s is older than the weights in %s, and may be a merge of an earlier training; merge again (axolotl "
            "merge-lora CONFIG, axolotl sdft-merge CONFIG), or delete it to publish what was trained",
            *(merged, output_dir),
        )


def _model_files(
    artifacts: Artifacts, folder: Path, report_dir: Path, base_repo: str | None, licence: str | None
) -> Iterator[tuple[str, Path | bytes]]:
    base = base_repo or _hub_base(artifacts, folder)
    for path in shaping_files(folder):
        name = path.relative_to(folder).as_posix()
        content = _public_json(path, base) if path.suffix == ".json" and _is_settings(name) else None
        yield name, path if content is None else content
    if (folder / PROVENANCE_FILE).is_file():
        yield PROVENANCE_FILE, _public_provenance(folder / PROVENANCE_FILE)
    for pattern in _LEGAL:
        yield from ((path.name, path) for path in sorted(folder.glob(pattern)))
    has_figures = _is_measured(folder, artifacts, report_dir)
    if not has_figures and (report_dir / JSON_FILE).is_file():
        is_named_apart = _MERGED_BY.get(folder.name) == "sdft-merge"
        LOG.warning(
            "%s; the figures are left out of the card. To have them there, %srun first: axolotl recovery-report CONFIG",
            _unmeasured(folder, report_dir),
            f"set recovery_report.models: {{merged: {folder}}}, and " if is_named_apart else "",
        )
    card = published_model_card(folder, artifacts, report_dir if has_figures else None, base, licence)
    yield CARD_FILE, _checked(card, f"the card of {folder}").encode()


def _is_measured(folder: Path, artifacts: Artifacts, report_dir: Path) -> bool:
    """Tell whether a recovery report is of this very model, or of the adapter that Axolotl merged into it."""
    if not (report_dir / JSON_FILE).is_file():
        return False
    measured = (read_json(report_dir / JSON_FILE).get("provenance") or {}).get("model_fingerprints") or {}
    is_merged_adapter = _MERGED_BY.get(folder.name) == "merge-lora" and is_adapter(artifacts.output_dir)
    source = artifacts.output_dir if is_merged_adapter else folder
    try:
        return model_fingerprint(ReportedModel(source.name, source)) in measured.values()
    except CheckpointError as err:  # such as the base of an adapter, which is gone
        LOG.debug("whether %s was measured can't be told", source, exc_info=err)
        return False


def _unmeasured(folder: Path, report_dir: Path) -> str:
    return f"the recovery report in {report_dir} is not of the model in {folder} as it is by now"


def _hub_base(artifacts: Artifacts, folder: Path) -> str | None:
    """Return the Hub id of what an adapter stands on; None for whole models.

    Raises:
        ConfigError: The base is a folder of this machine.
    """
    if not is_adapter(folder):
        return None
    base = str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    if is_hub_id(base) and not Path(base).is_dir():
        return base
    merge = "merge it into a whole model first (axolotl merge-lora CONFIG)"
    if artifacts.pruned_dir is not None:
        raise ConfigError(
            f"{folder} holds an adapter for the pruned checkpoint, which others do not have. Publish that first "
            f"(--what checkpoint), and name it by --base-repo-id; or {merge}"
        )
    raise ConfigError(
        f"{folder} holds an adapter for {base!r}; name its model on the Hub by --base-repo-id, or {merge}"
    )


def _is_settings(name: str) -> bool:
    """Whether a JSON file holds settings, not the vocabulary or the index of the weights."""
    return name.endswith("config.json")


def _public_json(path: Path, base: str | None) -> bytes | None:
    """Return settings with what they say of this machine replaced; None where there is nothing to replace.

    Raises:
        ArtifactError: A value holds a key, or a folder of this machine where none is expected.
    """
    settings = read_json(path)
    replaced = {key: base or "" for key in _BASE_KEYS if isinstance(settings.get(key), str) and is_local(settings[key])}
    public = settings | replaced
    for fault in _faults(public):
        raise ArtifactError(f"{path}: {fault}; take it out before publishing")
    return _json(public) if replaced else None


def _public_provenance(path: Path) -> bytes:
    """Return what tells which layers of which model are gone, so that this model can teach the checkpoint elsewhere.

    Raises:
        ArtifactError: It holds a key, or a folder of this machine where none is expected.
    """
    provenance = read_json(path)
    public = provenance | {"seed_model": public_name(str(provenance["seed_model"]))}
    public.pop("seed_dir", None)
    if any(_faults(public.get("settings", {}))):  # such as a file of calibration text
        del public["settings"]
    for fault in _faults(public, digests=_DIGESTS):
        raise ArtifactError(f"{path}: {fault}; take it out before publishing")
    return _json(public)


def _faults(settings: Any, digests: Collection[str] = ()) -> Iterator[str]:
    """Yield what must not be published. What stands under ``digests`` looks like a key and is none."""
    for key, text in texts_with_keys(settings):
        if looks_secret(text, "digest" if key in digests else key.rpartition(".")[2]):
            yield f"{key} holds what looks like a key"
        elif is_local(text):
            yield f"{key} is {text!r}, a folder of this machine"


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _checked(text: str, what: str) -> str:
    """Return a text that names no folder of this machine and holds no key.

    Raises:
        ArtifactError: It does.
    """
    for local in (str(Path.home()), str(Path.cwd())):
        if len(local) > 1 and f"{local}/" in text:
            raise ArtifactError(f"{what} names {local}, a folder of this machine; take it out before publishing")
    if any(looks_secret(line) for line in text.splitlines()):
        raise ArtifactError(f"{what} holds what looks like a key; take it out before publishing")
    return text


def _dataset(artifacts: Artifacts, licence: str | None, index: int | None) -> Upload:
    folders: Sequence[Path] = artifacts.distilled_dirs
    if not folders:
        raise ArtifactError("there is no self-distilled dataset yet; run: axolotl self-distill CONFIG")
    if index is None and len(folders) > 1:
        names = ", ".join(f"{number}: {folder.name}" for number, folder in enumerate(folders))
        raise ConfigError(f"there are {len(folders)} self-distilled datasets ({names}); choose one by --index")
    if index is not None and index >= len(folders):
        raise ConfigError(f"--index is {index}, but there are {len(folders)} self-distilled datasets, counted from 0")
    folder = folders[index or 0]
    summary = read_json(folder / SUMMARY_FILE)
    way_out = "put its files back, or delete the folder and run axolotl self-distill CONFIG: the answers are kept"
    refuse_damaged_rows(folder, summary["rows"] - summary["rows_dropped"], way_out)
    card = published_card(folder, summary, _ROWS_FILE, artifacts.seed_dir, licence)
    files = {_ROWS_FILE: _rows(folder), CARD_FILE: _checked(card, f"the card of {folder}").encode()}
    return Upload("dataset", folder, files)


def _rows(folder: Path) -> bytes:
    """Return the rows as parquet, which the Hub shows.

    Raises:
        ArtifactError: A row holds a key.
    """
    from datasets import load_from_disk

    rows = load_from_disk(str(folder))
    for number, row in enumerate(rows):
        for key, text in texts_with_keys(row):
            if looks_secret(text, "digest"):
                raise ArtifactError(
                    f"{folder}: row {number}, {key} holds what looks like a key or a password; take the row out of "
                    "datasets, and run axolotl self-distill CONFIG again"
                )
    target = BytesIO()
    rows.to_parquet(target)
    return target.getvalue()
