"""Merges what an Axolotl configuration names, once or over a sweep of ratios, for the command line."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import MergeConfig, RecoveryReportConfig, SpeedConfig
from axolotl_sdft.core.artifacts import ensure_free_space, ensure_writable
from axolotl_sdft.core.errors import CheckpointError, ConfigError, error_context, keyed
from axolotl_sdft.core.model_folder import holds_model, is_adapter, resolve_seed
from axolotl_sdft.evaluation.merging.merge import OUTPUT_KEY, MergeTask, NamedModel, fingerprinted_folder
from axolotl_sdft.evaluation.merging.sweep import Candidate, choice_lines, choose, sweep_lines
from axolotl_sdft.evaluation.report.headline import SEED
from axolotl_sdft.evaluation.spec import ReportedModel
from axolotl_sdft.integrations.axolotl.blocks import base_dir_of, missing_chat_template, read_blocks, seed_dir_of
from axolotl_sdft.integrations.axolotl.pruned_base import is_pruned_already, output_dir_of, pruned_dir_of
from axolotl_sdft.integrations.axolotl.recovery import held_out, template_arguments
from axolotl_sdft.integrations.axolotl.rules import check_plugin, check_rules
from axolotl_sdft.integrations.axolotl.stages import pruning_spec

if TYPE_CHECKING:
    from axolotl_sdft.evaluation.spec import RecoverySpec

_DEFAULT_FOLDER = "sdft_merged"
_MODELS_KEY = "merge.models"
_MODELS_KEYED = keyed(lambda err: f"{_MODELS_KEY}: " if isinstance(err, ConfigError | CheckpointError) else "")
"""Lets errors about the two models begin with the key that names them."""


def merge_alone(cfg: Any, ratio: float | None = None) -> Iterator[str]:
    """Merge the two models of a configuration, unless that was done, and yield the folder and how to use it.

    Args:
        cfg: The raw configuration.
        ratio: Takes the place of ``merge.ratio``.

    Raises:
        SdftError: There is no ``merge`` block, or the models can't be merged.
    """
    config = _merge_config(cfg)
    if ratio is not None:
        config = config.model_copy(update={"ratio": ratio})
    first, second = named_models(cfg, config)
    task = MergeTask(first, second, config, _output_dir(cfg, config))
    with error_context(_MODELS_KEYED):
        folder = task.run()
    yield f"{first.name} and {second.name}, {config.method} at ratio {config.ratio:g}"
    yield f"merged model: {folder}"
    yield _use(folder)


def sweep_alone(cfg: Any) -> Iterator[str]:
    """Merge at each ratio of ``merge.sweep``, measure each merge, and yield the table and which one to take.

    The two ends are the models themselves, so nothing is written for them. Folders are kept; merges and figures that
    are there from before are found again.

    Raises:
        SdftError: There is no ``merge`` block, the models can't be merged, or the seed model can't be measured.
    """
    from axolotl_sdft.evaluation.pipeline import check_report, run_report

    config = _merge_config(cfg)
    pair = named_models(cfg, config)
    root = _sweep_dir(cfg, config)
    tasks = _sweep_tasks(pair, config, root)
    folders = {0.0: pair[0].folder, 1.0: pair[1].folder} | {ratio: task.output_dir for ratio, task in tasks.items()}
    measuring = _sweep_measuring(cfg, {ratio: folders[ratio] for ratio in config.sweep}, root)
    _check_room(tasks, root)
    check_report(measuring)
    with error_context(_MODELS_KEYED):
        for task in tasks.values():
            task.run()
    measured = run_report(measuring)
    figures = {model.name: model for model in measured.models}
    candidates = [
        Candidate(ratio, folders[ratio], figures[name].held_out, figures[name].general)
        for ratio in config.sweep
        if (name := f"{ratio:g}") in figures
    ]
    choice = choose(candidates)
    yield from sweep_lines(candidates, choice)
    yield ""
    yield from (f"note: {note}" for note in measured.notes)
    yield from choice_lines(choice)
    if choice is not None:
        yield f"in YAML: merge: {{ratio: {choice.taken.ratio:g}}}"
        yield _use(choice.taken.folder)


def named_models(cfg: Any, config: MergeConfig) -> tuple[NamedModel, NamedModel]:
    """Return the two models of a configuration; Hub ids are downloaded.

    Raises:
        ConfigError: ``base_model`` or ``output_dir`` is named and not there yet; the message says what to run.
        CheckpointError: A name is neither a folder nor on the Hub.
    """
    first, second = (_named_model(cfg, name) for name in config.models)
    return first, second


def _merge_config(cfg: Any) -> MergeConfig:
    blocks = read_blocks(cfg)
    if blocks.merge is None:
        raise ConfigError("there is no merge block; an empty one will do: merge: {}")
    check_plugin(cfg, blocks)
    check_rules(cfg, blocks, other_trainers={})
    return blocks.merge


def _named_model(cfg: Any, name: str) -> NamedModel:
    if name == "base_model":
        return _base_model(cfg)
    if name == "output_dir":
        return _trained_model(cfg)
    return NamedModel(name, resolve_seed(name, key=_MODELS_KEY))


def _base_model(cfg: Any) -> NamedModel:
    """Return what training starts from: the pruned model where layers are pruned."""
    pruning = read_blocks(cfg).layer_pruning
    if pruning is None or is_pruned_already(cfg.base_model, pruning):
        return NamedModel(cfg.base_model, base_dir_of(cfg))
    folder = pruned_dir_of(cfg, pruning, lambda: pruning_spec(cfg, pruning))
    if folder is None:
        raise ConfigError(
            f"{_MODELS_KEY} names base_model, which layer_pruning prunes first, but the pruned checkpoint is not there "
            "yet; run axolotl prune-layers or axolotl train"
        )
    return NamedModel(str(folder), folder)


def _trained_model(cfg: Any) -> NamedModel:
    folder = output_dir_of(cfg)
    if not holds_model(folder):
        raise ConfigError(f"{_MODELS_KEY} names output_dir, but {folder} holds no model yet; run axolotl train")
    return NamedModel(str(folder), folder)


def _output_dir(cfg: Any, config: MergeConfig) -> Path:
    if config.output_dir is not None:
        return Path(config.output_dir).expanduser().absolute()
    return output_dir_of(cfg) / _DEFAULT_FOLDER


def _sweep_dir(cfg: Any, config: MergeConfig) -> Path:
    """Return the folder of the sweep's merges, beside that of the one merge, which is a model's own."""
    single = _output_dir(cfg, config)
    return single.with_name(f"{single.name}_sweep")


def _sweep_tasks(pair: tuple[NamedModel, NamedModel], config: MergeConfig, root: Path) -> dict[float, MergeTask]:
    between = [ratio for ratio in config.sweep if 0.0 < ratio < 1.0]
    configs = [(ratio, config.model_copy(update={"ratio": ratio})) for ratio in between]
    return {ratio: MergeTask(*pair, own, fingerprinted_folder(*pair, own, root)) for ratio, own in configs}


def _sweep_measuring(cfg: Any, folders: dict[float, Path], root: Path) -> "RecoverySpec":
    """Return the measuring of the seed model and of each ratio's model, as the ``recovery_report`` block says."""
    from axolotl_sdft.evaluation.spec import RecoverySpec

    report = read_blocks(cfg).recovery_report or RecoveryReportConfig()
    rows = held_out(cfg, report.held_out)
    merged = [ReportedModel(f"{ratio:g}", folder) for ratio, folder in folders.items()]
    return RecoverySpec(
        models=(ReportedModel(SEED, seed_dir_of(cfg)), *merged),
        config=_likelihood_only(report),
        has_answers=False,
        output_dir=root,
        held_out=rows.targets,
        notes=rows.notes,
        trust_remote_code=bool(cfg.get("trust_remote_code")),
        template_arguments=template_arguments(cfg, report),
        chat_template=missing_chat_template(cfg, seed_dir_of(cfg)),
    )


def _check_room(tasks: dict[float, MergeTask], root: Path) -> None:
    """Refuse a sweep that would fill the disk half way, or models that can't be merged, before anything is written."""
    with error_context(_MODELS_KEYED):
        num_bytes = sum(task.num_bytes for task in tasks.values() if not task.is_done)
    ensure_writable(root, OUTPUT_KEY)
    ensure_free_space(root, num_bytes, OUTPUT_KEY)


def _likelihood_only(report: RecoveryReportConfig) -> RecoveryReportConfig:
    """Return the settings of a report without what takes long and tells ratios apart no better."""
    left_out = {"speed": SpeedConfig(rounds=0), "exact_match": None, "lm_eval": None, "drafting": None}
    return report.model_copy(update=left_out)


def _use(folder: Path) -> str:
    if is_adapter(folder):
        return f"use it: lora_model_dir: {folder} (axolotl inference, evaluate and merge-lora read it)"
    return f"use it as any checkpoint: base_model: {folder}"
