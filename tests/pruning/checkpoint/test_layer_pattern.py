"""Kinds of layers that went by position are watched, since not every program reads their list."""

import pytest

from axolotl_sdft.pruning.checkpoint.layer_pattern import pattern_warning

S, F = "sliding_attention", "full_attention"
GEMMA = [S, S, S, S, S, F] * 2


def without(kinds, *layers):
    return [kind for layer, kind in enumerate(kinds) if layer not in layers]


def warned(before, after, key="layer_types"):
    return pattern_warning({key: before}, {key: after})


def test_layers_that_left_their_place_in_the_period_are_named():
    # s s s f s s s s s f: 3 and 9 are full attention, and by position layer 5 would be.
    said = warned(GEMMA, without(GEMMA, 2, 3))

    assert said.startswith("layer_types: kinds of layers alternate every 6 layers in the seed model")
    assert "(layers 3, 5, 9, counted anew)" in said
    assert "remove whole periods, 6 neighbouring layers or a multiple" in said


@pytest.mark.parametrize("start", range(7))
def test_a_whole_period_may_go_from_anywhere(start):
    assert warned(GEMMA, without(GEMMA, *range(start, start + 6))) is None


def test_layers_without_rotary_positions_count_as_well():
    kinds = [1, 1, 1, 0] * 2
    assert warned(kinds, without(kinds, 2, 3), "no_rope_layers").startswith("no_rope_layers: ")
    assert warned(kinds, without(kinds, 2, 3, 4, 5), "no_rope_layers") is None


def test_kinds_that_are_alike_or_follow_no_period_are_no_matter():
    assert warned([F] * 6, [F] * 4) is None
    assert warned([F, S, S, F, F], [F, S, F, F]) is None
    assert pattern_warning({}, {}) is None


def test_the_text_decoder_of_a_nested_configuration_is_looked_at():
    nested = [{"text_config": {"layer_types": kinds}, "layer_types": [F]} for kinds in (GEMMA, without(GEMMA, 0))]
    assert "every 6 layers" in pattern_warning(*nested)


def test_a_period_that_only_a_setting_names_counts():
    kept = without(GEMMA, 2, 3)
    said = pattern_warning({"sliding_window_pattern": 6}, {"layer_types": kept})
    assert "every 6 layers" in said
