import logging
import os
import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

import pytest

from axolotl_sdft.core.errors import PluginError, UnknownNameError
from axolotl_sdft.plugins.registry import BACKENDS, CHECKS, EXTENSION_POINTS, METRICS, Registry, load_registry
from axolotl_sdft.plugins.specifications import hookimpl

REPO_ROOT = Path(__file__).parents[2]
POLITE = """
    from axolotl_sdft.plugin_api import hookimpl

    def polite(answer, target):
        return None if "please" in answer.text else "says no please"

    @hookimpl
    def sdft_register_checks(register):
        register("polite", polite)
"""


def install(folder, source, distribution="thirdparty"):
    """Lay a package out as pip does: a module, and a dist-info folder that declares the entry point."""
    (folder / f"{distribution}.py").write_text(textwrap.dedent(source))
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[axolotl_sdft]\n{distribution} = {distribution}\n")


def found(name):
    """The entry points that Python finds under a name on its search path."""
    return entry_points(group="axolotl_sdft", name=name)


def plugin(**hooks):
    """A plugin module whose functions are marked as hooks."""
    module = ModuleType("plugin")
    for name, function in hooks.items():
        setattr(module, name, hookimpl(function))
    return module


def registering(name, thing):
    """A plugin that registers one check."""
    return plugin(sdft_register_checks=lambda register: register(name, thing))


def accept(answer, target):
    return None


# What an installed package brings


def test_a_check_of_an_installed_package_is_found_by_its_name(tmp_path, monkeypatch):
    install(tmp_path, POLITE, "polite_plugin")
    monkeypatch.syspath_prepend(tmp_path)
    registry = load_registry(found("polite_plugin"))
    polite = registry.resolve(CHECKS, "polite", "self_distillation.checks")
    assert polite.__module__ == "polite_plugin"
    assert registry.owners["check", "polite"] == "polite_plugin"
    assert registry.failures == {}


def test_a_new_process_finds_the_check_of_an_installed_package(tmp_path):
    install(tmp_path, POLITE)
    program = """if True:
        from types import SimpleNamespace
        from axolotl_sdft.plugins.registry import CHECKS, registry
        check = registry().resolve(CHECKS, "polite", "self_distillation.checks")
        print(check(SimpleNamespace(text="Go away."), None))
        assert registry() is registry()
    """
    search_path = os.pathsep.join([str(tmp_path), str(REPO_ROOT)])
    run = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": search_path}, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (0, "says no please\n"), run.stderr


def test_a_package_that_fails_to_import_is_remembered_and_the_others_go_on(tmp_path, monkeypatch, caplog):
    install(tmp_path, "import a_library_that_is_missing", "broken_plugin")
    install(tmp_path, POLITE, "working_plugin")
    monkeypatch.syspath_prepend(tmp_path)
    with caplog.at_level(logging.WARNING, logger="axolotl_sdft"):
        registry = load_registry([*found("broken_plugin"), *found("working_plugin")])
    why = "ModuleNotFoundError: No module named 'a_library_that_is_missing'"
    assert registry.failures == {"broken_plugin": why}
    assert registry.names(CHECKS) == ["polite"]
    assert "plugin 'broken_plugin' (broken_plugin) failed to load: No module named" in caplog.text


def test_a_clash_with_a_built_in_name_is_blamed_on_the_newcomer_whatever_its_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "axolotl_sdft.shipped", registering("leak", accept))
    monkeypatch.setitem(sys.modules, "newcomer", registering("leak", accept))
    points = [
        EntryPoint("aaa_newcomer", "newcomer", "axolotl_sdft"),
        EntryPoint("zzz_shipped", "axolotl_sdft.shipped", "axolotl_sdft"),
    ]
    message = "plugin 'aaa_newcomer', hook sdft_register_checks: check 'leak' is already registered by 'zzz_shipped'"
    with pytest.raises(PluginError, match=message):
        load_registry(points)


# What fits


def test_one_plugin_may_serve_several_extension_points_and_register_several_things():
    def metrics(register):
        register("first", lambda model, batches, options: None)
        register("second", lambda model, batches, options=None: None)

    def backends(register):
        register("echo", lambda model_dir, config: None)

    registry = Registry()
    registry.add_plugin(plugin(sdft_register_layer_metrics=metrics, sdft_register_backends=backends), "both")
    assert registry.names(METRICS) == ["first", "second"]
    assert registry.names(BACKENDS) == ["echo"]
    assert registry.names(CHECKS) == []


def test_the_same_name_may_stand_for_a_check_and_for_a_backend():
    registry = Registry()
    registry.add_plugin(registering("same", accept), "one")
    registry.add_plugin(plugin(sdft_register_backends=lambda register: register("same", lambda *_: None)), "two")
    assert registry.owners == {("check", "same"): "one", ("backend", "same"): "two"}


def test_a_callable_that_tells_no_signature_gets_the_benefit_of_the_doubt():
    def opaque(*arguments):
        return None

    opaque.__signature__ = "unknown"  # as with some functions written in C
    registry = Registry()
    registry.add_plugin(registering("opaque", opaque), "thirdparty")
    assert registry.names(CHECKS) == ["opaque"]


@pytest.mark.parametrize("point", EXTENSION_POINTS, ids=lambda point: point.kind)
def test_each_extension_point_has_a_hook_of_its_own(point):
    registry = Registry()
    registry.add_plugin(plugin(**{point.hook: lambda register: register("mine", lambda *arguments: None)}), "tester")
    assert registry.names(point) == ["mine"]
    assert registry.owners == {(point.kind, "mine"): "tester"}


# What does not fit


@pytest.mark.parametrize(
    ("hooks", "fault"),
    [
        (
            {"sdft_register_checks": lambda registry: None},
            r"(.|\n)*sdft_register_checks(.|\n)*\{'registry'\}",
        ),
        ({"sdft_register_chekcs": lambda register: None}, "unknown hook 'sdft_register_chekcs'"),
    ],
)
def test_a_hook_that_no_specification_knows_is_refused_with_plugin_and_hook(hooks, fault):
    with pytest.raises(PluginError, match=rf"plugin 'thirdparty' does not fit: {fault}"):
        Registry().add_plugin(plugin(**hooks), "thirdparty")


def test_a_plugin_whose_functions_are_not_marked_is_refused_rather_than_ignored():
    unmarked = ModuleType("unmarked")
    unmarked.sdft_register_checks = lambda register: register("check", accept)
    message = r"plugin 'thirdparty' implements no hook; mark at least one of .*sdft_register_checks.* with .*hookimpl"
    with pytest.raises(PluginError, match=message):
        Registry().add_plugin(unmarked, "thirdparty")


def test_a_hook_that_fails_is_refused_with_plugin_hook_and_fault():
    broken = plugin(sdft_register_checks=lambda register: 1 / 0)
    message = "plugin 'thirdparty', hook sdft_register_checks failed: ZeroDivisionError: division by zero"
    with pytest.raises(PluginError, match=message) as caught:
        Registry().add_plugin(broken, "thirdparty")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("name", "thing", "fault"),
    [
        ("polite", "a text", r"check 'polite' is a str, which can't be called"),
        ("polite", None, r"check 'polite' is a NoneType, which can't be called"),
        (
            "polite",
            lambda answer: None,
            r"check 'polite' must take \(answer, target\), but .* is \(answer\)",
        ),
        ("polite", lambda a, b, c: None, r"check 'polite' must take \(answer, target\), .* is \(a, b, c\)"),
        ("polite", lambda *, answer, target: None, r"check 'polite' must take \(answer, target\), .* \(\*, answer"),
        ("", accept, "the name must be a text, not ''"),
        (7, accept, "the name must be a text, not 7"),
    ],
)
def test_a_thing_that_does_not_fit_is_refused_with_plugin_hook_and_fault(name, thing, fault):
    with pytest.raises(PluginError, match=rf"^plugin 'thirdparty', hook sdft_register_checks: {fault}"):
        Registry().add_plugin(registering(name, thing), "thirdparty")


def test_the_second_plugin_with_a_name_is_refused_and_the_first_one_stays():
    registry = Registry()
    registry.add_plugin(registering("polite", accept), "first")
    message = "plugin 'second', hook .*: check 'polite' is already registered by 'first'; choose another name"
    with pytest.raises(PluginError, match=message):
        registry.add_plugin(registering("polite", lambda answer, target: "no"), "second")
    assert registry.resolve(CHECKS, "polite", "checks") is accept


# Names in a YAML file


def test_an_unknown_name_is_refused_with_its_key_and_the_known_names():
    registry = Registry()
    for name in ("polite", "leak"):
        registry.add_plugin(registering(name, accept), f"brings_{name}")
    message = r"^self_distillation\.checks is 'polit', but no such check is registered; known: leak, polite$"
    with pytest.raises(UnknownNameError, match=message):
        registry.resolve(CHECKS, "polit", "self_distillation.checks")


def test_a_function_in_the_place_of_a_name_stands_for_itself():
    assert Registry().resolve(CHECKS, accept, "self_distillation.checks") is accept


def test_a_function_that_does_not_fit_is_refused_with_its_key():
    def polite(answer):
        return None

    message = (
        r"^self_distillation\.checks: the check polite must take \(answer, target\), but its signature is \(answer\)$"
    )
    with pytest.raises(PluginError, match=message):
        Registry().resolve(CHECKS, polite, "self_distillation.checks")


def test_an_unknown_name_names_the_plugin_that_failed_to_load_and_why():
    registry = Registry(failures={"thirdparty": "ImportError: no vllm"})
    message = r"no such backend .*\. Plugins that failed to load: thirdparty \(ImportError: no vllm\)$"
    with pytest.raises(UnknownNameError, match=message):
        registry.resolve(BACKENDS, "vllm", "self_distillation.generation.backend")
