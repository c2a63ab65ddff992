import json
import logging
import re
import shutil

import pytest
from axolotl.utils.dict import DictDefault

from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.artifacts import read_json
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.integrations.axolotl import compat
from axolotl_sdft.integrations.axolotl.layer_numbers import check_layer_numbers, seed_layers, translate_layer_numbers
from axolotl_sdft.integrations.axolotl.stages import prune_base_model
from tests.pruning.conftest import save_tiny_model


@pytest.fixture(scope="module")
def seed_dir(tmp_path_factory):
    """A Llama of 6 layers."""
    return save_tiny_model(tmp_path_factory.mktemp("seed"))


def check(seed_dir, *, drop_layers=(1, 2), **cfg):
    check_layer_numbers(cfg, LayerPruningConfig(drop_layers=drop_layers), seed_dir)


def test_the_layers_of_a_seed_are_found_with_their_modules_and_parameters(seed_dir):
    layers = seed_layers(seed_dir)
    assert (layers.num_layers, layers.prefix) == (6, "model.layers.")
    assert {"", ".mlp", ".mlp.up_proj", ".mlp.up_proj.weight"} < set(layers.parts)


# Lists of numbers are translated


@pytest.mark.parametrize(("given", "taken"), [([0, 3, 5], [0, 1, 3]), (4, [2]), (["3"], [1]), ([5, 0], [3, 0])])
def test_a_list_of_layers_names_the_same_layers_after_the_cut(given, taken, caplog):
    cfg = {"peft_layers_to_transform": given}
    with caplog.at_level(logging.WARNING):
        translate_layer_numbers(cfg, (1, 2), 6)
    assert cfg == {"peft_layers_to_transform": taken}
    (message,) = caplog.messages
    assert message.startswith("peft_layers_to_transform: layers ")
    assert message.endswith(
        f"are layers {', '.join(map(str, taken))} of the pruned one (layer_pruning), which are taken"
    )


def test_a_list_whose_layers_keep_their_numbers_is_left_alone_without_a_word(caplog):
    cfg = {"peft_layers_to_transform": [0, 3]}
    translate_layer_numbers(cfg, (4, 5), 6)
    assert cfg == {"peft_layers_to_transform": [0, 3]}
    assert caplog.messages == []


def test_a_list_that_names_a_removed_layer_is_refused_before_and_after_planning(seed_dir):
    expected = (
        r"peft_layers_to_transform names layers 0, 2 of the seed model, but layer_pruning removes 2; "
        "take 2 out of peft_layers_to_transform, or keep the layers"
    )
    with pytest.raises(ConfigError, match=expected):
        check(seed_dir, peft_layers_to_transform=[0, 2])
    with pytest.raises(ConfigError, match=expected):
        translate_layer_numbers({"peft_layers_to_transform": [0, 2]}, (2,), 6)


@pytest.mark.parametrize("value", [[6], [-1], ["all"], [1.5]])
def test_a_list_with_something_else_than_layers_of_the_seed_is_refused(seed_dir, value):
    with pytest.raises(ConfigError, match=r"peft_layers_to_transform is .*the seed model has layers 0 to 5"):
        check(seed_dir, peft_layers_to_transform=value)


# LISA draws layers from those of the pruned model

LISA = {"lisa_step_interval": 20, "lisa_layers_attribute": "model.layers"}


@pytest.mark.parametrize("pruning", [{"drop_layers": (1, 2)}, {"num_layers": 2}, {"num_layers": 0.3}])
@pytest.mark.parametrize("path", [None, "model.layers", "base_model.model.model.layers"])
def test_more_layers_to_draw_than_stay_are_refused(seed_dir, pruning, path):
    cfg = LISA | {"lisa_n_layers": 5, "lisa_layers_attribute": path}
    with pytest.raises(ConfigError, match=r"lisa_n_layers is 5, but layer_pruning leaves 4 of the 6 layers .* 4 at mo"):
        check_layer_numbers(cfg, LayerPruningConfig(**pruning), seed_dir)


@pytest.mark.parametrize(
    "cfg",
    [
        LISA | {"lisa_n_layers": 4},
        LISA | {"lisa_n_layers": 5, "lisa_step_interval": None},  # then Axolotl draws none
        LISA | {"lisa_n_layers": 5, "lisa_layers_attribute": "model.vision_tower.layers"},
    ],
)
def test_layers_to_draw_that_are_there_are_let_through(seed_dir, cfg):
    check(seed_dir, **cfg)


def test_one_layer_by_number_to_draw_from_is_refused_like_any_path(seed_dir):
    with pytest.raises(ConfigError, match=r"lisa_layers_attribute holds 'model\.layers\.4\.mlp\.experts'"):
        check(seed_dir, **LISA | {"lisa_n_layers": 2, "lisa_layers_attribute": "model.layers.4.mlp.experts"})


# Patterns with numbers are refused


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("unfrozen_parameters", [r"^model.layers.[45].mlp", "^lm_head.weight$"], "4, 5"),
        ("unfrozen_parameters", [r"model\.layers\.(3|4)\..*"], "3, 4"),
        ("unfrozen_parameters", [".*layers.4.mlp.up_proj.weight"], "4"),
        ("lora_target_modules", r".*\.[3-5]\.self_attn\.(q|k)_proj", "3, 4, 5"),
        ("lora_target_modules", ["layers.3.self_attn.q_proj", "v_proj"], "3"),
        ("lora_target_parameters", ["4.mlp.up_proj.weight"], "4"),
        ("lora_modules_to_save", ["layers.5.mlp"], "5"),
        ("lora_exclude_modules", r".*layers\.0?5\..*", "5"),
        ("lora_rank_pattern", {r"layers\.4\.mlp\.up_proj": 32}, "4"),
        ("lr_groups", [{"name": "top", "modules": ["layers.5."], "lr": 1e-5}], "5"),
        ("device_map", {"model.layers.3": 0}, "3"),
        ("llmcompressor", {"recipe": {"ignore": [r"re:.*layers\.4\.mlp"]}}, "4"),
    ],
)
def test_a_pattern_with_layer_numbers_is_refused_with_what_it_means_before_and_after(seed_dir, key, value, named):
    new = ", ".join(str(int(layer) - 2) for layer in named.split(", "))
    with pytest.raises(
        ConfigError,
        match=rf"{key} holds .*, which means layers {named} of the seed model, but after layer_pruning those are "
        rf"layers {new}, and the text would mean .*; take the numbers out, or prune first",
    ):
        check(seed_dir, **{key: value})


def test_the_layers_that_a_pattern_would_mean_after_the_cut_are_named(seed_dir):
    # Without layers 1 and 2, the number 3 belongs to what was layer 5.
    with pytest.raises(ConfigError, match="those are layers 1, and the text would mean the seed model's layers 5;"):
        check(seed_dir, unfrozen_parameters=["^model.layers.3.mlp"])


def test_a_pattern_that_names_a_removed_layer_is_refused(seed_dir):
    with pytest.raises(ConfigError, match="means layers 1, 2, 3 of the seed model, but layer_pruning removes 1, 2;"):
        check(seed_dir, lora_target_modules=r".*layers\.[1-3]\.mlp\.up_proj")


@pytest.mark.parametrize(
    "cfg",
    [
        {"lora_target_modules": ["q_proj", "up_proj", "w1"], "lora_modules_to_save": ["lm_head"]},
        {"lora_target_modules": r".*layers\.\d+\.mlp\.(up|down)_proj"},
        {"lora_target_modules": "all-linear"},
        {"unfrozen_parameters": ["^model.embed_tokens.weight$[:32000]", "model.layers.[0-9]+.mlp"]},
        {"unfrozen_parameters": ["^model.layers.0.mlp"], "lora_target_modules": r".*layers\.0\.mlp\.up_proj"},
        {"unfrozen_parameters": ["^model.layers.(unclosed"]},
        {"lr_groups": [{"name": "4", "modules": ["q_proj"], "lr": 1e-5}]},
        {"datasets": [{"path": "layers.3.jsonl"}], "wandb_name": "layers.3", "learning_rate": 3e-4},
    ],
)
def test_what_means_the_same_after_the_cut_goes_through(seed_dir, cfg):
    check(seed_dir, **cfg)


def test_all_keys_at_fault_are_named_at_once(seed_dir):
    cfg = {"unfrozen_parameters": ["^model.layers.4.mlp"], "peft_layer_replication": [[0, 3], [2, 6]]}
    with pytest.raises(ConfigError) as caught:
        check(seed_dir, **cfg)
    lines = str(caught.value).splitlines()
    assert [re.match(r"\w+", line)[0] for line in lines] == ["unfrozen_parameters", "peft_layer_replication"]


def test_without_such_keys_the_seed_is_not_read(tmp_path):
    check(tmp_path / "nowhere", lora_target_modules=["q_proj"], lora_r=8)


def test_where_the_scores_choose_a_pattern_may_name_protected_layers_only(seed_dir):
    config = LayerPruningConfig(num_layers=2, protect_first=2)
    check_layer_numbers({"unfrozen_parameters": [r"^model.layers.[01]\."]}, config, seed_dir)
    with pytest.raises(ConfigError, match="num_layers lets the scores choose which of layers 2 to 5 go"):
        check_layer_numbers({"unfrozen_parameters": [r"^model.layers.[12]\."]}, config, seed_dir)


def test_layers_that_spectrum_measured_before_the_cut_are_refused(seed_dir):
    plugins = ["axolotl_sdft.SDFTPlugin", "axolotl.integrations.spectrum.SpectrumPlugin"]
    with pytest.raises(
        ConfigError, match=r"plugin axolotl\.integrations\.spectrum\.SpectrumPlugin unfreezes .*; prune f"
    ):
        check(seed_dir, plugins=plugins)
    check(seed_dir, plugins=plugins[:1])


# Settings of the model


@pytest.mark.parametrize(
    ("key", "value", "own"),
    [("num_hidden_layers", 4, "6"), ("layer_types", ["full_attention"] * 6, r"\[.*\]|None")],
)
def test_an_override_of_what_pruning_changes_is_refused(seed_dir, key, value, own):
    with pytest.raises(
        ConfigError,
        match=rf"overrides_of_model_config\.{key} is .*, but layer_pruning sets it .* base_model has ({own}) there;",
    ):
        check(seed_dir, overrides_of_model_config={key: value})


def test_another_override_goes_through(seed_dir):
    check(seed_dir, overrides_of_model_config={"rope_theta": 1e6, "eos_token_id": [1, 2]})


def test_other_settings_than_the_seed_models_are_refused_by_key(seed_dir, tmp_path):
    settings = json.loads((seed_dir / "config.json").read_text())
    changed = {"rope_theta": 7.0, "transformers_version": "0"}
    (tmp_path / "config.json").write_text(json.dumps(settings | changed))
    named = {"base_model": str(seed_dir), "base_model_config": str(tmp_path)}
    with pytest.raises(
        ConfigError, match=r"base_model_config is '.*', which differs from base_model in rope_theta, but"
    ):
        check(seed_dir, **named)
    with pytest.raises(
        ConfigError, match=r"base_model_config is 'no/where', whose config.json can't be read \(.*\); r"
    ):
        check(seed_dir, **named | {"base_model_config": "no/where"})


# On a whole configuration


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/../seed", "elsewhere"])
def test_base_model_config_becomes_the_pruned_checkpoint_however_it_is_spelt(spelling, seed_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compat, "validate_early", lambda _cfg: None)
    shutil.copytree(seed_dir, "seed")
    shutil.copytree(seed_dir, "elsewhere")
    cfg = DictDefault({"base_model": "seed", "base_model_config": spelling.format(tmp_path / "seed")})
    prune_base_model(cfg, LayerPruningConfig(drop_layers=(0, 4), patch="none"))
    assert cfg.base_model_config == cfg.base_model != "seed"


def test_pruning_translates_the_list_in_the_configuration(seed_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compat, "validate_early", lambda _cfg: None)
    cfg = DictDefault({"base_model": str(seed_dir), "peft_layers_to_transform": [3, 5]})
    prune_base_model(cfg, LayerPruningConfig(drop_layers=(0, 4)))
    assert cfg.peft_layers_to_transform == [2, 3]
    assert read_json(tmp_path / cfg.base_model / "config.json")["num_hidden_layers"] == 4


def test_a_refusal_comes_before_anything_is_written(seed_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = DictDefault({"base_model": str(seed_dir), "unfrozen_parameters": ["^model.layers.5.mlp"]})
    with pytest.raises(ConfigError, match="unfrozen_parameters holds"):
        prune_base_model(cfg, LayerPruningConfig(drop_layers=(0, 4)))
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_calls_its_layers_by_a_longer_name_is_understood(seed_dir, tmp_path):
    """As transformers does with the text decoder of models that see: their files say ``language_model.model``."""
    settings = json.loads((seed_dir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").write_bytes((seed_dir / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="means layers 4 of the seed model"):
        check(tmp_path, unfrozen_parameters=["^model.language_model.layers.4.mlp"])
