from operator import attrgetter
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from axolotl_sdft.config import (
    CalibrationConfig,
    DynSDPBConfig,
    LayerPruningConfig,
    LogitDistillationConfig,
    OpenAIGeneration,
    RecoveryReportConfig,
    SelfDistillationConfig,
    TransformersGeneration,
    nearest_key_hint,
    parse_size,
)

MODELS = (CalibrationConfig, LayerPruningConfig, TransformersGeneration, SelfDistillationConfig, DynSDPBConfig)
BYTES_PER_UNIT = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def least(model):
    """The settings without which a block is refused."""
    return {"num_layers": 6} if model is LayerPruningConfig else {}


# Defaults


def test_layer_pruning_with_only_a_number_of_layers_scores_the_training_set_by_angular_distance():
    assert LayerPruningConfig(num_layers=6).model_dump() == {
        "num_layers": 6,
        "target": None,
        "drop_layers": None,
        "metric": "angular_distance",
        "token_reduction": "all",
        "protect_first": 0,
        "protect_last": 0,
        "patch": "linear",
        "calibration": {
            "path": None,
            "name": None,
            "split": "train",
            "type": None,
            "num_samples": 256,
            "sequence_len": 1024,
            "batch_size": 4,
            "parts": (),
            "general_share": 0.5,
        },
        "dtype": "auto",
        "device_map": None,
        "load_in_4bit": False,
        "max_shard_size": 5_000_000_000,
        "output_dir": None,
    }


def test_an_empty_self_distillation_block_draws_up_to_four_answers_and_keeps_originals_of_rejected_ones():
    assert SelfDistillationConfig().model_dump() == {
        "template": "reference",
        "answer_prefix": "",
        "examples": (),
        "checks": ("empty", "truncated", "leak", "repetition", "refusal"),
        "max_attempts": 4,
        "selection": "first",
        "min_attempts": None,
        "on_reject": "original",
        "general_rows": 0,
        "generation": {
            "backend": "transformers",
            "max_new_tokens": 512,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": None,
            "seed": 42,
            "chat_template": None,
            "chat_template_kwargs": {},
            "max_batch_tokens": 32768,
            "max_batch_size": 64,
            "dtype": "auto",
            "device_map": None,
            "trust_remote_code": None,
        },
        "gap_samples": 256,
        "output_dir": None,
    }


def test_an_empty_dynsdpb_block_is_dynamic_in_both_ways():
    assert DynSDPBConfig().model_dump() == {
        "alpha": 1.0,
        "temperature": 2.0,
        "temperature_min": 1.0,
        "dynamic_alpha": True,
        "dynamic_temperature": True,
        "divergence": "forward_kl",
        "teacher_correct_only": False,
        "teacher_storage": "auto",
        "top_k": 64,
        "cpu_offload": False,
        "chunk_tokens": 64,
        "drift_steps": 50,
    }


@pytest.mark.parametrize("model", MODELS)
def test_the_defaults_pass_their_own_bounds_and_rules(model):
    block = model(**least(model))
    given_as_yaml = block.model_dump(exclude_none=True)
    assert model.model_validate(given_as_yaml) == block


@pytest.mark.parametrize("model", MODELS)
def test_a_block_can_not_be_changed_once_it_is_read(model):
    block = model(**least(model))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(block, next(iter(model.model_fields)), 1)


# Bounds


@pytest.mark.parametrize(
    ("model", "key", "value", "bound"),
    [
        (CalibrationConfig, "num_samples", 0, "greater than or equal to 1"),
        (CalibrationConfig, "sequence_len", 7, "greater than or equal to 8"),
        (CalibrationConfig, "batch_size", 0, "greater than or equal to 1"),
        (LayerPruningConfig, "num_layers", 0, "0 is not a number of layers; write a whole number from 1 on"),
        (LayerPruningConfig, "num_layers", 2.5, "2.5 is not a number of layers; .* between 0 and 1, such as 0.25"),
        (LayerPruningConfig, "dtype", "int8", "'auto', 'float32', 'bfloat16' or 'float16'"),
        (LayerPruningConfig, "token_reduction", "first", "'all' or 'last'"),
        (LayerPruningConfig, "protect_first", -1, "greater than or equal to 0"),
        (LayerPruningConfig, "protect_last", -1, "greater than or equal to 0"),
        (TransformersGeneration, "max_new_tokens", 0, "greater than or equal to 1"),
        (TransformersGeneration, "temperature", -0.1, "greater than or equal to 0"),
        (TransformersGeneration, "temperature", 5.1, "less than or equal to 5"),
        (TransformersGeneration, "top_p", 0.0, "greater than 0"),
        (TransformersGeneration, "top_p", 1.1, "less than or equal to 1"),
        (TransformersGeneration, "top_k", 0, "greater than or equal to 1"),
        (TransformersGeneration, "seed", -1, "greater than or equal to 0"),
        (TransformersGeneration, "max_batch_tokens", 0, "greater than or equal to 1"),
        (TransformersGeneration, "max_batch_size", 0, "greater than or equal to 1"),
        (OpenAIGeneration, "concurrency", 0, "greater than or equal to 1"),
        (OpenAIGeneration, "concurrency", 4097, "less than or equal to 4096"),
        (OpenAIGeneration, "timeout_s", 0.0, "greater than 0"),
        (OpenAIGeneration, "timeout_s", float("inf"), "less than or equal to 86400"),
        (OpenAIGeneration, "max_retries", -1, "greater than or equal to 0"),
        (OpenAIGeneration, "max_retries", 101, "less than or equal to 100"),
        (TransformersGeneration, "dtype", "int8", "'auto', 'float32', 'bfloat16' or 'float16'"),
        (SelfDistillationConfig, "on_reject", "keep", "'original' or 'drop'"),
        (SelfDistillationConfig, "max_attempts", 129, "less than or equal to 128"),
        (SelfDistillationConfig, "selection", "best", "'first' or 'max_logprob'"),
        (SelfDistillationConfig, "max_attempts", 0, "greater than or equal to 1"),
        (SelfDistillationConfig, "gap_samples", -1, "greater than or equal to 0"),
        (DynSDPBConfig, "alpha", -0.5, "greater than or equal to 0"),
        (DynSDPBConfig, "alpha", float("nan"), "than or equal to"),
        (DynSDPBConfig, "alpha", float("inf"), "less than or equal to 100"),
        (DynSDPBConfig, "temperature", 0.0, "greater than or equal to 0.1"),
        (DynSDPBConfig, "temperature", 101, "less than or equal to 100"),
        (DynSDPBConfig, "temperature_min", 0.0, "greater than or equal to 0.1"),
        (DynSDPBConfig, "divergence", "kl", "'forward_kl', 'reverse_kl' or 'jsd'"),
        (DynSDPBConfig, "teacher_storage", "disk", "'auto', 'hidden_states', 'logits' or 'top_k'"),
        (DynSDPBConfig, "top_k", 0, "greater than or equal to 1"),
        (DynSDPBConfig, "chunk_tokens", 0, "greater than or equal to 1"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_key_and_the_bound(model, key, value, bound):
    with pytest.raises(ValidationError, match=rf"{key}\n.*{bound}"):
        model.model_validate(least(model) | {key: value})


# Unknown keys


def test_an_unknown_key_names_the_nearest_known_one():
    with pytest.raises(ValidationError, match=r"unknown key 'temprature'; did you mean 'temperature'\?"):
        DynSDPBConfig.model_validate({"temprature": 2.0})


def test_an_unknown_key_in_a_nested_block_names_the_nested_block_and_its_nearest_key():
    with pytest.raises(
        ValidationError, match=r"generation\S*\n.*unknown key 'max_token'; did you mean 'max_new_tokens'"
    ):
        SelfDistillationConfig.model_validate({"generation": {"max_token": 5}})
    with pytest.raises(ValidationError, match=r"calibration\n.*unknown key 'num_sample'; did you mean 'num_samples'\?"):
        LayerPruningConfig.model_validate({"num_layers": 1, "calibration": {"num_sample": 5}})


def test_an_unknown_key_far_from_all_known_ones_lists_them():
    with pytest.raises(
        ValidationError, match=r"unknown key 'zzz'; known keys: alpha, chunk_tokens, cpu_offload, divergence"
    ):
        DynSDPBConfig.model_validate({"zzz": 1})


def test_a_key_that_is_no_text_is_refused_like_any_other():
    with pytest.raises(ValidationError, match="unknown key '7'; known keys: alpha"):
        DynSDPBConfig.model_validate({7: 1})


def one_letter_less(key):
    return {key[:gap] + key[gap + 1 :] for gap in range(len(key))}


@given(st.sampled_from([(model, key) for model in MODELS for key in model.model_fields]), st.data())
def test_a_key_with_one_letter_missing_is_recognised(model_and_key, data):
    model, key = model_and_key
    gap = data.draw(st.integers(0, len(key) - 1))
    typo = key[:gap] + key[gap + 1 :]
    assume([typo in one_letter_less(each) for each in model.model_fields].count(True) == 1)  # top_ may be two keys
    assert nearest_key_hint(typo, model.model_fields) == f"did you mean {key!r}?"


# Layers


@pytest.mark.parametrize(
    ("written", "read"), [(1, 1), (6, 6), ("6", 6), (0.25, 0.25), ("0.25", 0.25), (1e-9, 1e-9), (0.999, 0.999)]
)
def test_a_number_of_layers_is_a_count_or_a_fraction(written, read):
    number = LayerPruningConfig.model_validate({"num_layers": written}).num_layers
    assert (number, type(number)) == (read, type(read))


@given(
    st.integers(max_value=0)
    | st.floats(max_value=0.0)
    | st.floats(min_value=1.0)
    | st.sampled_from([True, False, "", "six", "1.0", "25%", float("nan"), [2], {"layers": 2}])
)
def test_what_is_no_number_of_layers_is_refused_with_an_example_of_each_kind(written):
    with pytest.raises(ValidationError, match=r"is not a number of layers; write .* such as 6, or a fraction .*0\.25"):
        LayerPruningConfig.model_validate({"num_layers": written})


@pytest.mark.parametrize(
    ("model", "settings", "key", "read"),
    [
        (LayerPruningConfig, {"num_layers": 2, "output_dir": Path("pruned/less-2")}, "output_dir", "pruned/less-2"),
        (SelfDistillationConfig, {"output_dir": PurePosixPath("rows")}, "output_dir", "rows"),
        (LogitDistillationConfig, {"seed_model": Path("/seed")}, "seed_model", "/seed"),
        (RecoveryReportConfig, {"models": {"plain": Path("/plain")}}, "models", {"plain": "/plain"}),
        (RecoveryReportConfig, {"general_prompts": {"path": Path("p.txt")}}, "general_prompts.path", "p.txt"),
    ],
)
def test_from_python_a_folder_may_be_a_path(model, settings, key, read):
    assert attrgetter(key)(model(**settings)) == read


def test_a_device_map_is_a_name_or_a_mapping_as_transformers_takes_it():
    for device_map in ("auto", {"": 0}, {"model.embed_tokens": "cpu", "model.layers": "cuda:1"}):
        assert LayerPruningConfig(num_layers=1, device_map=device_map).device_map == device_map


def test_a_yaml_list_of_layers_keeps_its_order():
    assert LayerPruningConfig.model_validate({"drop_layers": [22, 20, 21]}).drop_layers == (22, 20, 21)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 2, "drop_layers": [3, 4]}, r"both num_layers \(2\) and drop_layers \(\[3, 4\]\) are set"),
        ({}, r"set num_layers .* or drop_layers"),
        ({"drop_layers": []}, "drop_layers is empty; name at least one layer, or remove the layer_pruning block"),
        ({"drop_layers": [True, False]}, r"drop_layers is \[True, False\], which is a mask; name the numbers of the"),
        ({"drop_layers": [3, -1]}, "drop_layers holds -1; layers count from 0"),
        ({"drop_layers": [3, 4, 3]}, r"drop_layers names a layer twice: \[3, 4, 3\]"),
        (
            {"num_layers": 2, "max_shard_size": "5 gold"},
            "'5 gold' is not a size of at least 1KB; write a number and a unit",
        ),
    ],
)
def test_layers_that_can_not_be_dropped_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        LayerPruningConfig.model_validate(settings)


# Temperatures


def test_a_lowest_temperature_above_the_highest_is_refused():
    message = r"temperature_min is 3\.0, above temperature 2\.0; .* or set dynamic_temperature: false"
    with pytest.raises(ValidationError, match=message):
        DynSDPBConfig(temperature_min=3.0)


def test_the_lowest_temperature_does_not_matter_to_the_static_method():
    assert DynSDPBConfig(temperature=0.5, dynamic_temperature=False).temperature == 0.5


# Sizes


@given(
    st.integers(1, 10**6),
    st.sampled_from(sorted(BYTES_PER_UNIT)),
    st.sampled_from(["", " ", "  "]),
    st.sampled_from([str, str.lower, str.upper]),
)
def test_a_size_is_its_number_times_its_unit_in_any_spelling(number, unit, space, spell):
    assert parse_size(spell(f"{number}{space}{unit}")) == number * BYTES_PER_UNIT[unit]


def test_a_size_may_have_decimals():
    assert parse_size("1.5GiB") == 1_610_612_736
    assert parse_size("2.5 kB") == 2500


@pytest.mark.parametrize(
    "text", ["", "GB", "5", "5B", "-5GB", "0GB", "1e-9KB", "nanGB", "infGB", "1e400GB", "5GB5", "5GB 5", "1.5.5GB"]
)
def test_a_text_that_is_no_size_is_refused(text):
    with pytest.raises(
        ValueError, match=f"'{text}' is not a size of at least 1KB; write a number and a unit, such as 500MB or 5GB"
    ):
        parse_size(text)


@pytest.mark.parametrize("value", [5, 0, -1, True, 2.5e9, None])
def test_a_number_that_can_not_be_bytes_of_a_file_is_refused(value):
    with pytest.raises(ValueError, match=f"^{value!r} is not a size of at least 1KB"):
        parse_size(value)


def test_the_same_size_is_the_same_setting_in_any_spelling():
    configs = [LayerPruningConfig(num_layers=2, max_shard_size=size) for size in ("5GB", "5000 mb", 5_000_000_000)]

    assert {config.model_dump_json() for config in configs} == {LayerPruningConfig(num_layers=2).model_dump_json()}
    assert LayerPruningConfig.model_validate(configs[0].model_dump()) == configs[0]
    assert configs[0].max_shard_size == parse_size("5GB") == 5_000_000_000


@given(st.text("0123456789.eE+-_ infaKMGTiBkmgtb") | st.text())
def test_any_text_is_a_positive_size_or_is_refused_by_name(text):
    try:
        assert parse_size(text) >= 1000
    except ValueError as err:
        assert str(err).startswith(f"{text!r} is not a size")  # noqa: PT017 - both outcomes are right


@pytest.mark.parametrize(
    ("written", "read"),
    [("6.5B", 6_500_000_000), ("110m", 110_000_000), (5000, 5000), (0.8, 0.8), ("0.8", 0.8), (2.0, 2)],
)
def test_a_budget_of_parameters_is_a_count_or_a_fraction(written, read):
    assert LayerPruningConfig(target={"parameters": written}).target.parameters == read


@pytest.mark.parametrize("written", [0, -1, "0.5B0", "many", True, "inf", "nan", "", None, "1.5Q"])
def test_what_is_no_number_of_parameters_is_refused(written):
    with pytest.raises(ValidationError, match=r"is not a number of parameters; write a count such as 6\.5B"):
        LayerPruningConfig(target={"parameters": written})


def test_only_one_key_says_what_goes():
    with pytest.raises(ValidationError, match=r"both num_layers \(2\) and target .* are set; remove one"):
        LayerPruningConfig(num_layers=2, target={"parameters": 0.8})
    with pytest.raises(ValidationError, match=r"all of num_layers .* and drop_layers .* are set; remove two"):
        LayerPruningConfig(num_layers=2, target={"parameters": 0.8}, drop_layers=(1,))
    with pytest.raises(ValidationError, match=r"set num_layers .*, target .* or drop_layers"):
        LayerPruningConfig()
