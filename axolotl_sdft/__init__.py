"""Layer pruning, self-distilled datasets and DynSDPB training, from one YAML file or from Python.

The public names below are imported on first use, so that ``import axolotl_sdft`` costs milliseconds and no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from axolotl_sdft._version import __version__
from axolotl_sdft.core.safe_output import keep_log_lines_printable

if TYPE_CHECKING:
    from axolotl_sdft.config import (
        CalibrationConfig,
        DynSDPBConfig,
        LayerPruningConfig,
        LogitDistillationConfig,
        RecoveryReportConfig,
        SelfDistillationConfig,
    )
    from axolotl_sdft.core.errors import SdftError
    from axolotl_sdft.distillation.general_rows import distill_general_rows
    from axolotl_sdft.distillation.pipeline import distill_dataset
    from axolotl_sdft.evaluation.figures import RecoveryReport
    from axolotl_sdft.evaluation.from_python import measure_recovery
    from axolotl_sdft.evaluation.merging.merge import merge_models
    from axolotl_sdft.evaluation.summary import RunSummary, summarize_run
    from axolotl_sdft.integrations.axolotl.calibration_text import calibration_batches
    from axolotl_sdft.integrations.axolotl.plugin import SDFTPlugin
    from axolotl_sdft.pruning.checkpoint.cut import cut_layers
    from axolotl_sdft.pruning.general_answers import general_texts
    from axolotl_sdft.pruning.patching.fit import fit_patch
    from axolotl_sdft.pruning.patching.record import LayerPatch
    from axolotl_sdft.pruning.planning.plan import PruningPlan, plan_pruning
    from axolotl_sdft.pruning.planning.report import PruningTable, pruning_table
    from axolotl_sdft.pruning.scoring.scores import LayerScores, score_layers
    from axolotl_sdft.training.logit_mixin import LogitDistillationMixin
    from axolotl_sdft.training.losses.dynsdpb import dynsdpb_loss
    from axolotl_sdft.training.mixin import DynSDPBMixin
    from axolotl_sdft.training.trainers import DynSDPBTrainer, LogitDistillationTrainer
    from axolotl_sdft.training.trl_trainer import (
        DynSDPBSFTConfig,
        DynSDPBSFTTrainer,
        LogitDistillationSFTConfig,
        LogitDistillationSFTTrainer,
    )

_HOME_OF = {
    "CalibrationConfig": "axolotl_sdft.config.layer_pruning",
    "DynSDPBConfig": "axolotl_sdft.config.training",
    "DynSDPBMixin": "axolotl_sdft.training.mixin",
    "DynSDPBSFTConfig": "axolotl_sdft.training.trl_trainer",
    "DynSDPBSFTTrainer": "axolotl_sdft.training.trl_trainer",
    "DynSDPBTrainer": "axolotl_sdft.training.trainers",
    "LayerPatch": "axolotl_sdft.pruning.patching.record",
    "LayerPruningConfig": "axolotl_sdft.config.layer_pruning",
    "LayerScores": "axolotl_sdft.pruning.scoring.scores",
    "LogitDistillationConfig": "axolotl_sdft.config.training",
    "LogitDistillationMixin": "axolotl_sdft.training.logit_mixin",
    "LogitDistillationSFTConfig": "axolotl_sdft.training.trl_trainer",
    "LogitDistillationSFTTrainer": "axolotl_sdft.training.trl_trainer",
    "LogitDistillationTrainer": "axolotl_sdft.training.trainers",
    "PruningPlan": "axolotl_sdft.pruning.planning.plan",
    "PruningTable": "axolotl_sdft.pruning.planning.report",
    "RecoveryReport": "axolotl_sdft.evaluation.figures",
    "RecoveryReportConfig": "axolotl_sdft.config.evaluation",
    "RunSummary": "axolotl_sdft.evaluation.summary",
    "SDFTPlugin": "axolotl_sdft.integrations.axolotl.plugin",
    "SdftError": "axolotl_sdft.core.errors",
    "SelfDistillationConfig": "axolotl_sdft.config.self_distillation",
    "calibration_batches": "axolotl_sdft.integrations.axolotl.calibration_text",
    "cut_layers": "axolotl_sdft.pruning.checkpoint.cut",
    "distill_dataset": "axolotl_sdft.distillation.pipeline",
    "distill_general_rows": "axolotl_sdft.distillation.general_rows",
    "dynsdpb_loss": "axolotl_sdft.training.losses.dynsdpb",
    "fit_patch": "axolotl_sdft.pruning.patching.fit",
    "general_texts": "axolotl_sdft.pruning.general_answers",
    "measure_recovery": "axolotl_sdft.evaluation.from_python",
    "merge_models": "axolotl_sdft.evaluation.merging.merge",
    "plan_pruning": "axolotl_sdft.pruning.planning.plan",
    "pruning_table": "axolotl_sdft.pruning.planning.report",
    "score_layers": "axolotl_sdft.pruning.scoring.scores",
    "summarize_run": "axolotl_sdft.evaluation.summary",
}

__all__ = [
    "CalibrationConfig",
    "DynSDPBConfig",
    "DynSDPBMixin",
    "DynSDPBSFTConfig",
    "DynSDPBSFTTrainer",
    "DynSDPBTrainer",
    "LayerPatch",
    "LayerPruningConfig",
    "LayerScores",
    "LogitDistillationConfig",
    "LogitDistillationMixin",
    "LogitDistillationSFTConfig",
    "LogitDistillationSFTTrainer",
    "LogitDistillationTrainer",
    "PruningPlan",
    "PruningTable",
    "RecoveryReport",
    "RecoveryReportConfig",
    "RunSummary",
    "SDFTPlugin",
    "SdftError",
    "SelfDistillationConfig",
    "__version__",
    "calibration_batches",
    "cut_layers",
    "distill_dataset",
    "distill_general_rows",
    "dynsdpb_loss",
    "fit_patch",
    "general_texts",
    "measure_recovery",
    "merge_models",
    "plan_pruning",
    "pruning_table",
    "score_layers",
    "summarize_run",
]

keep_log_lines_printable()


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
