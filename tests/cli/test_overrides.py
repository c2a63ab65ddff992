import click
import pytest

from axolotl_sdft.cli.commands import BLOCK_NAMES
from axolotl_sdft.cli.overrides import set_keys, split_overrides
from axolotl_sdft.config import BLOCKS

NAMES = ("layer_pruning", "self_distillation")


def test_the_names_of_the_blocks_are_those_of_the_settings():
    assert tuple(BLOCKS) == BLOCK_NAMES


@pytest.mark.parametrize(
    ("args", "key", "value"),
    [
        (["--layer-pruning.num-layers", "4"], "layer_pruning.num_layers", 4),
        (["--layer_pruning.num_layers=0.25"], "layer_pruning.num_layers", 0.25),
        (["--layer-pruning.drop-layers", "[2, 3]"], "layer_pruning.drop_layers", [2, 3]),
        (["--layer-pruning.load-in-4bit"], "layer_pruning.load_in_4bit", True),
        (["--no-layer-pruning.load-in-4bit"], "layer_pruning.load_in_4bit", False),
        (["--self-distillation.generation.max-new-tokens", "9"], "self_distillation.generation.max_new_tokens", 9),
        (["--self-distillation.template", "{{ a"], "self_distillation.template", "{{ a"),  # not YAML: a text
    ],
)
def test_a_key_is_an_option_in_axolotls_style_wherever_it_stands(args, key, value):
    for words in (["config.yml", "--dry-run", *args], ["config.yml", *args, "--dry-run"]):
        assert split_overrides(words, NAMES) == (["config.yml", "--dry-run"], {key: value})


def test_a_key_may_stand_before_the_configuration():
    words = ["--layer-pruning.num-layers", "4", "config.yml"]
    assert split_overrides(words, NAMES) == (["config.yml"], {"layer_pruning.num_layers": 4})


def test_other_words_stay_as_they_are():
    words = ["config.yml", "--dry-run", "--prompt", "--x.y", "a.b", "--unknown.key", "3", "--", "--layer-pruning.x"]
    assert split_overrides(words, NAMES) == (words, {})


def test_a_key_that_is_given_twice_is_refused():
    with pytest.raises(click.UsageError, match=r"--layer-pruning.num-layers is given twice"):
        split_overrides(["--layer-pruning.num-layers=3", "--layer-pruning.num-layers", "4"], NAMES)


def test_keys_are_set_in_blocks_that_are_made_where_they_lack():
    cfg = {"layer_pruning": {"num_layers": 2, "metric": "divergence"}}
    set_keys(cfg, {"layer_pruning.num_layers": 4, "self_distillation.generation.seed": 1})
    assert cfg == {
        "layer_pruning": {"num_layers": 4, "metric": "divergence"},
        "self_distillation": {"generation": {"seed": 1}},
    }


def test_a_key_below_something_else_than_a_block_is_refused():
    with pytest.raises(click.UsageError, match=r"--layer_pruning.patch.kind needs a block under layer_pruning.patch"):
        set_keys({"layer_pruning": {"patch": "none"}}, {"layer_pruning.patch.kind": 1})
