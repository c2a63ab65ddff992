import pytest
import transformers
from transformers import LlamaModel

from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.pruning.checkpoint.architecture import prune_config
from axolotl_sdft.pruning.checkpoint.verify import verify_cut
from tests.pruning.architectures import NUM_LAYERS, tiny_config


def config_of(model_type, **changes):
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip("this transformers does not know the model type yet")
    return tiny_config(model_type).to_dict() | {"model_type": model_type} | changes


def without(*dropped):
    return [layer for layer in range(NUM_LAYERS) if layer not in dropped]


KINDS = ["full_attention", "sliding_attention", "sliding_attention"] * 2


@pytest.mark.parametrize("model_type", ["llama", "deepseek_v3", "qwen2_moe", "gemma3", "bert", "modernbert"])
def test_a_sound_cut_passes(model_type):
    config = config_of(model_type)
    if "global_attn_every_n_layers" in config:
        pytest.skip("this transformers takes the windows of ModernBERT from a layer's number")
    verify_cut(config, prune_config(config, (1, 4)), without(1, 4))


@pytest.mark.parametrize(
    ("model_type", "dropped", "changes", "message"),
    [
        # Layer 3, the first with experts, became layer 2, which the unchanged count makes a dense one.
        (
            "deepseek_v3",
            1,
            {"first_k_dense_replace": 3},
            r"layers\.2\.mlp has 'DeepseekV3MLP' as class, but .*layers\.3\.mlp",
        ),
        (
            "qwen2_moe",
            1,
            {"mlp_only_layers": [2], "layer_types": None},
            r"layers\.1\.mlp .*, but model\.layers\.2\.mlp in the seed model",
        ),
        ("modernbert", 0, {"layer_types": KINDS[1:]}, r"layers\.0\.attn_norm has 'Identity' as class, but .*layers\.1"),
        ("gpt_neox_japanese", 5, {}, r"layers\.4\.attention has \(.* as parameter dense_bias, .* has nothing"),
        (
            "diffllama",
            1,
            {},
            r"layers\.1\.self_attn has .* as lambda_init, but model\.layers\.2",
        ),
        ("minicpm3", 1, {}, r"layers\.0 has .* as residual_scale"),
        (
            "llama",
            1,
            {"hidden_size": 64},
            r"embed_tokens has \(\(67, 64\), .* as parameter weight, .* has \(\(67, 32\)",
        ),
        ("llama", 1, {"vocab_size": 70}, r"the model has 70 as vocab_size, but the model in the seed model has 67"),
        ("llama", 1, {"num_hidden_layers": NUM_LAYERS}, r"no list of modules has become 5 long"),
    ],
)
def test_a_config_that_builds_other_layers_is_refused_with_the_first_difference(model_type, dropped, changes, message):
    config = config_of(model_type) | ({"mlp_only_layers": [2]} if model_type == "qwen2_moe" else {})
    pruned = config | {"num_hidden_layers": NUM_LAYERS - 1} | changes
    with pytest.raises(
        CheckpointError, match=rf"'{model_type}' can't be cut soundly: with layers .* left, .*{message}"
    ):
        verify_cut(config, pruned, without(dropped))


def test_kinds_of_layers_in_the_wrong_order_are_refused():
    config = config_of("gemma3_text", sliding_window_pattern=2)
    kinds = ["sliding_attention", "full_attention"] * 3
    pruned = config | {"num_hidden_layers": 5, "layer_types": kinds[:5]}
    difference = r" as (is_sliding, .* has True|attention_type, .* has 'sliding_attention')"
    with pytest.raises(CheckpointError, match=rf"layers\.1(\.self_attn has False|.* has 'full_attention'){difference}"):
        verify_cut(config | {"layer_types": kinds}, pruned, without(1))


def test_a_pruned_model_that_cannot_be_built_is_refused():
    config = config_of("llama")
    with pytest.raises(CheckpointError, match=r"'llama' can't be built with 5 layers: .*of_my_own"):
        verify_cut(config, config | {"num_hidden_layers": 5, "hidden_act": "of_my_own"}, without(0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "homemade"}, "transformers has no class for model type 'homemade', so its cut is not verified"),
        ({"model_type": "llama", "hidden_size": "wide"}, "can't build model type 'llama' without weights"),
    ],
)
def test_a_model_that_cannot_be_looked_at_is_passed_with_a_warning(config, message, caplog):
    verify_cut(config, config, [0])
    assert message in caplog.text


@pytest.mark.parametrize(("past", "is_refused"), [(NUM_LAYERS, False), (NUM_LAYERS - 2, True)])
def test_a_number_one_past_the_last_layer_means_none(monkeypatch, past, is_refused):
    built = LlamaModel.__init__

    def numbered(self, config):
        built(self, config)
        # As of layers that share keys, of which there are none.
        self.first_shared_layer_idx = config.num_hidden_layers - NUM_LAYERS + past

    monkeypatch.setattr(LlamaModel, "__init__", numbered)
    config = config_of("llama")
    if not is_refused:
        return verify_cut(config, prune_config(config, (1, 4)), without(1, 4))
    with pytest.raises(CheckpointError, match=r"has 2 as first_shared_layer_idx, but model in the seed model has 4"):
        verify_cut(config, prune_config(config, (1, 4)), without(1, 4))


def test_the_class_that_the_checkpoint_names_is_the_one_built():
    config = config_of("bert", architectures=["BertForSequenceClassification"], is_decoder=False)
    pruned = prune_config(config, {0}) | {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    with pytest.raises(CheckpointError, match=r"has 3 as num_labels|classifier has"):
        verify_cut(config, pruned, without(0))
