"""The extension points: what a plugin package can add.

A plugin declares an entry point in the group ``axolotl_sdft`` that names a module with some of these functions, each
marked with ``axolotl_sdft.hookspecs.hookimpl``. Each receives a ``register`` callable and may call it several times.
What ships built in comes through the same hooks.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from axolotl_sdft.distillation.interfaces import AnswerCheck, BackendFactory, RowFormat, Template
    from axolotl_sdft.pruning.score import LayerMetric

PROJECT = "axolotl_sdft"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def sdft_register_layer_metrics(register: "Callable[[str, LayerMetric], None]") -> None:
    """Register layer metrics: ``register(name, metric)``, ``metric(model, batches, token_average) -> LayerScores``."""


@hookspec
def sdft_register_templates(register: "Callable[[str, Template], None]") -> None:
    """Register rewriting templates: ``register(name, template)`` with ``template(target) -> list of chat messages``."""


@hookspec
def sdft_register_checks(register: "Callable[[str, AnswerCheck], None]") -> None:
    """Register answer checks: ``register(name, check)`` with ``check(answer, target) -> reason or None``."""


@hookspec
def sdft_register_backends(register: "Callable[[str, BackendFactory], None]") -> None:
    """Register generation backends: ``register(name, factory)`` with ``factory(model_dir, config) -> backend``."""


@hookspec
def sdft_register_row_formats(register: "Callable[[str, Callable[[dict], RowFormat]], None]") -> None:
    """Register row formats: ``register(type, factory)`` with ``factory(dataset_config) -> row format``."""
