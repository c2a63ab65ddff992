"""Fits the patch of a cut as the settings of layer pruning ask for. torch comes with the call."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.errors import CheckpointError, error_context
from axolotl_sdft.core.model_folder import read_config
from axolotl_sdft.pruning.patching.apply import NamedTensor, stored_projection
from axolotl_sdft.pruning.patching.record import LayerPatch, Projection, UnpatchableError, bare_patch
from axolotl_sdft.pruning.scoring.loading import MEMORY_SHORTAGE, check_loading, load_for_scoring
from axolotl_sdft.pruning.scoring.scores import Batch

if TYPE_CHECKING:
    from pathlib import Path


def fitted_patch(
    seed_dir: "Path",
    drop_layers: Sequence[int],
    stored: tuple[Sequence[NamedTensor], str],
    config: LayerPruningConfig,
    batches: Sequence[Batch],
    trust_remote_code: bool = False,
) -> LayerPatch:
    """Load the seed model, fit the patch of a cut, and free the model. What can't be patched stays bare, with a reason.

    Args:
        seed_dir: Folder of the seed model.
        drop_layers: The layers that go.
        stored: The tensors that stay, and what comes before the layer number in their old names.
        config: How the model is loaded.
        batches: Calibration text.
        trust_remote_code: Run code that comes with the seed model.

    Raises:
        DatasetError: There is no text.
        CheckpointError: Memory ran out.
    """
    from axolotl_sdft.inference.forwarding import free_memory
    from axolotl_sdft.pruning.patching.fit import fit_patch

    def why_not_stored(projection: Projection) -> str | None:
        try:
            stored_projection(*stored, projection)
        except UnpatchableError as err:
            return str(err)
        return None

    check_loading(read_config(seed_dir), config)
    with error_context(MEMORY_SHORTAGE):
        try:
            model = load_for_scoring(seed_dir, config, trust_remote_code)
            return fit_patch(model, batches, drop_layers, refuse=why_not_stored)
        except CheckpointError as err:  # the bare cut needs no model that can be loaded and run
            return bare_patch(drop_layers, str(err))
        finally:
            model = None
            free_memory()
