"""Finds what plugins register, and refuses what does not fit when it is registered."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from axolotl_sdft.core.callables import callable_name, signature_fault
from axolotl_sdft.core.errors import PluginError, UnknownNameError
from axolotl_sdft.plugins import specifications

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtensionPoint:
    """One kind of thing that plugins add."""

    kind: str
    """What a user calls it, such as ``check``."""

    hook: str
    """Name of the hook that registers it."""

    arguments: tuple[str, ...]
    """What a registered callable is called with."""


METRICS = ExtensionPoint("metric", "sdft_register_layer_metrics", ("model", "batches", "options"))
TEMPLATES = ExtensionPoint("template", "sdft_register_templates", ("target",))
CHECKS = ExtensionPoint("check", "sdft_register_checks", ("answer", "target"))
BACKENDS = ExtensionPoint("backend", "sdft_register_backends", ("model_dir", "config"))
ROW_FORMATS = ExtensionPoint("row format", "sdft_register_row_formats", ("dataset_config",))
EXTENSION_POINTS = (METRICS, TEMPLATES, CHECKS, BACKENDS, ROW_FORMATS)


@dataclass
class Registry:
    """What all plugins have registered, by extension point and name."""

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    owners: dict[tuple[str, str], str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Entry points that could not be loaded, and why."""

    def resolve(self, point: ExtensionPoint, name: str | Callable[..., Any], yaml_key: str) -> Any:
        """Return what is registered under a name; a function that is given in its place stands for itself.

        Raises:
            PluginError: The function can't be called as a registered one is.
            UnknownNameError: Nothing is; the message lists the known names and the plugins that failed to load.
        """
        if not isinstance(name, str):
            fault = signature_fault(name, point.arguments)
            if fault:
                raise PluginError(f"{yaml_key}: the {point.kind} {callable_name(name)} {fault}")
            return name
        known = self.entries.get(point.kind, {})
        if name in known:
            return known[name]
        message = f"{yaml_key} is {name!r}, but no such {point.kind} is registered; known: {', '.join(sorted(known))}"
        if self.failures:
            failed = "; ".join(f"{plugin} ({why})" for plugin, why in sorted(self.failures.items()))
            message += f". Plugins that failed to load: {failed}"
        raise UnknownNameError(message)

    def names(self, point: ExtensionPoint) -> list[str]:
        """Return the registered names of one extension point, sorted."""
        return sorted(self.entries.get(point.kind, {}))

    def add_plugin(self, plugin: object, plugin_name: str) -> None:
        """Register all that a plugin module or object brings.

        Raises:
            PluginError: A hook does not match its specification or fails, or a registered thing does not fit; the
                message holds the plugin, the hook and the fault.
        """
        manager = pluggy.PluginManager(specifications.PROJECT)
        manager.add_hookspecs(specifications)
        try:
            manager.register(plugin, name=plugin_name)
            manager.check_pending()
        except pluggy.PluginValidationError as err:
            raise PluginError(f"plugin {plugin_name!r} does not fit: {err}") from err
        if not manager.get_hookcallers(plugin):
            hooks = ", ".join(point.hook for point in EXTENSION_POINTS)
            raise PluginError(
                f"plugin {plugin_name!r} implements no hook; mark at least one of {hooks} with "
                "axolotl_sdft.plugin_api.hookimpl"
            )
        for point in EXTENSION_POINTS:
            try:
                getattr(manager.hook, point.hook)(register=self._registrar(point, plugin_name))
            except PluginError:
                raise
            except Exception as err:
                fault = f"{type(err).__name__}: {err}"
                raise PluginError(f"plugin {plugin_name!r}, hook {point.hook} failed: {fault}") from err

    def _registrar(self, point: ExtensionPoint, plugin_name: str) -> Callable[[str, Any], None]:
        where = f"plugin {plugin_name!r}, hook {point.hook}"

        def register(name: str, thing: Any) -> None:
            if not isinstance(name, str) or not name:
                raise PluginError(f"{where}: the name must be a text, not {name!r}")
            owner = self.owners.get((point.kind, name))
            if owner is not None:
                raise PluginError(
                    f"{where}: {point.kind} {name!r} is already registered by {owner!r}; choose another name"
                )
            fault = signature_fault(thing, point.arguments)
            if fault:
                raise PluginError(f"{where}: {point.kind} {name!r} {fault}")
            self.entries.setdefault(point.kind, {})[name] = thing
            self.owners[point.kind, name] = plugin_name

        return register


def load_registry(points: Iterable[EntryPoint]) -> Registry:
    """Return a registry of all entry points.

    One that fails to import is remembered and logged, so that runs that don't need it go on. One that imports but does
    not fit raises :class:`PluginError`.
    """
    registry = Registry()
    # Built-in entry points come first, so that a clash of names is blamed on the newcomer.
    for point in sorted(points, key=lambda point: (not point.value.startswith("axolotl_sdft."), point.name)):
        try:
            module = point.load()
        except Exception as err:
            registry.failures[point.name] = f"{type(err).__name__}: {err}"
            LOG.warning("axolotl-sdft plugin %r (%s) failed to load: %s", point.name, point.value, err)
            continue
        registry.add_plugin(module, point.name)
    return registry


@cache
def registry() -> Registry:
    """Return the registry of all installed plugins, loaded once."""
    return load_registry(entry_points(group=specifications.PROJECT))
