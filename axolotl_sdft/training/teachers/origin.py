"""Which seed model a student comes from, and what the pruning did to it. No torch is imported here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_sdft.core.artifacts import read_json
from axolotl_sdft.core.errors import CheckpointError, SdftError
from axolotl_sdft.core.identity import model_identity
from axolotl_sdft.core.model_folder import read_config, resolve_seed
from axolotl_sdft.core.trained_on import PROVENANCE_FILE, PRUNED_KEY


@dataclass(frozen=True)
class SeedOrigin:
    """The seed model of a student, and what tells the two apart."""

    seed_dir: Path
    """Folder of the unpruned checkpoint."""

    num_layers: int
    """Layers of the seed model."""

    drop_layers: tuple[int, ...]
    """The layers that the student lacks, by their number in the seed model."""

    patched: tuple[tuple[int, str], ...] = ()
    """Modules that the pruning changed: the layer's number in the seed model, and the path within the layer, such as
    ``mlp.down_proj``."""

    @property
    def kept(self) -> tuple[int, ...]:
        """The layers that the student has, by their number in the seed model."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.drop_layers)

    @property
    def needed(self) -> tuple[int, ...]:
        """The layers of which something has to be read from the seed checkpoint."""
        return tuple(sorted({*self.drop_layers, *(layer for layer, _ in self.patched)}))


def find_origin(student_dir: str | Path, seed_model: str | Path | None = None) -> SeedOrigin | None:
    """Return which seed model a student was pruned from; None where it was not pruned.

    Args:
        student_dir: The checkpoint that training starts from, or a Hub id.
        seed_model: Where the seed model is now; what the pruned checkpoint's provenance says when unset.

    Raises:
        CheckpointError: The checkpoint is pruned, and its provenance, or the seed model, is gone or another one.
    """
    folder = Path(student_dir).expanduser()
    provenance_file = folder / PROVENANCE_FILE
    if provenance_file.is_file():
        provenance = read_json(provenance_file)
        seed_dir = _seed_dir(folder, provenance, seed_model)
        _require_same_seed(folder, seed_dir, provenance)
        return SeedOrigin(
            seed_dir, provenance["num_layers_before"], tuple(provenance["drop_layers"]), tuple(_patched(provenance))
        )
    if (folder / "config.json").is_file() and PRUNED_KEY in read_config(folder):
        raise CheckpointError(
            f"logit_distillation needs the seed model, but {folder}, which was pruned, lacks {PROVENANCE_FILE}, so "
            "which layers were removed can't be told; start from the folder that axolotl prune-layers wrote, or remove "
            "the logit_distillation block"
        )
    return None


def _seed_dir(folder: Path, provenance: Mapping[str, Any], seed_model: str | Path | None) -> Path:
    recorded = Path(str(provenance.get("seed_dir") or provenance.get("seed_model"))).expanduser()
    if seed_model is None and recorded.is_dir():
        return recorded.absolute()
    wanted = str(seed_model or provenance.get("seed_model"))
    try:
        return resolve_seed(wanted)
    except SdftError as err:
        raise CheckpointError(
            f"logit_distillation needs the seed model that {folder} was pruned from, {wanted}, which is gone or was "
            f"moved: {err}. Put it back, name its place as base_model beside the layer_pruning block (seed_model of "
            "the trainer in Python), or remove the logit_distillation block"
        ) from err


def _require_same_seed(folder: Path, seed_dir: Path, provenance: Mapping[str, Any]) -> None:
    expected = provenance.get("seed")
    if expected is None or model_identity(seed_dir) == expected:
        return
    raise CheckpointError(
        f"logit_distillation needs the seed model that {folder} was pruned from, but {seed_dir} holds another model "
        "by now; put the former one back, or prune this one (axolotl prune-layers)"
    )


def _patched(provenance: Mapping[str, Any]) -> list[tuple[int, str]]:
    cuts = (provenance.get("patch") or {}).get("cuts") or []
    return [(cut["layer"], cut["module"]) for cut in cuts if cut.get("applied")]
