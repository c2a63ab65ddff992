import copy

import pytest

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault

from axolotl_sdft.config import PluginGeneration, SelfDistillationConfig, VLLMGeneration
from axolotl_sdft.core.errors import ConfigError, DatasetError, UnknownNameError, error_context
from axolotl_sdft.integrations.axolotl.datasets import (
    OVERRIDES_KEY,
    check_overrides,
    dataset_config,
    own_key,
    take_out_overrides,
)

TOP = {"template": "notes", "checks": ["leak"], "generation": {"max_new_tokens": 300, "max_batch_size": 4}}


def cfg_with(*overrides, top=TOP):
    """A configuration with one dataset for each block; None is a dataset without one."""
    datasets = [{"path": "rows.jsonl"} | ({} if own is None else {"self_distillation": own}) for own in overrides]
    return DictDefault({"self_distillation": top, "datasets": datasets})


def test_a_dataset_without_a_block_takes_the_top_level_one():
    own = dataset_config(cfg_with(None), 0)
    assert own.enabled
    assert own.settings().model_dump(exclude_unset=False)["template"] == "notes"


def test_a_dataset_changes_what_it_names_and_keeps_the_rest():
    own = dataset_config(cfg_with(None, {"template": "code", "generation": {"max_new_tokens": 20}}), 1).settings()
    assert (own.template, own.checks) == ("code", ("leak",))
    assert (own.generation.max_new_tokens, own.generation.max_batch_size) == (20, 4)


@pytest.mark.parametrize("is_validated", [False, True], ids=["as written", "with all defaults, as Axolotl keeps it"])
def test_a_dataset_with_another_backend_keeps_only_the_settings_that_this_one_has(is_validated):
    top = TOP | {"generation": {"dtype": "float32", **TOP["generation"]}}
    if is_validated:
        top = SelfDistillationConfig.model_validate(top).model_dump(exclude_none=True)

    own = dataset_config(cfg_with({"generation": {"backend": "vllm", "seed": 7}}, top=top), 0).settings().generation

    assert own == VLLMGeneration(max_new_tokens=300, dtype="float32", seed=7)


def test_a_plugins_options_are_not_those_of_another_plugins_backend():
    top = TOP | {"generation": {"backend": "one", "options": {"beams": 2}, "max_batch_size": 3}}

    same = dataset_config(cfg_with({"generation": {"backend": "one", "seed": 7}}, top=top), 0).settings().generation
    other = dataset_config(cfg_with({"generation": {"backend": "two"}}, top=top), 0).settings().generation

    assert same == PluginGeneration(backend="one", options={"beams": 2}, max_batch_size=3, seed=7)
    assert other == PluginGeneration(backend="two", max_batch_size=3)


def test_the_settings_of_a_dataset_equal_the_same_ones_written_at_the_top():
    own = dataset_config(cfg_with({"enabled": True, "template": "code"}), 0).settings()
    assert own == dataset_config(cfg_with(None, top={**TOP, "template": "code"}), 0).settings()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"templat": "code"}, r"datasets\[1\].self_distillation: unknown key 'templat'; did you mean 'template'\?"),
        ({"enable": False}, r"datasets\[1\].self_distillation: unknown key 'enable'; did you mean 'enabled'\?"),
        ({"enabled": "perhaps"}, r"datasets\[1\].self_distillation.enabled is 'perhaps': "),
        ({"generation": {"max_new_tokens": 0}}, r"datasets\[1\].self_distillation.generation.max_new_tokens is 0: "),
        ({"min_attempts": 2}, r"datasets\[1\].self_distillation: min_attempts is 2, but selection is first"),
        (False, r"datasets\[1\].self_distillation is False; write its keys under it, such as enabled: false"),
    ],
)
def test_a_wrong_block_is_named_with_its_dataset(own, message):
    with pytest.raises(ConfigError, match=message):
        check_overrides(cfg_with(None, own))


def test_all_wrong_blocks_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        check_overrides(cfg_with({"selection": "best"}, {"templat": "x"}))
    assert [line[:11] for line in str(caught.value).splitlines()] == ["datasets[0]", "datasets[1]"]


def test_a_block_of_a_dataset_needs_one_at_the_top():
    with pytest.raises(ConfigError, match=r"datasets\[0\].self_distillation is set, but there is no .*; an empty"):
        check_overrides(cfg_with({"enabled": False}, top=None))


def test_a_block_in_a_test_set_is_refused():
    cfg = cfg_with(None)
    cfg.test_datasets = [{"path": "test.jsonl", "self_distillation": {}}]
    with pytest.raises(ConfigError, match=r"test_datasets\[0\].self_distillation is set, but test sets are never"):
        check_overrides(cfg)


def test_blocks_that_are_taken_out_count_as_before():
    cfg = cfg_with(None, {"template": "code"}, {"enabled": False})
    before = [dataset_config(cfg, index) for index in range(3)]
    take_out_overrides(cfg)
    assert [dict(entry) for entry in cfg.datasets] == [{"path": "rows.jsonl"}] * 3
    assert [dataset_config(cfg, index) for index in range(3)] == before
    once = copy.deepcopy(cfg)
    take_out_overrides(cfg)
    assert cfg == once


def test_nothing_is_remembered_where_no_dataset_has_a_block():
    cfg = cfg_with(None)
    take_out_overrides(cfg)
    assert OVERRIDES_KEY not in cfg


def test_an_error_names_the_dataset_only_where_its_own_block_has_set_the_key():
    own = error_context(own_key(cfg_with({"template": "codes"}), 0))
    with pytest.raises(UnknownNameError, match=r"^datasets\[0\].self_distillation.template is"), own:
        raise UnknownNameError("self_distillation.template is 'codes'")
    own = error_context(own_key(cfg_with({"template": "codes"}), 0))
    with pytest.raises(ConfigError, match=r"^self_distillation.checks"), own:
        raise ConfigError("self_distillation.checks holds 'leek'")
    own = error_context(own_key(cfg_with({"template": "codes"}), 0))
    with pytest.raises(DatasetError, match=r"^datasets\[0\] has no rows"), own:
        raise DatasetError("datasets[0] has no rows")


@pytest.mark.parametrize("kept", [5, "notes", {"template": "notes"}])
def test_the_plugins_own_key_in_another_form_is_refused_with_where_the_blocks_belong(kept):
    cfg = cfg_with(None) | {OVERRIDES_KEY: kept}
    with pytest.raises(ConfigError, match=r"^sdft_datasets is .*, but the plugin sets this key itself; remove it, and"):
        check_overrides(DictDefault(cfg))


def test_datasets_behind_those_of_the_plugins_own_key_have_their_own_blocks():
    cfg = cfg_with({"template": "code"}, {"template": "unaided"})
    cfg[OVERRIDES_KEY] = [{"template": "self_data"}]
    check_overrides(cfg)
    assert [dataset_config(cfg, index).template for index in (0, 1)] == ["self_data", "unaided"]
