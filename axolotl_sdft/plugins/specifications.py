"""The extension points: what a plugin package can add.

A plugin declares an entry point in the group ``axolotl_sdft`` that names a module with some of these functions, each
marked with ``axolotl_sdft.plugin_api.hookimpl``. Each receives a ``register`` callable and may call it several times.
What ships built in comes through the same hooks.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import pluggy

Register: TypeAlias = Callable[[str, Callable[..., Any]], None]
"""Registers a thing under a name; see each hook for what it is called with."""

PROJECT = "axolotl_sdft"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def sdft_register_layer_metrics(register: Register) -> None:
    """Register layer metrics: ``register(name, metric)`` with ``metric(model, batches, options) -> LayerScores``.

    ``options`` are ``plugin_api.ScoringOptions``. A metric that reads no text, or that chooses layer after layer, says
    so with ``plugin_api.metric_traits``.
    """


@hookspec
def sdft_register_templates(register: Register) -> None:
    """Register rewriting templates: ``register(name, template)`` with ``template(target) -> list of chat messages``."""


@hookspec
def sdft_register_checks(register: Register) -> None:
    """Register answer checks: ``register(name, check)`` with ``check(answer, target) -> reason or None``.

    Keyword-only parameters with defaults are options that users set: ``- name: {option: value}``. What must hold before
    any work starts, a check tests in a function that ``plugin_api.prepared_by`` names. A check may ask a model,
    such as a judge behind a server; ``plugin_api.scored_check`` makes a check of a score and a threshold.
    """


@hookspec
def sdft_register_backends(register: Register) -> None:
    """Register generation backends: ``register(name, factory)`` with ``factory(model_dir, config) -> backend``."""


@hookspec
def sdft_register_row_formats(register: Register) -> None:
    """Register row formats: ``register(type, factory)`` with ``factory(dataset_config) -> row format``."""
