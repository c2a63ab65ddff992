"""Every Python block runs as it stands, where a newcomer would run it."""

import re

import pytest

from axolotl_sdft.plugins.registry import Registry
from tests.docs.conftest import run
from tests.docs.pages import REPOSITORY, blocks, each_block

OWN_ENVIRONMENT = ("llmcompressor",)
"""Packages that pin much of their own stack; what needs one was tried by hand, as the page says."""

PRUNING = [block for block in blocks(REPOSITORY / "docs" / "pruning.md") if block.language == "python"]


@pytest.mark.smollm2
@each_block("python", lambda block: block not in PRUNING and not any(name in block.text for name in OWN_ENVIRONMENT))
def test_a_python_block_runs(block, newcomer_folder, your_own):
    module = run(block, your_own)
    if hasattr(module, "hookimpl"):  # a plugin does nothing until it is registered
        Registry().add_plugin(module, "block")


@pytest.mark.smollm2
def test_pruning_from_python_prints_what_each_choice_costs_and_writes_a_smaller_model(newcomer_folder, capsys):
    (block,) = PRUNING
    run(block)
    printed = capsys.readouterr().out.splitlines()
    assert [len(re.findall(r"\d+(?=[,)])", line.partition(":")[0])) for line in printed] == [3, 6, 9, 0]
    assert printed[-1] == "134.5M parameters before, 113.3M after"
