import pytest

from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.integrations.axolotl.blocks import Blocks, empty_blocks, read_blocks


def test_a_block_that_is_absent_switches_its_stage_off():
    assert read_blocks({"base_model": "seed"}) == Blocks(None, None, None)


def test_an_empty_block_switches_its_stage_on_with_the_defaults():
    blocks = read_blocks({"dynsdpb": {}, "self_distillation": {}})
    assert blocks.dynsdpb.alpha == 1.0
    assert blocks.self_distillation.template == "reference"
    assert blocks.layer_pruning is None


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"layer_pruning": {"num_layer": 2}}, r"layer_pruning: unknown key 'num_layer'; did you mean 'num_layers'\?"),
        (
            {"self_distillation": {"generation": {"max_tokens": 9}}},
            r"self_distillation.generation: unknown key 'max_tokens'; did you mean 'max_new_tokens'\?",
        ),
        ({"dynsdpb": {"alpha": -1}}, r"dynsdpb.alpha is -1: Input should be greater than or equal to 0"),
        ({"layer_pruning": 6}, r"layer_pruning is 6: Input should be a valid dictionary"),
        (
            {"layer_prunning": {"num_layers": 2}},
            r"layer_prunning is not a key of Axolotl.*did you mean 'layer_pruning'\?",
        ),
        ({"dynsdbp": {}}, r"did you mean 'dynsdpb'\?"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_way_out(cfg, message):
    with pytest.raises(ConfigError, match=message):
        read_blocks(cfg)


def test_a_block_whose_keys_are_all_commented_out_is_named_with_both_ways_out():
    cfg = {"self_distillation": None, "recovery_report": {"exact_match": None, "output_dir": None, "lm_eval": {}}}
    assert empty_blocks(cfg) == [
        "self_distillation: is empty, which counts as not set; write self_distillation: {} to have its defaults, or "
        "remove the key",
        "recovery_report.exact_match: is empty, which counts as not set; write exact_match: {} to have its defaults, "
        "or remove the key",
    ]


def test_a_block_that_is_absent_or_empty_on_purpose_is_not_named():
    assert empty_blocks({"base_model": None, "dynsdpb": {}, "recovery_report": {"num_samples": None}}) == []
    assert empty_blocks({"recovery_report": None, "merge": None}) == []  # their commands take the defaults


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        read_blocks({"layer_pruning": {"num_layers": 1, "drop_layers": [0]}, "dynsdpb": {"temperature": 0}})
    lines = str(caught.value).splitlines()
    assert lines[0] == "layer_pruning: both num_layers (1) and drop_layers ([0]) are set; remove one"
    assert lines[1].startswith("dynsdpb.temperature is 0:")
