"""The Axolotl plugin: translates hooks into calls of the stages, and holds no logic of its own."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from axolotl_sdft.config import (
    DynSDPBConfig,
    LayerPruningConfig,
    LogitDistillationConfig,
    MergeConfig,
    RecoveryReportConfig,
    SelfDistillationConfig,
)
from axolotl_sdft.core.errors import MissingExtraError
from axolotl_sdft.integrations.axolotl.blocks import read_blocks
from axolotl_sdft.integrations.axolotl.compat import ending_quietly
from axolotl_sdft.integrations.axolotl.rewriting import rewrite_datasets
from axolotl_sdft.integrations.axolotl.stages import add_model_card, prepare, record_start
from axolotl_sdft.integrations.axolotl.stream import StageCallback, announce_training, log_results

try:
    from axolotl.integrations.base import BasePlugin
except ModuleNotFoundError as err:
    raise MissingExtraError("SDFTPlugin needs Axolotl; install it with: pip install 'axolotl-sdft[axolotl]'") from err


class SDFTArgs(BaseModel):
    """The keys that the plugin adds to Axolotl's configuration."""

    # No model_config here: Axolotl merges this class into its own by inheritance, and a setting would leak.
    layer_pruning: LayerPruningConfig | None = Field(
        None, description="Remove the least important decoder layers of base_model before training."
    )
    self_distillation: SelfDistillationConfig | None = Field(
        None, description="Let the unpruned base_model rewrite the answers of datasets in its own words."
    )
    logit_distillation: LogitDistillationConfig | None = Field(
        None, description="Let the unpruned base_model teach the pruned student, token by token."
    )
    dynsdpb: DynSDPBConfig | None = Field(
        None, description="Distil each mini-batch from the model's own logits of the iteration before."
    )
    merge: MergeConfig | None = Field(None, description="What `axolotl sdft-merge` makes of two trained models.")
    recovery_report: RecoveryReportConfig | None = Field(
        None, description="What `axolotl recovery-report` measures of seed, pruned and trained models."
    )
    sdft_seed_model: str | None = Field(
        None, description="Set by the plugin: the unpruned model, once base_model is the pruned checkpoint."
    )
    sdft_datasets: list[dict[str, Any]] | None = Field(
        None, description="Set by the plugin: what single entries of datasets change about self_distillation."
    )


class SDFTPlugin(BasePlugin):
    """Layer pruning, self-distilled datasets, logit distillation and DynSDPB, each switched on by its block."""

    _is_to_tell = _is_trained = False

    def register(self, cfg: Any) -> None:
        """Check the configuration and swap in the pruned checkpoint: every command that loads a model comes here."""
        with ending_quietly():
            prepare(cfg, self)

    def get_input_args(self) -> str:
        """Return the class that declares the plugin's keys."""
        return "axolotl_sdft.integrations.axolotl.plugin.SDFTArgs"

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """Swap in the distilled datasets; returning None lets Axolotl tokenize them as any other."""
        config = read_blocks(cfg).self_distillation
        if config is not None:
            with ending_quietly():
                rewrite_datasets(cfg, config)

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Record what this training starts from: only training comes here, just before it writes anything."""
        blocks = read_blocks(cfg)
        if blocks.has_stage:
            announce_training(blocks)
            self._is_to_tell = True
        record_start(cfg)

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """Return what hands the figures of the stages to the trackers of a training."""
        return [StageCallback(cfg, trainer)] if read_blocks(cfg).has_stage else []

    def post_train(self, cfg: Any, model: Any) -> None:
        """Note that training came to its end: Axolotl calls this before and after it saves the model."""
        self._is_trained = True

    def post_train_unload(self, cfg: Any) -> None:
        """Say what was made, and what to type next; newer Axolotl comes here after a failure as well."""
        if self._is_to_tell and self._is_trained:
            log_results(cfg)

    def post_lora_merge(self, cfg: Any, adapter_path: str, output_path: str) -> None:
        """Give a merged model its card where Axolotl copied none; Axolotl 0.19 calls no such hook."""
        add_model_card(cfg, Path(output_path))

    def get_trainer_cls(self, cfg: Any) -> Any:
        """Return the trainer of the blocks that distil while it trains, or None to leave Axolotl's own."""
        blocks = read_blocks(cfg)
        if not blocks.trainer_blocks:
            return None
        from axolotl_sdft.training.trainers import axolotl_trainer_class

        return axolotl_trainer_class(*blocks.trainer_blocks)
