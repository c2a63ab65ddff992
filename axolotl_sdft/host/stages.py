"""Runs the stages on an Axolotl configuration: what each hook and each command calls."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.artifacts import DEFAULT_ROOT, ensure_writable, fingerprint
from axolotl_sdft.config import LayerPruningConfig, SelfDistillationConfig
from axolotl_sdft.host import compat
from axolotl_sdft.host.blocks import SEED_KEY, Blocks, read_blocks
from axolotl_sdft.host.calibration import calibration_entries, calibration_texts
from axolotl_sdft.host.datasets import dataset_entries, entry_fingerprint, load_rows, rewritten_entry
from axolotl_sdft.host.rules import check_rules
from axolotl_sdft.plugins import METRICS, registry

if TYPE_CHECKING:
    from axolotl_sdft.distillation.transform import DistillationTask
    from axolotl_sdft.pruning.prune import PruningTask

LOG = logging.getLogger(__name__)

_CONFIG_KEYS_OF_BASE_MODEL = ("base_model_config", "tokenizer_config", "processor_config")


def prepare(cfg: Any, own_plugin: object) -> None:
    """Check a raw configuration and point its ``base_model`` to the pruned checkpoint, made unless it is there.

    Afterwards the seed model is known as ``cfg.sdft_seed_model``. Can be called again on the same configuration.
    """
    compat.show_log_lines()
    blocks = read_blocks(cfg)
    if cfg.get(SEED_KEY):  # a Ray worker gets the configuration that its driver has prepared
        return
    if blocks == Blocks(None, None, None):
        LOG.warning("axolotl_sdft.SDFTPlugin is listed, but none of its blocks is set; it does nothing")
        return
    check_rules(cfg, blocks, compat.other_trainers(cfg, own_plugin) if blocks.dynsdpb else {})
    command = compat.running_command()
    if blocks.self_distillation is not None and command in ("train", "preprocess", None):
        check_distillation(cfg, blocks.self_distillation)
    if blocks.layer_pruning is not None:
        prune_base_model(cfg, blocks.layer_pruning)
    if blocks.self_distillation is not None and command == "evaluate":  # it never calls the hook that rewrites
        rewrite_datasets(cfg, blocks.self_distillation, only_if_done=True)


def seed_of(cfg: Any) -> tuple[str, str | None]:
    """Return the seed model and its revision, whether or not ``base_model`` is the pruned checkpoint by now."""
    return cfg.get(SEED_KEY) or cfg.base_model, cfg.get("revision_of_model")


def seed_dir_of(cfg: Any) -> Path:
    """Return the folder of the seed model; a Hub id is downloaded."""
    from axolotl_sdft.pruning.prune import resolve_seed

    return resolve_seed(*seed_of(cfg))


def prune_base_model(cfg: Any, config: LayerPruningConfig) -> None:
    """Point ``base_model`` to the pruned checkpoint, made unless it is there."""
    task = pruning_task(cfg, config)
    if task.is_input_pruned:
        LOG.warning(
            "base_model %s has been pruned with these settings already; it is used as it is, also to rewrite answers",
            cfg.base_model,
        )
        return
    if not task.is_done:
        compat.validate_early(cfg)
    pruned = str(task.run())
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
    entries = calibration_entries(cfg, calibration) if config.drop_layers is None else []
    seed_dir = seed_dir_of(cfg)

    def load_batches() -> Any:
        from axolotl_sdft.pruning.calibration import encode_texts

        return encode_texts(calibration_texts(cfg, entries, calibration, seed_dir), seed_dir, calibration)

    return PruningTask(
        seed_dir=seed_dir,
        seed_name=cfg.base_model,
        config=config,
        calibration_fingerprint=fingerprint([entry_fingerprint(entry) for _, entry in entries]),
        load_batches=load_batches,
        root=Path(DEFAULT_ROOT).absolute(),
    )


def check_distillation(cfg: Any, config: SelfDistillationConfig) -> None:
    """Refuse what would stop the rewriting later: names, datasets, columns, a seed without chat template."""
    tasks = distillation_tasks(cfg, config)
    ensure_writable(tasks[0][1].root, "self_distillation.output_dir")
    tasks[0][1].backend_factory(tasks[0][1].seed_dir, config.generation).check()


def rewrite_datasets(cfg: Any, config: SelfDistillationConfig, only_if_done: bool = False) -> list[Path]:
    """Point ``datasets`` to distilled ones, made unless they are there, and return their folders.

    With ``only_if_done``, nothing is made: datasets that were never rewritten stay as they are.
    """
    entries, folders = [], []
    for entry, task in distillation_tasks(cfg, config):
        if only_if_done and not task.is_done:
            LOG.warning("%s has not been rewritten yet; using its original rows", task.where)
            entries.append(entry)
            continue
        folders.append(task.run())
        entries.append(rewritten_entry(entry, folders[-1]))
    cfg.datasets = entries
    return folders


def distillation_tasks(cfg: Any, config: SelfDistillationConfig) -> "list[tuple[Any, DistillationTask]]":
    """Return each dataset entry with its rewriting task. Settings and columns are checked; no model is loaded."""
    from axolotl_sdft.distillation.transform import DistillationTask

    seed_dir = seed_dir_of(cfg)
    return [
        (entry, DistillationTask(load_rows(cfg, entry, where), config, seed_dir, entry, seed_of(cfg)[0], where))
        for where, entry in dataset_entries(cfg)
    ]
