import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import axolotl_sdft

REPO_ROOT = Path(__file__).parent.parent
HEAVY = {"axolotl", "datasets", "numpy", "peft", "torch", "transformers", "trl"}
LIGHT_MODULES = [
    "axolotl_sdft",
    "axolotl_sdft.core.artifacts",
    "axolotl_sdft.cli",
    "axolotl_sdft.config",
    "axolotl_sdft.distillation.interfaces",
    "axolotl_sdft.core.errors",
    "axolotl_sdft.plugins.registry",
    "axolotl_sdft.plugins",
    "axolotl_sdft.core.runtime",
    "axolotl_sdft.cli.settings_reference",
]


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_importing_a_light_module_loads_nothing_heavy(module):
    program = f"import sys, {module}; print(*sorted({HEAVY} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], cwd=REPO_ROOT, capture_output=True, text=True)
    assert run.stderr == ""
    assert run.stdout.split() == []


def test_all_public_names_are_listed_before_they_are_loaded():
    program = "import axolotl_sdft; print(set(axolotl_sdft.__all__) <= set(dir(axolotl_sdft)))"
    run = subprocess.run([sys.executable, "-c", program], cwd=REPO_ROOT, capture_output=True, text=True)
    assert run.stdout == "True\n"


@pytest.mark.parametrize("name", [name for name in axolotl_sdft.__all__ if name != "__version__"])
def test_a_public_name_is_defined_in_the_module_it_is_loaded_from(name):
    # Read, not imported: importing Axolotl takes longer than all other tests of this file.
    home = importlib.util.find_spec(axolotl_sdft._HOME_OF[name])
    assert home is not None, f"{axolotl_sdft._HOME_OF[name]} is missing"
    defined = [getattr(node, "name", None) for node in ast.parse(Path(home.origin).read_text()).body]
    assert name in defined


def test_a_public_name_is_loaded_on_first_use():
    from axolotl_sdft.config import DynSDPBConfig

    assert axolotl_sdft.DynSDPBConfig is DynSDPBConfig


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'axolotl_sdft' has no attribute 'DynSDPConfig'"):
        _ = axolotl_sdft.DynSDPConfig


def test_the_quickstart_rows_are_distinct_short_and_varied():
    text = (REPO_ROOT / "example_configs" / "data" / "quickstart.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 96
    assert all([message["role"] for message in row["messages"]] == ["user", "assistant"] for row in rows)
    assert len({row["messages"][0]["content"] for row in rows}) == 96
    assert all(5 <= len(row["messages"][1]["content"].split()) <= 60 for row in rows)
    assert sum("\n\n" in row["messages"][0]["content"] for row in rows) >= 32


def test_the_container_file_copies_what_the_wheel_is_built_from_onto_axolotls_image():
    root = Path(__file__).parents[1]
    lines = (root / "docs" / "Containerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("FROM ")] == ["FROM axolotlai/axolotl:${AXOLOTL_TAG}"]
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert set(copied) == {"pyproject.toml", "README.md", "LICENSE", "axolotl_sdft", "example_configs"}
    assert all((root / name).exists() for name in copied)
