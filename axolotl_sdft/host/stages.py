"""Runs the stages on an Axolotl configuration: what each hook and each command calls."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.artifacts import DEFAULT_ROOT, fingerprint, read_json
from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.host import compat
from axolotl_sdft.host.blocks import SEED_KEY, read_blocks
from axolotl_sdft.host.calibration import calibration_entries, calibration_texts
from axolotl_sdft.host.datasets import entry_fingerprint
from axolotl_sdft.host.layer_numbers import check_layer_numbers, translate_layer_numbers
from axolotl_sdft.host.overrides import check_overrides, take_out_overrides
from axolotl_sdft.host.rewriting import check_distillation, rewrite_datasets
from axolotl_sdft.host.rules import check_rules
from axolotl_sdft.host.seed_model import seed_dir_of
from axolotl_sdft.plugins import METRICS, registry
from axolotl_sdft.pruning.cut import PROVENANCE_FILE
from axolotl_sdft.pruning.score import metric_needs_text

if TYPE_CHECKING:
    from axolotl_sdft.pruning.prune import PruningTask

LOG = logging.getLogger(__name__)

_CONFIG_KEYS_OF_BASE_MODEL = ("base_model_config", "tokenizer_config", "processor_config")


def prepare(cfg: Any, own_plugin: object) -> None:
    """Check a raw configuration and point its ``base_model`` to the pruned checkpoint, made unless it is there.

    Afterwards the seed model is known as ``cfg.sdft_seed_model``, and what single datasets change about
    ``self_distillation`` as ``cfg.sdft_datasets``. Can be called again on the same configuration.
    """
    compat.show_log_lines()
    blocks = read_blocks(cfg)
    check_overrides(cfg)
    take_out_overrides(cfg)
    if cfg.get(SEED_KEY):  # a Ray worker gets the configuration that its driver has prepared
        return
    if not blocks.has_stage:
        LOG.warning("axolotl_sdft.SDFTPlugin is listed, but none of its blocks is set; it does nothing")
        return
    check_rules(cfg, blocks, compat.other_trainers(cfg, own_plugin) if blocks.dynsdpb else {})
    command = compat.running_command()
    if blocks.self_distillation is not None and command in ("train", "preprocess", None):
        check_distillation(cfg)
    if blocks.layer_pruning is not None:
        prune_base_model(cfg, blocks.layer_pruning)
    if blocks.self_distillation is not None and command == "evaluate":  # it never calls the hook that rewrites
        rewrite_datasets(cfg, blocks.self_distillation, only_if_done=True)


def prune_base_model(cfg: Any, config: LayerPruningConfig) -> None:
    """Point ``base_model`` to the pruned checkpoint, made unless it is there."""
    task = pruning_task(cfg, config)
    if task.is_input_pruned:
        LOG.warning(
            "base_model %s has been pruned with these settings already; it is used as it is, also to rewrite answers",
            cfg.base_model,
        )
        return
    check_layer_numbers(cfg, config, task.seed_dir)
    if not task.is_done:
        compat.validate_early(cfg)
    pruned = str(task.run())
    provenance = read_json(Path(pruned) / PROVENANCE_FILE)
    translate_layer_numbers(cfg, provenance["drop_layers"], provenance["num_layers_before"])
    seed = cfg.base_model
    for key in _CONFIG_KEYS_OF_BASE_MODEL:
        if cfg.get(key) == seed:
            cfg[key] = pruned
    cfg[SEED_KEY] = seed
    cfg.base_model = pruned


def pruning_task(cfg: Any, config: LayerPruningConfig) -> "PruningTask":
    """Return the pruning that a configuration asks for. The seed's config is checked; no weights are loaded."""
    from axolotl_sdft.pruning.prune import PruningTask

    registry().resolve(METRICS, config.metric, "layer_pruning.metric")
    calibration = config.calibration
    reads_text = config.drop_layers is None and metric_needs_text(config.metric)
    entries = calibration_entries(cfg, calibration) if reads_text else []
    seed_dir = seed_dir_of(cfg)
    trust_remote_code = bool(cfg.get("trust_remote_code"))

    def load_batches() -> Any:
        from axolotl_sdft.pruning.calibration import encode_texts

        texts = calibration_texts(cfg, entries, calibration, seed_dir)
        return encode_texts(texts, seed_dir, calibration, trust_remote_code=trust_remote_code)

    return PruningTask(
        seed_dir=seed_dir,
        seed_name=cfg.base_model,
        config=config,
        calibration_fingerprint=fingerprint([entry_fingerprint(entry) for _, entry in entries]),
        load_batches=load_batches,
        root=Path(DEFAULT_ROOT).absolute(),
        trust_remote_code=trust_remote_code,
    )
