"""Whatever the package raises on purpose descends from ``SdftError``: its source is walked for every ``raise``.

Three kinds of other errors are allowed, each where it is due: what pydantic makes a message of, what a caller within
the package catches again, and what Python's or click's own protocols ask for.
"""

import ast
import importlib
import inspect
from pathlib import Path

from axolotl_sdft.core.errors import SdftError

PACKAGE = Path(__file__).parent.parent / "axolotl_sdft"

VALIDATORS = "config/"
"""pydantic turns a ValueError of a validator into the message about its key."""

PROTOCOLS = {
    "__init__.py": {"AttributeError"},
    "cli/": {"SystemExit", "ClickException", "UsageError"},
    "distillation/generation/journal.py": {"KeyError"},  # of a mapping
    "integrations/axolotl/compat.py": {"SystemExit"},  # of a process that Ctrl-C has ended
    "training/teachers/shared_layers.py": {"AttributeError"},  # of a module, as torch raises it
}

CAUGHT = {
    "core/callables.py": {"TypeError", "ValueError", "_SourcelessError"},
    "core/locks.py": {"Timeout"},
    "distillation/checks/arithmetic.py": {"ValueError"},
    "distillation/checks/guarded.py": {"_SilenceError"},
    "distillation/generation/journal_files.py": {"ValueError"},
    "distillation/output/dataset.py": {"_NothingNewError"},
    "inference/openai/": {"RefusedError", "TransientError", "QuestionRefusedError", "RequestTimeoutError"},
    "evaluation/measures/bootstrap.py": {"ValueError"},
    "evaluation/measures/drafting.py": {"ValueError"},
    "evaluation/measures/own_answers.py": {"ValueError"},  # of a formula; settings are checked before
    "pruning/planning/model_shape.py": {"NotImplementedError"},  # of a gradient that nothing asks for
    "pruning/checkpoint/quantization.py": {"ValueError"},
    "pruning/checkpoint/tensor_files.py": {"ValueError"},
    "pruning/planning/token_costs.py": {"RuntimeError", "ValueError"},
}
"""Raised and caught within the package: no caller of it sees them. Faults of requests become the text of an answer."""


def raised_names(tree):
    """The names of the classes that ``raise`` is given, with their lines; what is raised again has none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            called = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name[:1].isupper() or name[:2].strip("_")[:1].isupper():
                yield name, node.lineno


def is_allowed(place, name):
    if place.startswith(VALIDATORS) and name == "ValueError":
        return True
    named = [names for start, names in {**PROTOCOLS, **CAUGHT}.items() if place == start or place.startswith(start)]
    return any(name in names for names in named)


def is_of_ours(path, name):
    """Whether a name means an error of the package where it is raised."""
    module = ".".join(("axolotl_sdft", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    kind = getattr(importlib.import_module(module), name, None)
    return inspect.isclass(kind) and issubclass(kind, SdftError)


def test_every_raise_is_of_our_root_or_an_exception_that_is_named_here():
    strangers = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        for name, line in raised_names(ast.parse(path.read_text(encoding="utf-8"))):
            if not is_allowed(place, name) and not is_of_ours(path, name):
                strangers.append(f"{place}:{line}: {name}")
    assert strangers == []


def test_every_exception_above_is_still_raised_there():
    stale = []
    for start, names in {**PROTOCOLS, **CAUGHT}.items():
        paths = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).as_posix().startswith(start)]
        raised = {name for path in paths for name, _ in raised_names(ast.parse(path.read_text(encoding="utf-8")))}
        stale += [f"{start}: {name}" for name in names - raised]
    assert stale == []


def test_the_walk_tells_our_errors_from_others():
    tree = ast.parse("raise ValueError('x')\nraise click.UsageError('y')\nraise err\nraise _Mine\nraise")
    assert [name for name, _ in raised_names(tree)] == ["ValueError", "UsageError", "_Mine"]
    assert is_of_ours(PACKAGE / "core" / "errors.py", "ConfigError")
    assert not is_of_ours(PACKAGE / "core" / "errors.py", "ValueError")
