"""The stage: finds the merge of two models, or makes it. torch comes with making it."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ByteSize

from axolotl_sdft.config import MergeConfig, parse_size
from axolotl_sdft.core.artifacts import (
    atomic_folder,
    ensure_free_space,
    ensure_writable,
    find_or_make,
    fingerprint,
    package_versions,
    read_json,
    write_json,
)
from axolotl_sdft.core.errors import ArtifactError, ConfigError
from axolotl_sdft.core.identity import model_identity
from axolotl_sdft.core.model_folder import is_adapter, resolve_seed
from axolotl_sdft.evaluation.merging.adapters import (
    ADAPTER_WEIGHTS,
    Adapter,
    check_same_base,
    merge_adapters,
    read_adapter,
    scale_adapter,
)
from axolotl_sdft.evaluation.merging.checkpoints import copy_files, read_merge, write_merge
from axolotl_sdft.evaluation.merging.same_model import check_same_tokens
from axolotl_sdft.evaluation.merging.slerp import Blend, linear_factors

LOG = logging.getLogger(__name__)

MERGE_FILE = "sdft_merge.json"
OUTPUT_KEY = "merge.output_dir"


@dataclass(frozen=True)
class NamedModel:
    """A model in a folder, and what the user calls it: a folder or a Hub id."""

    name: str
    folder: Path


@dataclass(frozen=True)
class _Plan:
    """A merge whose models have been found to fit."""

    num_bytes: int
    write: Callable[[Path], None]
    """Fills an empty folder."""


@dataclass(frozen=True)
class MergeTask:
    """Two models to be merged into a folder. Creating it reads nothing."""

    first: NamedModel
    second: NamedModel
    config: MergeConfig
    output_dir: Path
    """Absolute path of the merged model."""

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that shapes the result."""
        return _identity(self.first, self.second, self.config)

    @property
    def is_done(self) -> bool:
        """Whether the merged model is there, made from these models with these settings."""
        path = self.output_dir / MERGE_FILE
        return path.is_file() and not self._differing(read_json(path))

    @property
    def num_bytes(self) -> int:
        """Bytes that making it takes on the disk, at most.

        Raises:
            ConfigError: The two models don't fit each other.
            CheckpointError: One can't be merged.
        """
        return self._plan.num_bytes

    def run(self) -> Path:
        """Return the folder of the merged model, made unless it is there. Of several processes one makes it.

        Raises:
            ConfigError: The two models don't fit each other.
            CheckpointError: One can't be merged, such as a quantized one, or a file is broken.
            ArtifactError: The folder holds something else, or can't be written.
        """
        if self.is_done:
            LOG.info("using the merged model %s", self.output_dir)
            return self.output_dir
        self._refuse_what_is_there()
        plan = self._plan
        ensure_writable(self.output_dir.parent, OUTPUT_KEY)
        ensure_free_space(self.output_dir.parent, plan.num_bytes, OUTPUT_KEY)
        find_or_make(self.output_dir, self._make, lambda: self.is_done)
        return self.output_dir

    def _make(self) -> None:
        self._refuse_what_is_there()  # again: others may have filled the folder while this process waited for it
        with atomic_folder(self.output_dir) as folder:
            self._plan.write(folder)
            write_json(folder / MERGE_FILE, self._provenance())
        LOG.info("merged %s and %s at ratio %g: %s", *self._names, self.config.ratio, self.output_dir)

    @property
    def _names(self) -> tuple[str, str]:
        return self.first.name, self.second.name

    @cached_property
    def _plan(self) -> _Plan:
        if is_adapter(self.first.folder) and is_adapter(self.second.folder):
            return self._merged_adapters(read_adapter(self.first.folder), read_adapter(self.second.folder))
        kept, added = linear_factors(self.config.ratio)
        if is_adapter(self.first.folder):
            return self._scaled_adapter(read_adapter(self.first.folder), self.second, kept)
        if is_adapter(self.second.folder):
            return self._scaled_adapter(read_adapter(self.second.folder), self.first, added)
        return self._merged_checkpoints()

    @property
    def _blend(self) -> Blend:
        return Blend(self.config.method, self.config.ratio)

    def _merged_checkpoints(self) -> _Plan:
        merge = read_merge(self.first.folder, self.second.folder, self.config.dtype)
        return _Plan(
            merge.num_bytes, lambda folder: write_merge(merge, folder, self._blend, self.config.max_shard_size)
        )

    def _merged_adapters(self, first: Adapter, second: Adapter) -> _Plan:
        check_same_base(first, second)
        check_same_tokens(first.tokenizer_dir, second.tokenizer_dir)

        def write(folder: Path) -> None:
            copy_files(first.folder, folder)
            merge_adapters(first, second, folder, self._blend, self.config.dtype)

        return _Plan(self._adapter_bytes(first, second), write)

    def _scaled_adapter(self, adapter: Adapter, other: NamedModel, factor: float) -> _Plan:
        _require_base(adapter, other)

        def write(folder: Path) -> None:
            copy_files(adapter.folder, folder)
            scale_adapter(adapter, folder, factor, self.config.dtype)

        return _Plan(self._adapter_bytes(adapter), write)

    def _adapter_bytes(self, *adapters: Adapter) -> int:
        files = [adapter.folder / ADAPTER_WEIGHTS for adapter in adapters]
        sizes = sum(path.stat().st_size for path in files if path.is_file())
        return sizes if self.config.dtype == "auto" else 2 * sizes  # from 16 to 32 bits at most

    def _differing(self, found: dict[str, Any]) -> list[str]:
        return [key for key, value in self.identity.items() if found.get(key) != value]

    def _refuse_what_is_there(self) -> None:
        path = self.output_dir / MERGE_FILE
        if not os.path.lexists(self.output_dir):  # a link to what is gone can't be replaced by a folder either
            return
        differing = self._differing(read_json(path)) if path.is_file() else None
        if differing == []:  # another process has just made it
            return
        fault = f"differs in {', '.join(differing)}" if differing else "is missing"
        raise ArtifactError(
            f"{OUTPUT_KEY}: {self.output_dir} is there, but is not the merge asked for: its {MERGE_FILE} {fault}; "
            "delete the folder or name another one"
        )

    def _provenance(self) -> dict[str, Any]:
        return self.identity | {
            "models": list(self._names),
            "folders": [str(self.first.folder), str(self.second.folder)],
            "package_versions": package_versions("transformers", "torch", "peft"),
        }


def merge_models(
    first: str | Path,
    second: str | Path,
    output_dir: str | Path,
    *,
    ratio: float = 0.5,
    method: Literal["slerp", "linear"] = "slerp",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    max_shard_size: str | int = "5GB",
) -> Path:
    """Write the merge of two variants of one model and return its folder, which is written whole or not at all.

    Two full checkpoints give a checkpoint, tensor by tensor; settings, tokenizer, chat template and custom code are
    those of the first. Two LoRA adapters of one base give an adapter, module by module, whose rank is the sum of
    theirs. An adapter and its own base model give the adapter scaled by how far the ratio goes towards it. Beside the
    weights, ``sdft_merge.json`` says what was merged. Called again with the same models and settings, the folder is
    found.

    Args:
        first: Folder or Hub id of a checkpoint or of a LoRA adapter.
        second: The other one.
        output_dir: Folder to make.
        ratio: How far to go from the first model, 0, to the second, 1.
        method: ``slerp`` follows the arc between the two, as :func:`slerp_factors` says; ``linear`` averages.
        dtype: Number format of the merged weights; ``auto`` keeps the first model's. Computed in float32 in any case.
        max_shard_size: Largest weight file of a checkpoint, such as ``500MB`` or ``5GB``, or its number of bytes.

    Raises:
        ConfigError: The two are not variants of one model: layers, settings, names, shapes, tokens or bases differ.
        CheckpointError: One is missing, broken, quantized, or an adapter of another kind than plain LoRA.
        ArtifactError: ``output_dir`` holds something else, can't be written or lacks the space.

    Example:
        >>> merge_models("models/SmolLM2-135M-Instruct", "outputs/trained", "outputs/merged", ratio=0.5)
    """
    named = [NamedModel(str(model), resolve_seed(str(model), key="the model to merge")) for model in (first, second)]
    shard_size = ByteSize(parse_size(max_shard_size))
    config = MergeConfig(
        models=(named[0].name, named[1].name),
        ratio=ratio,
        method=method,
        dtype=dtype,
        max_shard_size=shard_size,
    )
    return MergeTask(named[0], named[1], config, Path(output_dir).expanduser().absolute()).run()


def fingerprinted_folder(first: NamedModel, second: NamedModel, config: MergeConfig, root: Path) -> Path:
    """Return the folder below ``root`` that is named by the ratio and by all else that shapes a merge."""
    return root / f"{config.ratio:g}-{fingerprint(_identity(first, second, config))}"


def _identity(first: NamedModel, second: NamedModel, config: MergeConfig) -> dict[str, Any]:
    models = {"first": model_identity(first.folder), "second": model_identity(second.folder)}
    return models | config.model_dump(mode="json", include={"method", "ratio", "dtype", "max_shard_size"})


def _require_base(adapter: Adapter, model: NamedModel) -> None:
    """Refuse a full checkpoint that an adapter was not trained on: their difference is not an adapter."""
    if model.name == adapter.base_name or str(model.folder.resolve()) == adapter.base:
        return
    base = Path(adapter.base)
    if base.is_dir() and model_identity(base) == model_identity(model.folder):
        return
    raise ConfigError(
        f"{adapter.folder} is a LoRA adapter of {adapter.base_name!r}, and {model.folder} another full checkpoint; "
        "merge the adapter into its base first (axolotl merge-lora), then merge the two checkpoints"
    )
