import json

import pytest

from axolotl_sdft import cut_layers
from axolotl_sdft.config import LayerPruningConfig
from axolotl_sdft.core.artifacts import fingerprint
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.core.trained_on import PRUNED_KEY
from axolotl_sdft.integrations.axolotl.blocks import read_blocks
from axolotl_sdft.integrations.axolotl.rules import check_plugin, check_rules
from axolotl_sdft.pruning.spec import shaping_settings
from tests.pruning.conftest import edit_config, save_tiny_model

LIGER = "axolotl.integrations.liger.LigerPlugin"
CUT_CROSS_ENTROPY = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
LIGER_WITHOUT_LOGITS = {"plugins": [LIGER], "liger_fused_linear_cross_entropy": True}
ZERO_3 = {"zero_optimization": {"stage": 3}}
PLAIN = {"base_model": "seed", "datasets": [{"path": "rows.jsonl", "type": "alpaca"}]}


def check(other_trainers=None, **cfg):
    cfg = PLAIN | cfg
    check_rules(cfg, read_blocks(cfg), other_trainers or {})


def test_all_three_stages_go_together():
    check(layer_pruning={"num_layers": 2}, self_distillation={}, dynsdpb={})


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"self_distillation": {}, "rl": "dpo"}, "self_distillation rewrites supervised answers, but rl is 'dpo'"),
        ({"self_distillation": {}, "streaming": True}, "streaming is true; set streaming: false"),
        ({"self_distillation": {}, "pretraining_dataset": "c4"}, "pretraining_dataset holds plain text"),
        (
            {"self_distillation": {}, "skip_prepare_dataset": True},
            "skip_prepare_dataset: true hands the rows to the trainer as they are stored, without their type",
        ),
        ({"self_distillation": {}, "datasets": []}, "datasets is empty; name the training set"),
        ({"self_distillation": {}, "reward_model": True}, "reward_model is true"),
        ({"dynsdpb": {}, "rl": "grpo"}, "rl is 'grpo'; remove one"),
        ({"dynsdpb": {}, "trainer_cls": "my.Trainer"}, "trainer_cls is 'my.Trainer'"),
        (
            {"dynsdpb": {}, "plugins": [CUT_CROSS_ENTROPY], "fsdp_config": {"reshard_after_forward": True}},
            "where cut_cross_entropy leaves the model without logits, but with fsdp_config no process has the whole",
        ),
        (
            {"dynsdpb": {}, **LIGER_WITHOUT_LOGITS, "torch_compile": True},
            "where liger_fused_linear_cross_entropy leaves .* with torch_compile no process",
        ),
        ({"dynsdpb": {}, "plugins": [CUT_CROSS_ENTROPY], "deepspeed": ZERO_3}, r"with deepspeed \(ZeRO stage 3\) no"),
        ({"dynsdpb": {}, "use_eaft": True}, "use_eaft .True. each define the training loss"),
        (
            {"dynsdpb": {}, "adapter": "prompt-tuning"},
            "adapter is prompt-tuning, which puts virtual tokens .* use LoRA",
        ),
        ({"dynsdpb": {}, "context_parallel_size": 2}, "context_parallel_size is 2"),
        (
            {"layer_pruning": {"num_layers": 2}, "datasets": []},
            "calibration.path is not set.*metric: last",
        ),
        (
            {"layer_pruning": {"num_layers": 2, "calibration": [{"general_prompts": True}]}},
            "holds general prompts alone, but layers are scored on text that is read; add a part",
        ),
        ({"dynsdpb": {}, "base_model": None}, "base_model is not set"),
    ],
)
def test_a_combination_that_can_not_work_is_refused_with_the_way_out(cfg, message):
    with pytest.raises(ConfigError, match=message):
        check(**cfg)


@pytest.mark.parametrize(
    ("cfg", "key"),
    [
        ({"output_dir": "./other/../out"}, "output_dir"),
        ({"output_dir": "other", "lora_model_dir": "out/"}, "lora_model_dir"),
        ({"output_dir": "other", "base_model": "out"}, "base_model"),
    ],
)
@pytest.mark.parametrize("pruning", [{"num_layers": 2}, {"drop_layers": [2]}])
def test_the_pruned_checkpoint_shares_no_folder_with_another_model(cfg, key, pruning, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pruning = pruning | {"output_dir": str(tmp_path / "out")}
    with pytest.raises(
        ConfigError, match=rf"^layer_pruning\.output_dir is '.*out', the folder that {key} names, but no"
    ):
        check(layer_pruning=pruning, **cfg)
    check(layer_pruning=pruning, **cfg | {key: "elsewhere"})


def test_a_link_that_leads_to_itself_is_a_folder_of_its_own(tmp_path):
    (tmp_path / "round").symlink_to("round")  # that nothing can be written there is said when it is tried
    pruning = {"num_layers": 2, "output_dir": str(tmp_path / "round")}
    check(layer_pruning=pruning, output_dir="elsewhere")
    with pytest.raises(ConfigError, match="the folder that output_dir names"):
        check(layer_pruning=pruning, output_dir=pruning["output_dir"])


def test_a_checkpoint_that_was_pruned_so_already_may_be_named_twice(tmp_path):
    cut_layers(save_tiny_model(tmp_path / "seed"), [2], tmp_path / "pruned")
    marker = fingerprint(shaping_settings(LayerPruningConfig(drop_layers=(2,), patch="none")))
    edit_config(tmp_path / "pruned", **{PRUNED_KEY: marker})
    pruning = {"drop_layers": [2], "patch": "none", "output_dir": str(tmp_path / "pruned")}
    check(layer_pruning=pruning, base_model=str(tmp_path / "pruned"))


@pytest.mark.parametrize(
    "cfg",
    [
        {"dynsdpb": {}, "plugins": [LIGER], "liger_rope": True, "liger_cross_entropy": True},
        {"dynsdpb": {}, "plugins": [CUT_CROSS_ENTROPY]},
        {"dynsdpb": {}, **LIGER_WITHOUT_LOGITS},
        {"dynsdpb": {}, "plugins": [CUT_CROSS_ENTROPY], "cut_cross_entropy": False, "torch_compile": True},
        {"dynsdpb": {}, "plugins": [CUT_CROSS_ENTROPY], "deepspeed": {"zero_optimization": {"stage": 2}}},
        {"dynsdpb": {}, "plugins": [CUT_CROSS_ENTROPY], "deepspeed": "no such file.json"},
        {"dynsdpb": {}, "fsdp_config": {"reshard_after_forward": True}},
        {"dynsdpb": {}, "streaming": True},
        {"layer_pruning": {"drop_layers": [1]}, "rl": "dpo"},
        {"layer_pruning": {"drop_layers": [1]}, "datasets": None},
        {"layer_pruning": {"num_layers": 2, "metric": "last"}, "datasets": None},
        {"layer_pruning": {"drop_layers": [1], "calibration": [{"general_prompts": True}]}, "datasets": None},
        {"layer_pruning": {"num_layers": 2}, "datasets": None, "pretraining_dataset": "corpus"},
    ],
)
def test_a_combination_that_works_is_let_through(cfg):
    check(**cfg)


def test_a_second_plugin_with_a_trainer_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"dynsdpb and the plugin kd.KDPlugin \(KDTrainer\) each bring a trainer"):
        check(other_trainers={"kd.KDPlugin": "KDTrainer"}, dynsdpb={})


def test_all_combinations_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        check(self_distillation={}, dynsdpb={}, rl="dpo", streaming=True)
    assert len(str(caught.value).splitlines()) == 3


def test_the_stage_of_deepspeed_is_read_from_its_file(tmp_path):
    path = tmp_path / "zero3.json"
    path.write_text(json.dumps(ZERO_3))
    with pytest.raises(ConfigError, match="with deepspeed"):
        check(dynsdpb={}, deepspeed=str(path), **LIGER_WITHOUT_LOGITS)


@pytest.mark.parametrize(("kind", "is_refused"), [("P_TUNING", True), ("PREFIX_TUNING", False), ("LORA", False)])
def test_an_adapter_that_is_trained_on_is_refused_by_its_own_configuration(tmp_path, kind, is_refused):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}), encoding="utf-8")
    cfg = {"dynsdpb": {}, "adapter": "lora", "lora_model_dir": str(tmp_path)}
    if not is_refused:
        return check(**cfg)
    with pytest.raises(ConfigError, match=r"peft_type in .*adapter_config.json is P_TUNING, which puts virtual tokens"):
        check(**cfg)


@pytest.mark.parametrize("plugins", [None, [], ["axolotl.integrations.liger.LigerPlugin"]])
def test_blocks_that_training_would_drop_since_the_plugin_is_not_listed_are_named(plugins):
    cfg = {"base_model": "seed", "plugins": plugins, "layer_pruning": {"num_layers": 2}, "dynsdpb": {}}
    message = r"^layer_pruning, dynsdpb are without effect in `axolotl train`: .*Add it, plugins: \[axolotl_sdft"
    with pytest.raises(ConfigError, match=message):
        check_plugin(cfg, read_blocks(cfg))


@pytest.mark.parametrize(
    "cfg",
    [
        {"plugins": ["axolotl_sdft.SDFTPlugin"], "layer_pruning": {"num_layers": 2}},
        {"merge": {}, "recovery_report": {}},  # have commands of their own
    ],
)
def test_blocks_that_have_their_effect_need_nothing_more(cfg):
    check_plugin(cfg, read_blocks(cfg))


def test_logit_distillation_goes_with_all_other_stages():
    check(layer_pruning={"num_layers": 2}, self_distillation={}, dynsdpb={}, logit_distillation={}, adapter="lora")
    check(logit_distillation={"teacher": "own"}, relora=True, adapter="lora")
    check(logit_distillation={"alpha": 0}, fsdp_config={"reshard_after_forward": True})


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"rl": "dpo"}, "logit_distillation trains with a supervised trainer, but rl is 'dpo'"),
        ({"trainer_cls": "my.Trainer"}, "logit_distillation brings a trainer, but trainer_cls is 'my.Trainer'"),
        ({"use_dft": True}, r"logit_distillation and use_dft \(True\) each define the training loss"),
        ({"adapter": "prompt-tuning"}, "logit_distillation: adapter is prompt-tuning.* without the logit_distillation"),
        ({"context_parallel_size": 2}, "logit_distillation matches the tokens of whole sequences"),
        ({"fsdp_config": {"offload": True}}, "needs whole layers on each rank, but fsdp_config spreads them"),
        ({"deepspeed": ZERO_3}, r"whole layers on each rank, but deepspeed \(ZeRO stage 3\) spreads them"),
        ({"tensor_parallel_size": 2}, "whole layers on each rank, but tensor_parallel_size spreads them"),
        (
            {**LIGER_WITHOUT_LOGITS, "torch_compile": True},
            "logit_distillation runs the output head itself where liger_fused_linear_cross_entropy leaves",
        ),
        ({"relora": True, "adapter": "lora"}, r"the layers that logit_distillation.teacher \(auto\) would share"),
    ],
)
def test_what_keeps_the_seed_model_from_teaching_is_refused(cfg, message):
    with pytest.raises(ConfigError, match=message):
        check(logit_distillation={}, **cfg)


def test_layers_that_are_trained_can_not_be_shared():
    with pytest.raises(
        ConfigError, match=r"teacher is shared, but adapter is not set.*own or auto, or set adapter: lora"
    ):
        check(logit_distillation={"teacher": "shared"})


def test_another_trainer_is_refused_for_each_block_that_brings_one():
    with pytest.raises(ConfigError) as caught:
        check({"kd.KDPlugin": "KDTrainer"}, logit_distillation={}, dynsdpb={})
    assert str(caught.value).count("kd.KDPlugin (KDTrainer) each bring a trainer; remove one of the two") == 2
