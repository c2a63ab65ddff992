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
    """Register layer metrics: ``register(name, metric)`` with ``metric(model, batches, options) -> LayerScores``.

    ``options`` are :class:`~axolotl_sdft.pruning.score.ScoringOptions`. A metric that reads no text, or that chooses
    layer after layer, says so with ``axolotl_sdft.pruning.score.metric_traits``.
    """


@hookspec
def sdft_register_templates(register: "Callable[[str, Template], None]") -> None:
    """Register rewriting templates: ``register(name, template)`` with ``template(target) -> list of chat messages``."""


@hookspec
def sdft_register_checks(register: "Callable[[str, AnswerCheck], None]") -> None:
    """Register answer checks: ``register(name, check)`` with ``check(answer, target) -> reason or None``.

    Keyword-only parameters with defaults are options that users set: ``- name: {option: value}``. What must hold before
    any work starts, a check tests in a function that :func:`~axolotl_sdft.distillation.checks.prepared_by` names.
    A check may ask a model, such as a judge behind a server; :func:`~axolotl_sdft.distillation.checks.scored_check`
    makes a check of a score and a threshold.
    """


@hookspec
def sdft_register_backends(register: "Callable[[str, BackendFactory], None]") -> None:
    """Register generation backends: ``register(name, factory)`` with ``factory(model_dir, config) -> backend``."""


@hookspec
def sdft_register_row_formats(register: "Callable[[str, Callable[[dict], RowFormat]], None]") -> None:
    """Register row formats: ``register(type, factory)`` with ``factory(dataset_config) -> row format``."""
