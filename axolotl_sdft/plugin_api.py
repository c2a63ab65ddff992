"""All that a plugin package imports from this one.

A plugin adds metrics, templates, checks, backends or row formats: it declares an entry point in the group
``axolotl_sdft`` that names a module with some of the functions of :mod:`axolotl_sdft.plugins.registry`, each
marked with :data:`hookimpl`. What is not exported here may change at any time.
"""

from axolotl_sdft.config import PluginGeneration
from axolotl_sdft.distillation.checks import prepared_by, scored_check
from axolotl_sdft.distillation.interfaces import AnswerCheck, RowFormat, Template
from axolotl_sdft.distillation.rows.left_alone import LeftAlone
from axolotl_sdft.distillation.rows.plain import InstructionRows
from axolotl_sdft.inference.interfaces import (
    Answer,
    Backend,
    BackendFactory,
    FinishReason,
    Message,
    Prompt,
    Target,
    attempt_temperature,
    sampling_seed,
)
from axolotl_sdft.plugins.specifications import hookimpl
from axolotl_sdft.pruning.scoring.scores import LayerMetric, LayerScores, ScoringOptions, metric_traits

__all__ = [
    "Answer",
    "AnswerCheck",
    "Backend",
    "BackendFactory",
    "FinishReason",
    "InstructionRows",
    "LayerMetric",
    "LayerScores",
    "LeftAlone",
    "Message",
    "PluginGeneration",
    "Prompt",
    "RowFormat",
    "ScoringOptions",
    "Target",
    "Template",
    "attempt_temperature",
    "hookimpl",
    "metric_traits",
    "prepared_by",
    "sampling_seed",
    "scored_check",
]
