"""Keys of our blocks on the command line of Axolotl's own commands, which ``--launcher python`` would leave unread."""

import click
import pytest

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault

from axolotl_sdft.config import BLOCKS
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.integrations.axolotl.compat import swallowed_options
from axolotl_sdft.integrations.axolotl.stages import prepare


def context(*args):
    made = click.Context(click.Command("train"), info_name="train")
    made.args = list(args)
    return made


def test_a_key_that_would_be_left_unread_is_refused_before_anything_else():
    with (
        context("--layer-pruning.num-layers", "4"),
        pytest.raises(
            ConfigError,
            match=r"--layer-pruning.num-layers stands on the command line, but axolotl train takes no keys of the "
            r"plugin there.*write it into the YAML file",
        ),
    ):
        prepare(DictDefault(), own_plugin=None)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--layer_pruning.num_layers=4"], ["--layer_pruning.num_layers"]),
        (["--no-layer-pruning.load-in-4bit", "--dynsdpb"], ["--no-layer-pruning.load-in-4bit", "--dynsdpb"]),
        (["--nproc_per_node", "2", "layer_pruning"], []),
        ([], []),
    ],
)
def test_words_that_are_meant_for_others_are_left_alone(args, expected):
    with context(*args):
        assert swallowed_options(BLOCKS) == expected


def test_outside_a_command_line_there_is_nothing_to_swallow():
    assert swallowed_options(BLOCKS) == []
