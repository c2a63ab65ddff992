"""The settings of the stages, as pydantic models that import no torch.

Every field has a text, bounds and a default that works. Names of metrics, templates, checks and backends are plain
strings here: which ones exist depends on the plugins installed, so :mod:`axolotl_sdft.plugins` resolves them.
"""

from pydantic import BaseModel

from axolotl_sdft.config.backends import (
    Generation,
    OpenAIGeneration,
    PluginGeneration,
    TransformersGeneration,
    VLLMGeneration,
    generation_config,
    overridden,
    yaml_path,
)
from axolotl_sdft.config.block import nearest_key_hint, parse_num_layers, parse_size
from axolotl_sdft.config.evaluation import (
    DraftingConfig,
    ExactMatchConfig,
    GeneralPromptsConfig,
    LmEvalConfig,
    MergeConfig,
    RecoveryReportConfig,
    RowsConfig,
    SpeedConfig,
    TaskConfig,
)
from axolotl_sdft.config.generation import GenerationConfig
from axolotl_sdft.config.layer_pruning import CalibrationConfig, LayerPruningConfig
from axolotl_sdft.config.self_distillation import ExampleConfig, SelfDistillationConfig
from axolotl_sdft.config.training import DynSDPBConfig, LogitDistillationConfig

__all__ = [
    "BLOCKS",
    "CalibrationConfig",
    "DraftingConfig",
    "DynSDPBConfig",
    "ExactMatchConfig",
    "ExampleConfig",
    "GeneralPromptsConfig",
    "Generation",
    "GenerationConfig",
    "LayerPruningConfig",
    "LmEvalConfig",
    "LogitDistillationConfig",
    "MergeConfig",
    "OpenAIGeneration",
    "PluginGeneration",
    "RecoveryReportConfig",
    "RowsConfig",
    "SelfDistillationConfig",
    "SpeedConfig",
    "TaskConfig",
    "TransformersGeneration",
    "VLLMGeneration",
    "generation_config",
    "nearest_key_hint",
    "overridden",
    "parse_num_layers",
    "parse_size",
    "yaml_path",
]

BLOCKS: dict[str, type[BaseModel]] = {
    "layer_pruning": LayerPruningConfig,
    "self_distillation": SelfDistillationConfig,
    "logit_distillation": LogitDistillationConfig,
    "dynsdpb": DynSDPBConfig,
    "merge": MergeConfig,
    "recovery_report": RecoveryReportConfig,
}
"""The YAML blocks in the order in which their stages run; the last two have commands of their own."""
