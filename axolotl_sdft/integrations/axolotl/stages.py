"""Runs the stages on an Axolotl configuration: what each hook and each command calls."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import BLOCKS, LayerPruningConfig, LogitDistillationConfig, SelfDistillationConfig
from axolotl_sdft.core.artifacts import DEFAULT_ROOT, ensure_writable, fingerprint, read_json
from axolotl_sdft.core.cards import CARD_FILE
from axolotl_sdft.core.errors import ConfigError, SdftError
from axolotl_sdft.core.model_folder import ADAPTER_CONFIG, holds_model, is_adapter
from axolotl_sdft.core.runtime import is_launched, rank
from axolotl_sdft.core.trained_on import PROVENANCE_FILE, moved_base, record_training
from axolotl_sdft.core.training_record import recorded_datasets
from axolotl_sdft.integrations.axolotl import compat
from axolotl_sdft.integrations.axolotl.blocks import (
    SEED_KEY,
    Blocks,
    base_dir_of,
    empty_blocks,
    plain,
    pruned_before,
    read_blocks,
    seed_dir_of,
    seed_of,
)
from axolotl_sdft.integrations.axolotl.calibration import calibration_sources, general_text, source_texts
from axolotl_sdft.integrations.axolotl.datasets import (
    check_overrides,
    keep_caches_out,
    rewritten_entry,
    take_out_overrides,
)
from axolotl_sdft.integrations.axolotl.held_out import is_split, rows_folder, set_missing_seed, split_off
from axolotl_sdft.integrations.axolotl.layer_numbers import check_layer_numbers, translate_layer_numbers
from axolotl_sdft.integrations.axolotl.pictures import check_pictures
from axolotl_sdft.integrations.axolotl.pruned_base import (
    finished_base,
    is_pruned_already,
    output_dir_of,
    recorded_base,
    refuse_other_base,
    refuse_other_start,
    trained_dir_of,
)
from axolotl_sdft.integrations.axolotl.rewriting import check_distillation, rewrite_datasets
from axolotl_sdft.integrations.axolotl.rules import check_rules
from axolotl_sdft.integrations.axolotl.stream import PRUNING, announce
from axolotl_sdft.integrations.axolotl.student_rules import check_student
from axolotl_sdft.plugins.registry import METRICS, registry
from axolotl_sdft.pruning.checkpoint.tensor_files import refuse_damaged_checkpoint
from axolotl_sdft.pruning.scoring.scores import metric_needs_text

if TYPE_CHECKING:
    from axolotl_sdft.pruning.spec import PruningSpec

LOG = logging.getLogger(__name__)

_TEXT_KEYS_OF_BASE_MODEL = ("tokenizer_config", "processor_config")


def prepare(cfg: Any, own_plugin: object) -> None:
    """Check a raw configuration and point its ``base_model`` to the pruned checkpoint.

    Training makes the checkpoint unless it is there. Any other command takes the one that the trained model started
    from, and makes nothing. Afterwards the seed model is known as ``cfg.sdft_seed_model``, and what single datasets
    change about ``self_distillation`` as ``cfg.sdft_datasets``. Can be called again on the same configuration.
    """
    compat.show_log_lines()
    _refuse_swallowed()
    blocks = read_blocks(cfg)
    check_overrides(cfg)
    take_out_overrides(cfg)
    if not blocks.is_empty and set_missing_seed(cfg) and rank() == 0:
        LOG.info(
            "seed is not set, so it is set to %d: the rows that val_set_size (%s) splits off are then the same for "
            "every command, and a recovery report measures on rows that were not trained on",
            *(cfg.seed, cfg.val_set_size),
        )
    if cfg.get(SEED_KEY):  # a Ray worker gets the configuration that its driver has prepared
        if blocks.layer_pruning is not None and not (Path(cfg.base_model) / PROVENANCE_FILE).is_file():
            raise ConfigError(
                f"{SEED_KEY} is {cfg[SEED_KEY]!r}, but the plugin sets this key itself, once base_model is the pruned "
                f"checkpoint, which {cfg.base_model} is not; remove the key"
            )
        return
    for empty in empty_blocks(cfg):
        LOG.warning("%s", empty)
    if not blocks.has_stage:
        LOG.warning("axolotl_sdft.SDFTPlugin is listed, but none of its blocks is set; it does nothing")
    else:
        check_rules(cfg, blocks, compat.other_trainers(cfg, own_plugin) if blocks.trainer_blocks else {})
    if compat.makes_artifacts(cfg):
        _prepare_training(cfg, blocks)
        if cfg.get("use_ray"):
            _name_folders_in_full(cfg, blocks)
    else:
        _prepare_use(cfg, blocks, compat.running_command() or "inference")


def _name_folders_in_full(cfg: Any, blocks: Blocks) -> None:
    """Let Ray's workers, each of which runs in a folder of Ray's own, find what relative paths mean to the driver."""
    if blocks.self_distillation is not None:
        cfg["self_distillation"]["output_dir"] = str(blocks.self_distillation.root)
    seed = cfg.get(SEED_KEY)
    if seed and Path(seed).is_dir():
        cfg[SEED_KEY] = str(Path(seed).absolute())
    output_dir = cfg.get("output_dir") or "./model-out"
    if not Path(output_dir).is_absolute() and not is_launched():  # a worker would name its own folder
        LOG.warning(
            "use_ray is set and output_dir is %s: Ray's workers run in a folder of its session, and the trained model "
            "would be written there; give the whole path, such as %s",
            *(output_dir, output_dir_of(cfg)),
        )


def _refuse_swallowed() -> None:
    swallowed = compat.swallowed_options(BLOCKS)
    if swallowed:
        command = compat.running_command()
        raise ConfigError(
            f"{swallowed[0]} stands on the command line, but axolotl {command} takes no keys of the plugin there, and "
            "would leave it unread; write it into the YAML file. The plugin's own commands, such as axolotl "
            "prune-layers, take such options"
        )


def _prepare_training(cfg: Any, blocks: Blocks) -> None:
    if blocks.has_stage and not cfg.get("adapter") and is_adapter(output_dir_of(cfg)) and rank() == 0:
        LOG.warning(
            "output_dir (%s) holds the adapter of an earlier training, but this one trains the whole model: "
            "transformers and the commands after training would take the folder for that adapter; delete %s there, or "
            "name another output_dir",
            *(output_dir_of(cfg), ADAPTER_CONFIG),
        )
    if pruned_before(cfg) is not None:
        LOG.info(
            "base_model %s was pruned from %s, which is the seed model of this run", cfg.base_model, seed_of(cfg)[0]
        )
    if blocks.dynsdpb is not None:
        check_pictures(cfg)
    if blocks.self_distillation is not None:
        check_distillation(cfg)
    if blocks.logit_distillation is not None:
        check_student(cfg, blocks.logit_distillation, base_dir_of(cfg))
    if blocks.layer_pruning is not None:
        prune_base_model(cfg, blocks.layer_pruning)
    else:
        refuse_other_start(cfg, None)
    if blocks.logit_distillation is not None:
        _check_teacher(cfg, blocks.logit_distillation)


def _check_teacher(cfg: Any, config: LogitDistillationConfig) -> None:
    """Refuse a seed model that is gone, or that can't be the teacher, before rows are rewritten. Loads nothing."""
    if config.alpha == 0:
        return
    from axolotl_sdft.training.teachers.origin import find_origin

    named = config.seed_model or (seed_dir_of(cfg) if cfg.get(SEED_KEY) else None)
    origin = find_origin(base_dir_of(cfg), named)
    if config.teacher == "shared" and origin is not None:
        from axolotl_sdft.training.teachers.loading import plan_layers

        plan_layers(origin)


def _prepare_use(cfg: Any, blocks: Blocks, command: str) -> None:
    if command == "quantize":
        _refuse_moved_adapter(cfg)
    if command in ("inference", "evaluate") and rank() == 0:
        _warn_of_model_that_is_not_read(cfg, command)
    take_pruned_base(cfg, blocks.layer_pruning, command)
    if blocks.self_distillation is not None and command == "evaluate":  # it never calls the hook that rewrites
        _take_rewritten_rows(cfg, blocks.self_distillation)


def _warn_of_model_that_is_not_read(cfg: Any, command: str) -> None:
    """Say where Axolotl takes the model as it was before training, since nothing names the trained one."""
    folder, base = output_dir_of(cfg), Path(str(cfg.base_model)).expanduser().absolute()
    if is_adapter(folder):
        option, is_named = "--lora-model-dir", bool(cfg.get("lora_model_dir"))
    else:
        option, is_named = "--base-model", folder in (base, *base.parents)
    if holds_model(folder) and not is_named:
        LOG.warning(
            "axolotl %s does not read what was trained into output_dir, but takes the model as it was before training; "
            "to have the trained one, add %s %s",
            *(command, option, cfg.get("output_dir") or "./model-out"),
        )


def _refuse_moved_adapter(cfg: Any) -> None:
    """Refuse to let ``axolotl quantize`` load an adapter that it would look for the base of at an old place."""
    folder = output_dir_of(cfg)
    if compat.option("base_model") or moved_base(folder) is None:
        return
    raise ConfigError(
        f"output_dir ({folder}) holds an adapter whose base model was moved since; run axolotl merge-lora first, then "
        f"axolotl quantize with --base-model {folder / 'merged'}"
    )


def _take_rewritten_rows(cfg: Any, config: SelfDistillationConfig) -> None:
    """Point ``datasets`` to the rewritten rows if they are there; rewrites nothing."""
    try:
        rewrite_datasets(cfg, config, only_if_done=True)
    except SdftError as err:  # such as data or a seed model that are gone
        is_taken = _take_recorded_rows(cfg, num_added=int(config.general_rows > 0))
        what = "those that were trained on are taken" if is_taken else "they are evaluated as datasets has them"
        LOG.warning("the rewritten rows can't be told (%s); %s", err, what)


def _take_recorded_rows(cfg: Any, num_added: int) -> bool:
    """Point ``datasets`` to the folders that the trained model was trained on; tell whether all of them are there.

    Args:
        cfg: The raw configuration.
        num_added: Datasets that the plugin has added behind those of the configuration. They were only trained on, and
            are left out.
    """
    model_dir = trained_dir_of(cfg)[1]
    train_dirs = recorded_datasets(model_dir)
    test_dirs = [path for path in recorded_datasets(model_dir, "test_datasets") if path is not None]
    entries = list(cfg.get("datasets") or [])
    if len(train_dirs) != len(entries) + num_added:
        return False
    folders = [folder for folder in (*train_dirs, *test_dirs) if folder is not None]
    if not folders or len(test_dirs) not in (0, len(entries)) or not all(folder.is_dir() for folder in folders):
        return False
    cfg.datasets = [
        entry if folder is None else rewritten_entry(entry, folder)
        for entry, folder in zip(entries, train_dirs[: len(entries)], strict=True)
    ]
    if test_dirs:
        tests = [rewritten_entry(entry, folder) for entry, folder in zip(entries, test_dirs, strict=True)]
        cfg.test_datasets, cfg.val_set_size = tests, 0
    keep_caches_out([*cfg.datasets, *(cfg.get("test_datasets") or [])])
    return True


def prune_base_model(cfg: Any, config: LayerPruningConfig) -> None:
    """Point ``base_model`` to the pruned checkpoint, made unless it is there.

    Raises:
        ConfigError: Training is to go on from a model that was trained on another checkpoint.
    """
    from axolotl_sdft.pruning.pipeline import run_pruning

    spec = pruning_spec(cfg, config)
    blocks = read_blocks(cfg)
    if spec.is_input_pruned:
        announce(blocks, PRUNING, "nothing to do")
        _say_pruned_already(cfg)
        refuse_other_start(cfg, None)
        return
    announce(blocks, PRUNING, f"reused: {spec.output_dir}" if spec.is_done else f"into {spec.output_dir}")
    refuse_other_start(cfg, spec)
    check_layer_numbers(cfg, spec.counted_config, spec.seed_dir)
    if not spec.is_done:
        compat.validate_early(cfg)
        ensure_writable(output_dir_of(cfg), "output_dir")  # where Axolotl opens its log, but only after this
    pruned_dir = run_pruning(spec)
    provenance = read_json(pruned_dir / PROVENANCE_FILE)
    translate_layer_numbers(cfg, provenance["drop_layers"], provenance["num_layers_before"])
    _swap_base_model(cfg, pruned_dir)


def take_pruned_base(cfg: Any, config: LayerPruningConfig | None, command: str) -> None:
    """Point ``base_model`` to the checkpoint that the trained model started from. Makes nothing.

    Raises:
        SdftError: The configuration says otherwise by now, or the checkpoint is gone or damaged; or nothing is trained
            yet, and the checkpoint that the configuration asks for is not there.
    """
    is_adapter_loaded = command == "merge-lora" or bool(cfg.get("lora_model_dir"))
    if config is None:
        refuse_other_base(cfg, is_adapter_loaded)
        return
    if is_pruned_already(cfg.base_model, config):
        refuse_other_base(cfg, is_adapter_loaded)
        _say_pruned_already(cfg)
        return
    base = recorded_base(cfg, config, *trained_dir_of(cfg))
    if base is None:
        base = finished_base(cfg, lambda: pruning_spec(cfg, config), command)
    refuse_damaged_checkpoint(base)
    LOG.info("using the pruned checkpoint %s", base)
    _swap_base_model(cfg, base)


def _say_pruned_already(cfg: Any) -> None:
    LOG.warning(
        "base_model %s has been pruned with these settings already; it is used as it is, also to rewrite answers",
        cfg.base_model,
    )


def _swap_base_model(cfg: Any, pruned_dir: Path) -> None:
    seed = cfg.base_model
    if cfg.get("base_model_config"):  # the seed model's own settings under any name, which have too many layers
        cfg["base_model_config"] = str(pruned_dir)
    for key in _TEXT_KEYS_OF_BASE_MODEL:
        if cfg.get(key) == seed:
            cfg[key] = str(pruned_dir)
    cfg[SEED_KEY] = seed
    cfg.base_model = str(pruned_dir)


def record_start(cfg: Any) -> None:
    """Say in ``output_dir`` which pruned checkpoint and which datasets a training starts from; on the main rank.

    Raises:
        ArtifactError: It can't be written there.
    """
    if rank() != 0:
        return
    pruned_dir = Path(cfg.base_model) if cfg.get(SEED_KEY) else None
    datasets, test_datasets = (
        [_folder_of(entry) for entry in cfg.get(key) or []] for key in ("datasets", "test_datasets")
    )
    record_training(
        output_dir_of(cfg),
        pruned_dir,
        revision=cfg.get("revision_of_model"),
        datasets=datasets,
        test_datasets=[path for path in test_datasets if path is not None],
        held_out=_held_out_entries(cfg),
    )


def _held_out_entries(cfg: Any) -> list[dict[str, Any]]:
    """Return entries that read the rows which this training holds out, written into folders unless they are there."""
    handed_over = [plain(entry) for entry in cfg.get("test_datasets") or [] if _folder_of(entry) is not None]
    if handed_over or not is_split(cfg) or cfg.get("streaming") or read_blocks(cfg).is_empty:
        return handed_over
    root = Path(DEFAULT_ROOT).absolute()
    try:
        return [plain(rewritten_entry(entry, rows_folder(rows, root, "held-out"))) for _, entry, rows in split_off(cfg)]
    except (SdftError, OSError) as err:
        LOG.warning(
            "the rows that val_set_size splits off can't be recorded (%s); a recovery report draws them anew", err
        )
        return []


def add_model_card(cfg: Any, merged_dir: Path) -> None:
    """Copy the pruned checkpoint's card into the folder of a merged model that has none."""
    card = Path(cfg.base_model) / CARD_FILE
    if cfg.get(SEED_KEY) and card.is_file() and not (merged_dir / CARD_FILE).exists():
        shutil.copyfile(card, merged_dir / CARD_FILE)


def _folder_of(entry: Any) -> Path | None:
    """Return the folder of rows that the plugin has put in the place of an entry; None where it left the entry."""
    path = Path(str(entry.get("path")))
    return path if path.is_absolute() and (path / "dataset_info.json").is_file() else None


def pruning_spec(cfg: Any, config: LayerPruningConfig) -> "PruningSpec":
    """Return the pruning that a configuration asks for. The seed model's config is checked; no weights are loaded."""
    from axolotl_sdft.pruning.spec import PruningSpec

    registry().resolve(METRICS, config.metric, "layer_pruning.metric")
    calibration = config.calibration
    scores_text = config.drop_layers is None and metric_needs_text(config.metric)
    reads_text = scores_text or config.patch != "none"
    seed_dir = seed_dir_of(cfg)
    sources = calibration_sources(cfg, calibration, seed_dir) if reads_text else []
    trust_remote_code = bool(cfg.get("trust_remote_code"))

    def load_batches() -> Any:
        from axolotl_sdft.pruning.scoring.loading import encode_texts

        if not sources:  # the calibration is general prompts alone
            return []
        texts = source_texts(cfg, sources, seed_dir)
        return encode_texts(texts, seed_dir, calibration, trust_remote_code=trust_remote_code)

    return PruningSpec(
        seed_dir=seed_dir,
        seed_name=cfg.base_model,
        config=config,
        calibration_fingerprint=fingerprint([source.identity for source in sources]),
        load_batches=load_batches,
        general_text=general_text(cfg, config, seed_dir),
        root=Path(DEFAULT_ROOT).absolute(),
        trust_remote_code=trust_remote_code,
    )
