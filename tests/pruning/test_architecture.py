import pytest

from axolotl_sdft.errors import CheckpointError
from axolotl_sdft.pruning.architecture import (
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
    ("settings", "reason"),
    [
        ({"is_encoder_decoder": True}, "encoder and a decoder"),
        ({"num_kv_shared_layers": 2}, r"keys and values of others \(num_kv_shared_layers\)"),
        ({"first_k_dense_replace": 1}, "first_k_dense_replace"),
        ({"num_dense_layers": 1}, "num_dense_layers"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ({"mlp_only_layers": [3]}, "mlp_only_layers"),
        ({"interleave_moe_layer_step": 2}, "interleave_moe_layer_step"),
        ({"moe_layer_interval": 2}, "moe_layer_interval"),
        ({"moe_layer_start_index": 1}, "moe_layer_start_index"),
        ({"cross_attention_layers": [1]}, "cross_attention_layers"),
        ({"hidden_size_per_layer_input": 8}, "hidden_size_per_layer_input"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scaled by the layer's number"),
        ({"use_sliding_window": True, "max_window_layers": 2}, "max_window_layers"),
        (
            {"quantization_config": {"modules_to_not_convert": ["model.layers.3.mlp"]}},
            "quantization_config names layers",
        ),
    ],
)
def test_what_ties_a_layer_to_its_number_is_refused_with_the_reason(settings, reason):
    config = {"model_type": "homemade", "num_hidden_layers": 4}
    with pytest.raises(CheckpointError, match=rf"model type 'homemade' can't be cut soundly: .*{reason}"):
        prune_config(config | settings, {1})
    with pytest.raises(CheckpointError, match=reason):
        prune_config({"model_type": "homemade", "text_config": config | settings} | settings, {1})


@pytest.mark.parametrize(
    "settings",
    [{"first_k_dense_replace": 0}, {"decoder_sparse_step": 1, "mlp_only_layers": []}, {"num_kv_shared_layers": None}],
)
def test_such_settings_that_say_nothing_pass(settings):
    config = {"model_type": "homemade", "num_hidden_layers": 4}
    assert prune_config(config | settings, {1})["num_hidden_layers"] == 3


def test_a_model_type_that_computes_from_the_layer_number_is_refused():
    with pytest.raises(CheckpointError, match=r"'diffllama' can't be cut soundly: each layer's lambda"):
        prune_config({"model_type": "diffllama", "num_hidden_layers": 4}, {1})


def test_a_config_class_that_would_derive_something_else_is_refused():
    config = {"model_type": "recurrent_gemma", "num_hidden_layers": 6}
    with pytest.raises(CheckpointError, match=r"its config class computes final_w_init_variance_scale from the number"):
        prune_config(config, {1})


def test_a_config_that_transformers_refuses_is_told():
    with pytest.raises(
        CheckpointError, match=r"transformers refuses config\.json of model type 'llama': .*hidden_size"
    ):
        prune_config({"model_type": "llama", "num_hidden_layers": 3, "hidden_size": "wide"}, {1})


def test_a_config_without_a_layer_count_is_refused():
    with pytest.raises(
        CheckpointError, match=r"model type 'homemade' gives no layer count; looked for num_hidden_layers"
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
