import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.pruning.checkpoint.quantization import LayerNames, prune_quantization, renumbered

# Of layers 0 to 11, 2 and 3 go: 4 becomes 2, 11 becomes 9.
KEPT = (0, 1, 4, 5, 6, 7, 8, 9, 10, 11)
PARTS = ("self_attn.q_proj", "mlp.down_proj")


def layers(prefix="model.layers.", others=(), parts=PARTS, kept=KEPT, num_layers=12):
    names = [f"{prefix}{layer}.{part}.weight" for layer in range(num_layers) for part in parts]
    return LayerNames.of([*names, *others, "lm_head.weight"], prefix, num_layers, kept)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["lm_head", "model.layers.3.mlp", "model.layers.4.mlp"], ["lm_head", "model.layers.2.mlp"]),
        (["model.layers.10", "layers.5.mlp", "model.layers.2"], ["model.layers.8", "layers.3.mlp"]),
        (["model.layers.1.mlp", "model.layers.11.mlp"], ["model.layers.1.mlp", "model.layers.9.mlp"]),
        (
            ["model.layers.4*", "model.layers.*.mlp", "*.[3-5].mlp"],
            ["model.layers.2*", "model.layers.*.mlp", "*.[3-5].mlp"],
        ),
        (["*.layers.?.mlp", "layers.[2-5].mlp"], ["*.layers.[01234567].mlp", "layers.[23].mlp"]),
        (["re:.*layers\\.[0-4]\\..*"], ["re:.*layers\\.[012]\\..*"]),
        (["re:.*layers\\.(3|4|11)\\.mlp.*", "re:.*lm_head"], ["re:.*layers\\.[29]\\.mlp.*", "re:.*lm_head"]),
        (["re:.*layers\\.(4|11|10)\\.mlp"], ["re:.*layers\\.[289]\\.mlp"]),
        (["re:model\\.layers\\.(?:2|3)\\.", "re:.*layers\\.\\d+\\.mlp"], ["re:.*layers\\.\\d+\\.mlp"]),
        (["re:.*layers\\.2\\..*|lm_head"], ["re:.*layers\\.(?!)\\..*|lm_head"]),
        (["^model\\.layers\\.(9|11)\\.mlp$"], ["^model\\.layers\\.[79]\\.mlp$"]),
        (["re:.*\\.4\\.mlp.*"], ["re:.*\\.2\\.mlp.*"]),
        (["model.layers.12.eh_proj"], ["model.layers.10.eh_proj"]),  # a layer after the last predicts further tokens
        (["Linear", "1.2.3", "fp8_e4m3"], ["Linear", "1.2.3", "fp8_e4m3"]),
    ],
    ids=lambda value: value[0],
)
def test_names_and_patterns_follow_their_layers(before, after):
    assert renumbered(before, layers(), "ignore") == after


def test_an_entry_with_two_meanings_stays_where_the_cut_changes_neither():
    assert renumbered(["layers.1"], layers(kept=range(11)), "ignore") == ["layers.1"]  # layer 11 goes
    with pytest.raises(CheckpointError, match="it can mean layer 1 alone or layer 10 too"):
        renumbered(["layers.1"], layers(kept=range(1, 12)), "ignore")


def test_layers_of_other_groups_keep_their_numbers():
    others = [f"vision_tower.layers.{layer}.mlp.fc1.weight" for layer in range(6)] + ["mtp.layers.0.mlp.up_proj.weight"]
    before = ["vision_tower.layers.3.mlp", "mtp.layers.0.mlp", "model.layers.4.mlp", "re:model\\.layers\\.4\\."]
    after = ["vision_tower.layers.3.mlp", "mtp.layers.0.mlp", "model.layers.2.mlp", "re:model\\.layers\\.2\\."]
    assert renumbered(before, layers(others=others), "ignore") == after


def test_a_pattern_that_also_fits_another_group_in_the_same_way_is_rewritten():
    names = layers(others=["mtp.layers.0.mlp.up_proj.weight"])
    assert renumbered(["re:.*layers\\.[0-4]\\.mlp"], names, "ignore") == ["re:.*layers\\.[012]\\.mlp"]


def test_keys_follow_their_layers_at_any_depth():
    block = {
        "bits": 4,
        "dynamic": {"+:.*\\.5\\..*": {"bits": 8}, "-:.*\\.3\\.mlp.*": {}, "lm_head": {"bits": 8}},
        "quantization": {"quantized_layers": {"model.layers.2.mlp": {}, "model.layers.11.mlp": {"quant_algo": "FP8"}}},
        "config_groups": {"group_0": {"targets": ["re:.*layers\\.4\\..*"], "weights": None}},
    }
    assert renumbered(block, layers(), "quantization_config") == {
        "bits": 4,
        "dynamic": {"+:.*\\.3\\..*": {"bits": 8}, "lm_head": {"bits": 8}},
        "quantization": {"quantized_layers": {"model.layers.9.mlp": {"quant_algo": "FP8"}}},
        "config_groups": {"group_0": {"targets": ["re:.*layers\\.2\\..*"], "weights": None}},
    }


def test_only_the_quantization_blocks_of_a_config_change_also_below_the_text_config():
    block = {"modules_to_not_convert": ["layers.4.mlp"]}
    config = {"auto_map": {"AutoModel": "layers.4.Model"}, "text_config": {"quantization_config": block}}
    assert prune_quantization(config, layers()) == {
        "auto_map": {"AutoModel": "layers.4.Model"},
        "text_config": {"quantization_config": {"modules_to_not_convert": ["layers.2.mlp"]}},
    }


EXPERTS = [f"mlp.experts.{expert}.up_proj" for expert in range(3)]
VISION = [f"vision_tower.layers.{layer}.mlp.fc1.weight" for layer in range(6)]


@pytest.mark.parametrize(
    ("text", "names", "reason"),
    [
        ("layers.1", layers(), r"it can mean layer 1 alone or layer 10 too"),
        ("layers.11", layers(kept=(0, *range(11, 30)), num_layers=30), r"as 1 it would name further layers too"),
        ("model.layers.[0-4]*", layers(num_layers=40), r"it can mean layer 0 alone or layer 10 too"),
        ("*.layers.1?.mlp", layers(kept=range(4, 30), num_layers=30), r"layers 6, 7, 8, .* have no common name"),
        ("re:.*layers\\.(0\\.mlp|4\\.x)", layers(), r"the layer's number is not set apart by dots"),
        ("re:.*layers\\.(4|[)\\.mlp", layers(), r"the layer's number is not a regular expression"),
        ("re:.*s[.]4[.]mlp.*", layers(), r"it would no longer speak of model\.layers\.4\.mlp\.down_proj in the same"),
        ("-:.*\\.4\\..*", layers(parts=EXPERTS), r"its number can mean a layer or an expert"),
        ("*.layers.4.mlp", layers(others=VISION), r"it can mean model\.layers\. or vision_tower\.layers\."),
        (
            "re:.*layers\\.4\\.mlp",
            layers(others=VISION),
            r"it would no longer speak of vision_tower\.layers\.2\.mlp\.fc1",
        ),
    ],
)
def test_what_can_not_be_renamed_exactly_is_refused_with_the_reason(text, names, reason):
    block = {"dynamic": {text: {}}} if text.startswith("-:") else {"ignore": [text]}
    message = rf"quantization_config\.\w+ of the checkpoint holds .*, which can't be rewritten .*: {reason}.*; write it"
    with pytest.raises(CheckpointError, match=message):
        renumbered(block, names, "quantization_config")


@given(
    kept=st.sets(st.integers(0, 23), min_size=1).map(sorted),
    named=st.sets(st.integers(0, 23), min_size=1).map(sorted),
    part=st.sampled_from(PARTS),
)
def test_any_alternatives_of_a_pattern_fit_the_same_modules_as_before(kept, named, part):
    names = layers(kept=kept, num_layers=24)
    pattern = f"re:.*layers\\.(?:{'|'.join(map(str, named))})\\.{part.replace('.', '[.]')}"
    after = renumbered([pattern], names, "ignore")
    fits = [layer for layer in range(len(kept)) if after and re.match(after[0][3:], f"model.layers.{layer}.{part}")]
    assert [kept[layer] for layer in fits] == [layer for layer in kept if layer in named]
