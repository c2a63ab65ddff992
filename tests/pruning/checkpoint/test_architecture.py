import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING

from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.pruning.checkpoint.architecture import (
    check_can_be_cut,
    find_layer_prefix,
    first_number_prefix,
    layer_count,
    prune_config,
    renamed,
)


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"])
def test_the_layer_count_is_found_and_lowered_under_any_name(key):
    config = {"model_type": "unknown", key: 5, "hidden_size": 8}
    assert layer_count(config) == 5
    assert prune_config(config, {1, 2}) == {"model_type": "unknown", key: 3, "hidden_size": 8}


def test_the_layer_count_of_a_nested_text_config_is_lowered_alone():
    text = {"num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"]}
    config = {"model_type": "unknown", "text_config": text, "vision_config": {"num_hidden_layers": 4}}
    pruned = prune_config(config, {0, 2})
    assert pruned["text_config"] == {"num_hidden_layers": 2, "layer_types": ["b", "d"]}
    assert pruned["vision_config"] == {"num_hidden_layers": 4}
    assert text["num_hidden_layers"] == 4  # the input is left as it was


def test_a_count_that_only_the_config_class_knows_is_written_out():
    pruned = prune_config({"model_type": "gemma3_text", "sliding_window_pattern": 2}, range(3, 26))
    assert pruned["num_hidden_layers"] == 3
    assert pruned["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]


def test_a_count_under_the_family_s_own_name_is_lowered():
    assert prune_config({"model_type": "gpt2", "n_layer": 4}, {3}) == {"model_type": "gpt2", "n_layer": 3}


def test_token_ids_that_are_as_many_as_the_layers_are_kept():
    config = {"model_type": "llama", "num_hidden_layers": 3, "eos_token_id": [1, 2, 7]}
    assert prune_config(config, {1})["eos_token_id"] == [1, 2, 7]


def test_lists_of_layer_numbers_are_renumbered_instead_of_cut():
    config = {"model_type": "unknown", "num_hidden_layers": 4, "moe_layers": [0, 1, 2, 3]}
    assert prune_config(config, {1})["moe_layers"] == [0, 1, 2]
    assert prune_config(config | {"moe_layers": [1, 3]}, {0, 1})["moe_layers"] == [1]


def test_sliding_windows_above_a_layer_number_become_a_list():
    config = {"model_type": "qwen3", "num_hidden_layers": 4, "use_sliding_window": True, "max_window_layers": 3}
    assert prune_config(config, {0})["layer_types"] == ["full_attention", "full_attention", "sliding_attention"]


def test_a_model_type_without_a_class_is_cut_by_its_config_alone_with_a_warning(caplog):
    prune_config({"model_type": "homemade", "num_hidden_layers": 4}, {0})
    assert "transformers has no class for model type 'homemade'" in caplog.text


@pytest.mark.parametrize(
    ("settings", "dropped", "expected"),
    [
        ({"first_k_dense_replace": 3}, {1, 4}, {"first_k_dense_replace": 2}),
        ({"num_dense_layers": 1}, {0}, {"num_dense_layers": 0}),
        ({"use_sliding_window": True, "max_window_layers": 4}, {0, 5}, {"max_window_layers": 3}),
        # Layers 1, 3 and 5 have experts; of 0, 2, 3, 4, 5 those are the third and the fifth.
        (
            {"decoder_sparse_step": 2, "mlp_only_layers": []},
            {1},
            {"decoder_sparse_step": 1, "mlp_only_layers": [0, 1, 3]},
        ),
        ({"decoder_sparse_step": 1, "mlp_only_layers": [0, 4]}, {1, 2}, {"mlp_only_layers": [0, 2]}),
        ({"interleave_moe_layer_step": 2}, {1}, {"moe_layers": [2, 4]}),
        (
            {"moe_layer_start_index": 2, "moe_layer_end_index": 4},
            {0, 3},
            {"moe_layer_start_index": 1, "moe_layer_end_index": 2},
        ),
        (
            {"moe_layer_start_index": 0, "moe_layer_end_index": -1, "moe_layer_interval": 2},
            {2, 3},
            {"moe_layer_start_index": 0, "moe_layer_end_index": 3, "moe_layer_interval": 2},
        ),
        ({"cross_attention_layers": [1, 4]}, {0, 4}, {"cross_attention_layers": [0]}),
        ({"some_layer_ids": [1, 4]}, {0}, {"some_layer_ids": [0, 3]}),
        ({"expert_layer_period": 3, "expert_layer_offset": 1}, {0}, {"expert_layer_offset": 0}),
        # Layer 2 alone is of that kind among the four left, so any period longer than what follows it will do.
        (
            {"attn_layer_period": 3, "attn_layer_offset": 2},
            {4, 5},
            {"attn_layer_period": 3, "attn_layer_offset": 2},
        ),
        ({"attn_layer_period": 3, "attn_layer_offset": 2}, {2}, {"attn_layer_period": 5, "attn_layer_offset": 4}),
        (
            {"block_types": ["recurrent", "attention"]},
            {1, 4, 5},
            {"block_types": ["recurrent", "recurrent", "attention"]},
        ),
        (
            {"attention_types": [[["global", "local"], 3]]},
            {0, 1, 2},
            {"attention_types": [[["local", "global", "local"], 1]]},
        ),
        ({"hybrid_pattern": "M*M-M*"}, {1, 3}, {"hybrid_pattern": "MMM*"}),
        ({"per_layer_config": {"2": {"a": 1}, "5": {"a": 2}}}, {0, 2}, {"per_layer_config": {"3": {"a": 2}}}),
        ({"num_layers": 6, "num_hidden_layers": 12}, {0}, {"num_layers": 5, "num_hidden_layers": 10}),
        ({"layer_types": list("aabbab"), "num_kv_shared_layers": 2}, {0, 4}, {"num_kv_shared_layers": 1}),
        ({"scale_attn_by_inverse_layer_idx": True}, {4, 5}, {"scale_attn_by_inverse_layer_idx": True}),
        ({"rescale_every": 4}, {5}, {"rescale_every": 4}),  # both 6 and 5 layers are halved once
        ({"rescale_every": 0}, {1, 2}, {"rescale_every": 0}),
        ({"ple_layer_ids": [1, 4]}, {4, 5}, {"ple_layer_ids": [1, 4]}),  # these count from 1
        ({"indexer_types": ["full", "shared"] * 3}, {1, 2, 3}, {"indexer_types": ["full", "full", "shared"]}),
    ],
)
def test_settings_that_go_by_layer_number_are_written_for_the_layers_left(settings, dropped, expected):
    pruned = prune_config({"model_type": "homemade", "num_hidden_layers": 6} | settings, dropped)
    assert {key: pruned[key] for key in expected} == expected


def test_the_residual_scale_of_a_depth_is_kept():
    pruned = prune_config({"model_type": "homemade", "num_hidden_layers": 9, "scale_depth": 1.5}, range(4, 9))
    assert pruned["scale_depth"] / math.sqrt(4) == pytest.approx(1.5 / math.sqrt(9))


@pytest.mark.parametrize(
    ("settings", "dropped", "reason"),
    [
        ({"is_encoder_decoder": True}, {1}, r"it has an encoder and a decoder \(is_encoder_decoder\)"),
        ({"hidden_size_per_layer_input": 8}, {1}, "hidden_size_per_layer_input"),
        (
            {"moe_layer_start_index": 0, "moe_layer_interval": 2},
            {1},
            r"moe_layer_interval is 2\); drop runs of 2 layers, or of a multiple of 2",
        ),
        (
            {"expert_layer_period": 2, "expert_layer_offset": 0},
            {1},
            "expert_layer_period is 2, .* runs of 2 layers",
        ),
        (
            {"scale_attn_by_inverse_layer_idx": True},
            {1},
            "scaled by the layer's number .* the last layers only",
        ),
        ({"rescale_every": 4}, {3}, r"halved after every 4 layers by number \(rescale_every\)"),
        ({"rescale_every": 3}, {5}, "set rescale_every to 0"),  # the final norm receives twice as much
        ({"num_kv_shared_layers": 2}, {0}, r"keys and values of others \(num_kv_shared_layers\)"),
        ({"layer_types": list("aabbab"), "num_kv_shared_layers": 2}, {1}, r"values of layers 1, 3 .*; keep 1"),
        ({"layer_types": ["conv", "full_attention"] * 3}, {1, 3, 5}, "no layer with attention .*; keep one of 1, 3, 5"),
        ({"attn_layer_period": 4, "attn_layer_offset": 2}, {2}, "no layer with attention would be left; keep one of 2"),
        ({"attn_layer_indices": [1, 2]}, {1, 2}, "no layer with attention would be left; keep one of 1, 2"),
        ({"indexer_types": ["full", "shared"] * 3}, {2}, r"tokens that layer 2 chooses \(indexer_types\)"),
        ({"ple_layer_ids": [4]}, {1}, "the hashed embeddings of layer 3 come from its number"),
        ({"num_layers_per_stack": 3}, {1}, "two stacks"),
    ],
)
def test_what_ties_a_layer_to_its_number_is_refused_with_the_reason(settings, dropped, reason):
    config = {"model_type": "homemade", "num_hidden_layers": 6}
    with pytest.raises(CheckpointError, match=rf"model type 'homemade' can't be cut soundly: .*{reason}"):
        prune_config(config | settings, dropped)
    with pytest.raises(CheckpointError, match=reason):
        prune_config({"model_type": "homemade", "text_config": config | settings}, dropped)


@pytest.mark.parametrize(
    "settings",
    [{"first_k_dense_replace": 0}, {"decoder_sparse_step": 1, "mlp_only_layers": []}, {"num_kv_shared_layers": None}],
)
def test_such_settings_that_say_nothing_stay(settings):
    config = {"model_type": "homemade", "num_hidden_layers": 4}
    assert prune_config(config | settings, {1}) == config | settings | {"num_hidden_layers": 3}


@given(
    dropped=st.sets(st.integers(0, 11), max_size=11),
    step=st.integers(1, 4),
    dense=st.sets(st.integers(0, 11)),
)
def test_each_layer_left_keeps_its_experts(dropped, step, dense):
    config = {"model_type": "homemade", "num_hidden_layers": 12, "decoder_sparse_step": step}
    pruned = prune_config(config | {"mlp_only_layers": sorted(dense)}, dropped)
    kept = [layer for layer in range(12) if layer not in dropped]
    before = [(layer + 1) % step == 0 and layer not in dense for layer in kept]
    new_step, new_dense = pruned["decoder_sparse_step"], pruned["mlp_only_layers"]
    assert [(layer + 1) % new_step == 0 and layer not in new_dense for layer in range(len(kept))] == before


@given(dropped=st.sets(st.integers(0, 11), max_size=11), period=st.integers(1, 6), offset=st.integers(0, 5))
def test_a_period_that_is_written_gives_each_layer_left_its_kind(dropped, period, offset):
    kept = [layer for layer in range(12) if layer not in dropped]
    settings = {"expert_layer_period": period, "expert_layer_offset": offset}
    wanted = [layer % period == offset for layer in kept]
    try:
        pruned = prune_config({"model_type": "homemade", "num_hidden_layers": 12} | settings, dropped)
    except CheckpointError:
        periods = range(1, len(kept) + 2)
        assert all(
            [layer % other == start for layer in range(len(kept))] != wanted
            for other in periods
            for start in range(other)
        )
    else:
        new_period, new_offset = pruned["expert_layer_period"], pruned["expert_layer_offset"]
        assert [layer % new_period == new_offset for layer in range(len(kept))] == wanted


def test_a_model_type_that_computes_from_the_layer_number_is_refused_unless_numbers_stay():
    config = {"model_type": "diffllama", "num_hidden_layers": 4}
    with pytest.raises(CheckpointError, match=r"'diffllama' can't be cut soundly: .* drop the last layers only"):
        prune_config(config, {1})
    assert prune_config(config, {2, 3})["num_hidden_layers"] == 2


def test_a_config_class_that_would_derive_something_else_is_refused():
    if "gemma4_unified_text" not in CONFIG_MAPPING:
        pytest.skip("this transformers does not know the model type yet")
    config = {"model_type": "gemma4_unified_text", "num_hidden_layers": 6}
    with pytest.raises(CheckpointError, match=r"its config class computes layer_types from the number of layers"):
        prune_config(config, {5})  # this class makes the last layer a full one


def test_a_count_that_the_top_level_repeats_is_lowered_too():
    text = {"model_type": "qwen2", "num_hidden_layers": 4}
    pruned = prune_config({"model_type": "homemade", "text_config": text, "num_hidden_layers": 4}, {0})
    assert (pruned["num_hidden_layers"], pruned["text_config"]["num_hidden_layers"]) == (3, 3)


def test_layers_are_counted_by_a_list_where_no_count_is_written():
    kinds = ["linear_attention", "full_attention", "moe"]
    config = {"model_type": "nemotron_h", "layers_block_type": kinds}
    assert layer_count(config) == 3
    assert prune_config(config, {2})["layers_block_type"] == kinds[:2]


def test_infinities_are_read_as_transformers_writes_them():
    config = {"model_type": "mamba2", "num_hidden_layers": 3, "time_step_limit": [0.0, {"__float__": "Infinity"}]}
    assert prune_config(config, {1}) == config | {"num_hidden_layers": 2}


def test_an_architecture_of_which_some_layers_can_go_passes_the_check():
    check_can_be_cut({"model_type": "diffllama", "num_hidden_layers": 4})
    with pytest.raises(CheckpointError, match="each layer's decay is computed from its number"):
        check_can_be_cut({"model_type": "minimax", "num_hidden_layers": 4})


def test_a_config_that_transformers_refuses_is_told():
    with pytest.raises(CheckpointError, match=r"transformers refuses config\.json of model type 'llama': "):
        prune_config({"model_type": "llama", "num_hidden_layers": 3, "hidden_size": "wide"}, {1})


def test_a_config_without_a_layer_count_is_refused():
    with pytest.raises(
        CheckpointError, match=r"model type 'homemade' gives no layer count; looked for .*num_hidden_layers"
    ):
        layer_count({"model_type": "homemade"})


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("model.layers.3.mlp.experts.7.up.weight", "model.layers."),
        ("h.0.attn.weight", "h."),
        ("0.weight", ""),
        ("model.layers.10.11.w", "model.layers."),
        ("model.conv1d.weight", None),
        ("model.norm.weight", None),
    ],
)
def test_the_prefix_ends_before_the_first_number(name, prefix):
    assert first_number_prefix(name) == prefix


def test_the_prefix_counts_exactly_the_layers_of_the_text_decoder():
    names = [f"language_model.model.layers.{i}.w" for i in range(3)] + [f"vision_tower.layers.{i}.w" for i in range(3)]
    names += [f"projector.{i}.w" for i in range(2)] + ["lm_head.weight"]
    assert find_layer_prefix(names, 3) == "language_model.model.layers."


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["model.layers.0.w", "model.layers.2.w"],
            r"no group of tensor names counts 0 to 2; .*layers\.0 to .*layers\.2",
        ),
        (["a.0.w", "a.1.w", "a.2.w", "b.0.w", "b.1.w", "b.2.w"], r"several groups of tensor names count"),
        (["w"], r"the names hold: no numbers"),
    ],
)
def test_names_that_do_not_count_the_layers_once_are_refused(names, message):
    with pytest.raises(CheckpointError, match=rf"config\.json says 3 layers, but .*{message}"):
        find_layer_prefix(names, 3)


def test_later_layers_move_up_and_other_names_stay():
    names = ["model.layers.0.w", "model.layers.1.w", "model.layers.2.experts.1.w", "model.norm.w", "vision.layers.1.w"]
    moved = [renamed(name, "model.layers.", kept=[0, 2]) for name in names]
    assert moved == ["model.layers.0.w", None, "model.layers.1.experts.1.w", "model.norm.w", "vision.layers.1.w"]
