"""What in the rest of an Axolotl configuration makes no sense with the stages. Pure functions of the raw YAML."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from axolotl_sdft.config import LayerPruningConfig, LogitDistillationConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.integrations.axolotl.blocks import Blocks
from axolotl_sdft.integrations.axolotl.pruned_base import is_pruned_already, output_dir_of
from axolotl_sdft.pruning.scoring.scores import metric_needs_text
from axolotl_sdft.training.support import prompt_tuning_fault

_OWN_PLUGIN = ("axolotl_sdft.SDFTPlugin", "axolotl_sdft.integrations.axolotl.plugin.SDFTPlugin")
_LIGER = "axolotl.integrations.liger.LigerPlugin"
_CUT_CROSS_ENTROPY = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"


def check_rules(cfg: Mapping[str, Any], blocks: Blocks, other_trainers: Mapping[str, str]) -> None:
    """Refuse combinations that can't work, all at once.

    Args:
        cfg: The raw configuration.
        blocks: The stages it switches on.
        other_trainers: Trainer classes that other plugins of this configuration bring, by plugin.

    Raises:
        ConfigError: One line per combination: both keys, what would happen, the way out.
    """
    faults = []
    if not cfg.get("base_model"):
        faults.append("base_model is not set; name the seed model, a folder or a Hub id")
    if blocks.self_distillation is not None:
        faults += _self_distillation_faults(cfg)
    for block in blocks.trainer_blocks:
        faults += _trainer_faults(cfg, block, other_trainers)
    if blocks.logit_distillation is not None and blocks.logit_distillation.alpha > 0:
        faults += _logit_distillation_faults(cfg, blocks.logit_distillation)
    if blocks.layer_pruning is not None:
        faults += _layer_pruning_faults(cfg, blocks)
        faults += _folder_faults(cfg, blocks.layer_pruning)
    if faults:
        raise ConfigError("\n".join(faults))


def check_plugin(cfg: Mapping[str, Any], blocks: Blocks) -> None:
    """Refuse blocks that ``axolotl train`` would drop without a word, since the plugin is not listed.

    Raises:
        ConfigError: One message: the blocks, and what to add to ``plugins``.
    """
    named = blocks.named_stages
    plugins = cfg.get("plugins")
    if not named or any(name in _OWN_PLUGIN for name in plugins or ()):
        return
    found = f"is {plugins!r}, which lacks it" if plugins else "is not set"
    raise ConfigError(
        f"{', '.join(named)} {'is' if len(named) == 1 else 'are'} without effect in `axolotl train`: that needs "
        f"{_OWN_PLUGIN[0]} under plugins, which {found}. Add it, plugins: [{_OWN_PLUGIN[0]}], or remove the "
        f"{'block' if len(named) == 1 else 'blocks'}"
    )


def _layer_pruning_faults(cfg: Mapping[str, Any], blocks: Blocks) -> Iterator[str]:
    pruning = blocks.layer_pruning
    if pruning is None or pruning.drop_layers is not None:
        return
    parts = pruning.calibration.parts
    if parts and all(part.general_prompts for part in parts) and metric_needs_text(pruning.metric):
        yield (
            "layer_pruning.calibration holds general prompts alone, but layers are scored on text that is read; add a "
            "part with the training set ({share: 1}) or with a path, or name the layers in layer_pruning.drop_layers"
        )
    if not pruning.calibration.reads_training_set:
        return
    if not (cfg.get("datasets") or cfg.get("pretraining_dataset")) and metric_needs_text(pruning.metric):
        yield (
            "layer_pruning.calibration.path is not set and there are no datasets to take the calibration text from; "
            "set the path, name the layers in layer_pruning.drop_layers, or set layer_pruning.metric: last"
        )


def _folder_faults(cfg: Mapping[str, Any], pruning: LayerPruningConfig) -> Iterator[str]:
    """Tell which other model has, or is to get, the folder that is named for the pruned checkpoint."""
    if pruning.output_dir is None:
        return
    base_model = str(cfg.get("base_model"))
    others = {"output_dir": output_dir_of(cfg)}
    if cfg.get("lora_model_dir"):
        others["lora_model_dir"] = Path(str(cfg["lora_model_dir"]))
    if not is_pruned_already(base_model, pruning):
        others["base_model"] = Path(base_model)
    folder = os.path.realpath(Path(pruning.output_dir).expanduser())  # takes a link to itself as well
    for key, other in others.items():
        if os.path.realpath(other.expanduser()) == folder:
            yield (
                f"layer_pruning.output_dir is {pruning.output_dir!r}, the folder that {key} names, but no two models "
                "go into one folder; name another one, or remove it, and the pruned checkpoint gets one of its own"
            )


def _self_distillation_faults(cfg: Mapping[str, Any]) -> Iterator[str]:
    if not cfg.get("datasets"):
        yield "self_distillation is on, but datasets is empty; name the training set, or remove the block"
    if cfg.get("rl"):
        yield (
            f"self_distillation rewrites supervised answers, but rl is {cfg['rl']!r}, which trains on preferences or "
            "rewards; remove one of the two"
        )
    for key in ("reward_model", "process_reward_model"):
        if cfg.get(key):
            yield f"self_distillation rewrites supervised answers, but {key} is true; remove one of the two"
    if cfg.get("streaming"):
        yield (
            "self_distillation rewrites the whole training set before training, but streaming is true; "
            "set streaming: false"
        )
    if cfg.get("pretraining_dataset"):
        yield (
            "self_distillation needs rows with a prompt and an answer, but pretraining_dataset holds plain text; "
            "put the rows under datasets, or remove the block"
        )
    if cfg.get("skip_prepare_dataset"):
        yield (
            "self_distillation rewrites the answers that the type of a dataset names, but skip_prepare_dataset: true "
            "hands the rows to the trainer as they are stored, without their type, as models with pictures need it; "
            "set it to false where rows are text alone, or remove the self_distillation block"
        )


def _trainer_faults(cfg: Mapping[str, Any], block: str, other_trainers: Mapping[str, str]) -> Iterator[str]:
    for key in ("rl", "reward_model", "process_reward_model"):
        if cfg.get(key):
            yield f"{block} trains with a supervised trainer, but {key} is {cfg[key]!r}; remove one of the two"
    for plugin, trainer in other_trainers.items():
        yield f"{block} and the plugin {plugin} ({trainer}) each bring a trainer; remove one of the two"
    if cfg.get("trainer_cls"):
        yield f"{block} brings a trainer, but trainer_cls is {cfg['trainer_cls']!r}; remove one of the two"
    without_logits, cut_up = _loss_without_logits(cfg), _what_cuts_up_the_head(cfg)
    if without_logits and cut_up:
        yield (
            f"{block} runs the output head itself where {without_logits} leaves the model without logits, but with "
            f"{cut_up} no process has the whole head to run; switch off one of the two"
        )
    for key in ("use_eaft", "use_dft", "orpo_alpha", "diffusion_lm"):
        if cfg.get(key):
            yield f"{block} and {key} ({cfg[key]!r}) each define the training loss; remove one of the two"
    yield from filter(None, (prompt_tuning_fault(key, kind, block) for key, kind in _adapters(cfg)))
    size = int(cfg.get("context_parallel_size") or cfg.get("sequence_parallel_degree") or 1)
    if size > 1:
        yield (
            f"{block} matches the tokens of whole sequences, but context_parallel_size is {size}, which gives each "
            "rank a part of every sequence; set it to 1"
        )


def _logit_distillation_faults(cfg: Mapping[str, Any], config: LogitDistillationConfig) -> Iterator[str]:
    cut_up = _what_cuts_up_the_layers(cfg)
    if cut_up:
        yield (
            f"logit_distillation needs whole layers on each rank, but {cut_up} spreads them over the ranks; train with "
            "DDP (adapter: qlora saves memory, too), or remove one of the two"
        )
    has_adapter = any(True for _ in _adapters(cfg))
    if config.teacher == "shared" and not has_adapter:
        yield (
            "logit_distillation.teacher is shared, but adapter is not set, so the layers that it would share are "
            "trained; set it to own or auto, or set adapter: lora"
        )
    if cfg.get("relora") and config.teacher != "own":
        yield (
            f"relora merges its adapters into the layers that logit_distillation.teacher ({config.teacher}) would "
            "share; set it to own"
        )


def _adapters(cfg: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give the kinds of adapter that are trained, each with the key that tells."""
    if cfg.get("adapter"):
        yield "adapter", str(cfg["adapter"])
    if cfg.get("lora_model_dir"):
        path = Path(str(cfg["lora_model_dir"])) / "adapter_config.json"
        kind = _json_of(path).get("peft_type")
        if isinstance(kind, str):
            yield f"peft_type in {path}", kind


def _loss_without_logits(cfg: Mapping[str, Any]) -> str | None:
    """Return the setting by which the model computes its loss without logits, or None."""
    plugins = [str(name) for name in cfg.get("plugins") or []]
    # Axolotl's cut-cross-entropy is on as soon as its plugin is listed.
    if _CUT_CROSS_ENTROPY in plugins and cfg.get("cut_cross_entropy") is not False:
        return "cut_cross_entropy"
    if _LIGER in plugins and cfg.get("liger_fused_linear_cross_entropy"):
        return "liger_fused_linear_cross_entropy"
    return None


def _what_cuts_up_the_head(cfg: Mapping[str, Any]) -> str | None:
    """Return the setting by which no process holds, or can run, the whole output head; None where each can."""
    for key in ("fsdp", "fsdp_config", "torch_compile"):
        if cfg.get(key):
            return key
    return "deepspeed (ZeRO stage 3)" if _zero_stage(cfg.get("deepspeed")) == 3 else None


def _what_cuts_up_the_layers(cfg: Mapping[str, Any]) -> str | None:
    """Return the setting by which no process holds whole layers; None where each does."""
    found = next((key for key in ("fsdp", "fsdp_config") if cfg.get(key)), None)
    if found is None and int(cfg.get("tensor_parallel_size") or 1) > 1:
        found = "tensor_parallel_size"
    return found or ("deepspeed (ZeRO stage 3)" if _zero_stage(cfg.get("deepspeed")) == 3 else None)


def _zero_stage(deepspeed: Any) -> int:
    """Return the stage that DeepSpeed's settings ask for, given in place or as a file; 0 where none is told."""
    if isinstance(deepspeed, str):
        deepspeed = _json_of(Path(deepspeed))
    zero = deepspeed.get("zero_optimization") if isinstance(deepspeed, Mapping) else None
    stage = zero.get("stage") if isinstance(zero, Mapping) else None
    return stage if isinstance(stage, int) else 0


def _json_of(path: Path) -> Mapping[str, Any]:
    """Return what a file holds; nothing where it can't be read, which Axolotl says more about."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, Mapping) else {}
