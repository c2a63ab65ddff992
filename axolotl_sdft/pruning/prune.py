"""The stage: finds the pruned checkpoint of a seed model, or scores, decides and cuts. torch comes with scoring."""

import dataclasses
import gc
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.artifacts import (
    atomic_folder,
    checkpoint_fingerprint,
    find_or_make,
    fingerprint,
    read_json,
    write_json,
)
from axolotl_sdft.config import LayerPruningConfig, parse_size
from axolotl_sdft.errors import ArtifactError, CheckpointError
from axolotl_sdft.plugins import METRICS, registry
from axolotl_sdft.pruning.architecture import layer_count
from axolotl_sdft.pruning.cut import (
    OUTPUT_KEY,
    PROVENANCE_FILE,
    PRUNED_KEY,
    SCORES_FILE,
    Cut,
    check_room,
    read_config,
    read_cut,
    write_cut,
)
from axolotl_sdft.pruning.plan import PruningPlan, given_plan, plan_pruning, validate_pruning
from axolotl_sdft.pruning.score import Batch, LayerScores, score_layers
from axolotl_sdft.runtime import compute_dtype, local_device

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LOG = logging.getLogger(__name__)

_SEED_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py", "LICENSE*", "NOTICE*")
_NOT_SEED_FILES = ("*/*.safetensors", "consolidated*")  # the same weights again, in other layouts


@dataclass(frozen=True)
class PruningTask:
    """One seed model to be pruned. Creating it checks the settings against its ``config.json``; no weights are read."""

    seed_dir: Path
    seed_name: str
    """The Hub id or folder that the user named."""
    config: LayerPruningConfig
    calibration_fingerprint: str
    """Changes with the calibration text."""
    load_batches: Callable[[], Sequence[Batch]]
    root: Path
    """Folder of the pruned checkpoint's folder, unless ``output_dir`` is set."""

    def __post_init__(self) -> None:
        seed_config = read_config(self.seed_dir)
        if not self.is_input_pruned:
            validate_pruning(self.config, layer_count(seed_config))

    @cached_property
    def is_input_pruned(self) -> bool:
        """Whether the seed is itself a result of these settings, perhaps trained since."""
        return read_config(self.seed_dir).get(PRUNED_KEY) == fingerprint(self._settings)

    @cached_property
    def output_dir(self) -> Path:
        """Absolute path of the pruned checkpoint."""
        if self.config.output_dir is not None:
            return Path(self.config.output_dir).expanduser().absolute()
        name = f"{slug(self.seed_name)}-drop{self._num_dropped}-{fingerprint(self._identity)}"
        return self.root.expanduser().absolute() / name

    @property
    def is_done(self) -> bool:
        """Whether the pruned checkpoint is there, made from this seed with these settings."""
        path = self.output_dir / PROVENANCE_FILE
        return path.is_file() and not _differing(read_json(path), self._identity)

    def plan(self) -> PruningPlan:
        """Return which layers go: from the checkpoint if it is there, else scored now. Nothing is written.

        Raises:
            SdftError: The seed can't be cut, or the settings can't work.
        """
        self._trial_cut()
        if self.config.drop_layers is not None:
            return given_plan(self.config, layer_count(read_config(self.seed_dir)))
        if self.is_done:
            return plan_pruning(LayerScores.from_json(read_json(self.output_dir / SCORES_FILE)), self.config)
        return plan_pruning(self._score(), self.config)

    def run(self) -> Path:
        """Return the folder of the pruned checkpoint, made unless it is there. Of several processes one makes it.

        Raises:
            ArtifactError: The folder holds something else, or can't be written.
            SdftError: The seed can't be cut, or the settings can't work.
        """
        if self.is_done:
            LOG.info("using the pruned checkpoint %s", self.output_dir)
            return self.output_dir
        self._refuse_what_is_there()
        check_room(self._trial_cut(), self.output_dir)
        find_or_make(self.output_dir, self._make, lambda: self.is_done)
        return self.output_dir

    @property
    def _num_dropped(self) -> int:
        return len(self.config.drop_layers) if self.config.drop_layers is not None else self.config.num_layers or 0

    def _trial_cut(self) -> Cut:
        """Return a cut of as many layers; it finds now, without a model, what would stop the real one after scoring."""
        if self.config.drop_layers is None:
            registry().resolve(METRICS, self.config.metric, "layer_pruning.metric")
        return read_cut(self.seed_dir, self.config.drop_layers or range(self._num_dropped))

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """The settings that shape the result."""
        if self.config.drop_layers is not None:
            return {"drop_layers": sorted(self.config.drop_layers), "max_shard_size": self.config.max_shard_size}
        unrelated: dict[str, Any] = {"drop_layers": True, "output_dir": True, "calibration": {"batch_size"}}
        return self.config.model_dump(mode="json", exclude=unrelated)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """All that shapes the result."""
        is_scored = self.config.drop_layers is None
        return {
            "seed": checkpoint_fingerprint(self.seed_dir),
            "settings": self._settings,
            "calibration_text": self.calibration_fingerprint if is_scored else None,
        }

    def _refuse_what_is_there(self) -> None:
        path = self.output_dir / PROVENANCE_FILE
        if not self.output_dir.exists():
            return
        differing = _differing(read_json(path), self._identity) if path.is_file() else None
        if differing == []:  # another process has just made it
            return
        fault = f"differs in {', '.join(differing)}" if differing else "is missing"
        raise ArtifactError(
            f"{OUTPUT_KEY}: {self.output_dir} is there, but is not the checkpoint asked for: its {PROVENANCE_FILE} "
            f"{fault}; delete the folder or name another one"
        )

    def _make(self) -> None:
        scores = self._score() if self.config.drop_layers is None else None
        if scores is not None:
            plan = plan_pruning(scores, self.config)
        else:
            plan = given_plan(self.config, layer_count(read_config(self.seed_dir)))
        cut = read_cut(self.seed_dir, plan.drop_layers)
        cut = dataclasses.replace(cut, config=cut.config | {PRUNED_KEY: fingerprint(self._settings)})
        check_room(cut, self.output_dir)
        with atomic_folder(self.output_dir) as folder:
            max_shard_bytes = parse_size(self.config.max_shard_size)
            write_cut(cut, folder, max_shard_bytes, self._provenance(plan, scores))
            if scores is not None:
                write_json(folder / SCORES_FILE, scores.to_json())
        LOG.info(
            "pruned %s: dropped %s of %d layers (%s), %.1fM parameters before, %.1fM after: %s",
            self.seed_name,
            ", ".join(map(str, plan.drop_layers)),
            plan.num_layers,
            "as named" if plan.cost is None else f"{plan.metric} {plan.cost:.4f}",
            cut.parameters_before / 1e6,
            cut.parameters_after / 1e6,
            self.output_dir,
        )

    def _provenance(self, plan: PruningPlan, scores: LayerScores | None) -> dict[str, Any]:
        return self._identity | {
            "seed_model": self.seed_name,
            "seed_dir": str(self.seed_dir),
            "metric": plan.metric,
            "cost": plan.cost,
            "scores": scores.to_json() if scores is not None else None,
        }

    def _score(self) -> LayerScores:
        batches = self.load_batches()
        device = local_device()
        model = _load_model(self.seed_dir, device)
        scores = score_layers(model, batches, self.config.metric, self.config.token_average)
        del model
        _free_memory(device)
        return scores


def _load_model(seed_dir: Path, device: "torch.device") -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    # An accelerator computes in the checkpoint's own format; a CPU may be slow in it.
    dtype = compute_dtype("auto", device) if device.type == "cpu" else "auto"
    return AutoModelForCausalLM.from_pretrained(seed_dir, dtype=dtype).to(device)


def _free_memory(device: "torch.device") -> None:
    """Give the freed memory back, since training follows in the same process."""
    import torch

    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def _differing(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return the dotted keys of ``wanted`` whose values ``found`` doesn't have."""
    keys: list[str] = []
    for key, value in wanted.items():
        other = found.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            keys += [f"{key}.{inner}" for inner in _differing(other, value) + sorted(other.keys() - value.keys())]
        elif other != value:
            keys.append(key)
    return keys


def slug(seed_name: str) -> str:
    """Return a file name that keeps a Hub id whole, or a folder's own name: ``org/model`` becomes ``org--model``.

    Axolotl looks for words such as ``llama`` in the name of the base model.
    """
    folder = Path(seed_name).expanduser()
    name = folder.resolve().name if folder.is_dir() else seed_name
    return re.sub(r"[^\w.-]+", "-", name.strip("/").replace("/", "--")).strip(".-") or "model"


def resolve_seed(base_model: str, revision: str | None = None) -> Path:
    """Return the folder of a model: the one named, or the download of a Hub id.

    Raises:
        CheckpointError: There is neither; the message names ``base_model``.
    """
    folder = Path(base_model).expanduser()
    if folder.is_dir():
        return folder.absolute()
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(
            base_model,
            revision=revision,
            allow_patterns=list(_SEED_FILES),
            ignore_patterns=list(_NOT_SEED_FILES),
        )
    except (OSError, ValueError) as err:  # huggingface_hub's own errors inherit one of the two
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        at = f" (revision {revision!r})" if revision else ""
        raise CheckpointError(
            f"base_model is {base_model!r}{at}, which is no folder here and can't be had from the Hub: {reason}. Check "
            "the name, the connection and HF_HUB_OFFLINE"
        ) from err
    return Path(path)
