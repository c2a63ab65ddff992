"""Which room may import which, read from the source: nothing is imported here."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "axolotl_sdft"
# From the bottom to the top. A room imports from those above it in this list, and from itself.
ROOMS = [
    "core",
    "config",
    "plugins",
    "inference",
    "pruning",
    "distillation",
    "training",
    "evaluation",
    "integrations",
    "configs",  # checks configurations with what the integration knows of Axolotl
    "cli",
]
FACES = ["", "errors", "plugin_api"]
"""What others import from the package. Each may import anything, and no room imports it."""
LOADERS = {
    "inference/loading.py",
    # The student's own class loads the seed model as teacher, or single layers of it, with the student's settings.
    "training/teachers/loading.py",
}
WITHOUT_WEIGHTS = {"AutoTokenizer", "AutoConfig", "AutoProcessor", "processor_class", "PeftConfig"}


def sources():
    """The modules of the package by their dotted name below it, each with its syntax tree."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): ast.parse(
            path.read_text(encoding="utf-8"), str(path)
        )
        for path in PACKAGE.rglob("*.py")
    }


def imports_of(tree, modules):
    """The modules of the package that a module imports, in functions and for annotations as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            root, _, below = name.partition(".")
            if root == PACKAGE.name:
                yield below if below in modules else below.rpartition(".")[0]


@pytest.fixture(scope="module")
def graph():
    """The modules that each module imports."""
    trees = sources()
    return {name: sorted(set(imports_of(tree, trees))) for name, tree in trees.items()}


def room_of(module):
    return module.partition(".")[0]


def is_public(module):
    return module in FACES


def test_every_module_is_in_a_room_or_is_a_face_of_the_package(graph):
    others = sorted(module for module in graph if not is_public(module) and room_of(module) not in ROOMS)
    assert others == ["_version"]


def test_imports_point_downward(graph):
    upward = [
        f"{module} imports {target or PACKAGE.name}"
        for module, targets in graph.items()
        if room_of(module) in ROOMS
        for target in targets
        if target != "_version" and (is_public(target) or ROOMS.index(room_of(target)) > ROOMS.index(room_of(module)))
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as err:
        pytest.fail(f"a circle of imports: {' <- '.join(module or PACKAGE.name for module in err.args[1])}")


# Neither modules nor rooms.
OTHER_NAMES = {"axolotl", "fit_patch", "patched_tensors"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_a_room_says_what_lives_there_and_names_nothing_that_does_not(path):
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert said, f"{path} has no docstring"
    named = set(re.findall(r"``([a-z_]+)``", said)) - OTHER_NAMES
    there = {below.stem for below in path.parent.rglob("*.py")} | {below.name for below in path.parent.iterdir()}
    assert named <= there


def test_the_page_on_the_architecture_names_no_module_that_is_not_there():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [PACKAGE, *(PACKAGE.parent / name for name in ("example_configs", "tests"))]
    files = {path.relative_to(PACKAGE.parent).as_posix() for room in rooms for path in room.rglob("*.py")}
    named = re.findall(r"`([\w/]+\.py)`", page)
    assert len(named) > 10
    assert [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in files)] == []


def loads_weights(node):
    """Whether a call, or a mention, of ``from_pretrained`` may be of a model's weights."""
    if not isinstance(node, ast.Attribute) or node.attr != "from_pretrained":
        return False
    return not (isinstance(node.value, ast.Name) and node.value.id in WITHOUT_WEIGHTS)


def test_weights_are_loaded_in_one_place():
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(map(loads_weights, ast.walk(ast.parse(path.read_text(encoding="utf-8")))))
    }
    assert found == LOADERS


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import axolotl_sdft", [""]),
        ("import os, axolotl_sdft.core.errors", ["core.errors"]),
        ("from axolotl_sdft.core import errors", ["core.errors"]),
        ("def late():\n    from axolotl_sdft.core.errors import SdftError", ["core.errors"]),
        ("if TYPE_CHECKING:\n    from axolotl_sdft.core import SdftError", ["core"]),
        ("from axolotl_sdftx.core import errors", []),
    ],
)
def test_imports_are_found_wherever_they_stand(source, expected):
    assert list(imports_of(ast.parse(source), {"core", "core.errors"})) == expected
