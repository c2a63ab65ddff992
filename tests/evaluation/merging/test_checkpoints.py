import json
import re
import shutil
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from axolotl_sdft.core.errors import CheckpointError, ConfigError
from axolotl_sdft.core.trained_on import PRUNED_KEY
from axolotl_sdft.evaluation.merging import checkpoints
from axolotl_sdft.evaluation.merging.merge import merge_models
from tests.evaluation.merging.references import save_variant, slow_slerp, tensors_of, two_models
from tests.pruning.conftest import edit_config, load, logits, save_tiny_model, token_ids


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A tiny Llama and a variant; read only."""
    return two_models(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def own_pair(pair, tmp_path):
    """The same two in folders that a test may change."""
    return [shutil.copytree(folder, tmp_path / folder.name) for folder in pair]


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_each_tensor_equals_the_slow_reference(tmp_path, name, ratio):
    first, second = two_models(tmp_path, name)
    merged = tensors_of(merge_models(first, second, tmp_path / "merged", ratio=ratio))
    ours, theirs = tensors_of(first), tensors_of(second)
    assert merged.keys() == ours.keys()
    for key, tensor in merged.items():
        expected = slow_slerp(ours[key], theirs[key], ratio)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_merged_model_loads_and_computes_with_the_merged_weights(pair, tmp_path):
    merged = load(merge_models(*pair, tmp_path / "merged", ratio=0.4))
    expected, other = (load(folder) for folder in pair)
    with torch.no_grad():
        for weight, theirs in zip(expected.parameters(), other.parameters(), strict=True):
            weight.copy_(slow_slerp(weight, theirs, 0.4))
    torch.testing.assert_close(logits(merged, token_ids()), logits(expected, token_ids()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("ratio", "which"), [(0.0, 0), (1.0, 1)])
@pytest.mark.parametrize("method", ["slerp", "linear"])
def test_at_either_end_the_weights_are_those_of_one_model_bit_by_bit(pair, tmp_path, ratio, which, method):
    merged = tensors_of(merge_models(*pair, tmp_path / "merged", ratio=ratio, method=method))
    assert all(torch.equal(merged[name], tensor) for name, tensor in tensors_of(pair[which]).items())


def test_linear_averages_the_weights(pair, tmp_path):
    merged = tensors_of(merge_models(*pair, tmp_path / "merged", ratio=0.25, method="linear"))
    ours, theirs = (tensors_of(folder) for folder in pair)
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, 0.75 * ours[name] + 0.25 * theirs[name])


@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(piece=st.sampled_from([1, 7, 100, 2**22]), max_shard_size=st.sampled_from(["1KB", "9KB", "5GB"]))
def test_neither_pieces_nor_shards_change_the_weights(pair, tmp_path_factory, monkeypatch, piece, max_shard_size):
    monkeypatch.setattr(checkpoints, "_PIECE", piece)
    folder = tmp_path_factory.mktemp("merged")
    merged = merge_models(*pair, folder / "merged", max_shard_size=max_shard_size)
    ours, theirs = (tensors_of(model) for model in pair)
    for name, tensor in tensors_of(merged).items():
        expected = slow_slerp(ours[name], theirs[name], 0.5)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)


def test_shards_hold_at_most_the_size_and_the_index_names_each_tensor(pair, tmp_path):
    merged = merge_models(*pair, tmp_path / "merged", max_shard_size="9KB")
    index = json.loads((merged / "model.safetensors.index.json").read_text())
    assert len(list(merged.glob("*.safetensors"))) > 1
    for path in merged.glob("*.safetensors"):
        stored = load_file(path)
        assert sum(tensor.nbytes for tensor in stored.values()) <= 9000
        assert all(index["weight_map"][name] == path.name for name in stored)
    assert index["weight_map"].keys() == tensors_of(pair[0]).keys()


def test_differently_sharded_models_are_matched_by_name(pair, tmp_path):
    load(pair[1]).save_pretrained(tmp_path / "sharded", max_shard_size="6KB")
    whole = tensors_of(merge_models(*pair, tmp_path / "whole"))
    merged = tensors_of(merge_models(pair[0], tmp_path / "sharded", tmp_path / "merged"))
    assert all(torch.equal(merged[name], tensor) for name, tensor in whole.items())


def test_auto_keeps_the_format_of_the_first_and_a_named_one_shows_in_the_config(pair, tmp_path):
    half = save_variant(pair[0], tmp_path / "half", dtype=torch.bfloat16)
    kept = merge_models(half, pair[1], tmp_path / "kept")
    named = merge_models(half, pair[1], tmp_path / "named", dtype="float16")
    assert {tensor.dtype for tensor in tensors_of(kept).values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in tensors_of(named).values()} == {torch.float16}
    assert json.loads((kept / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((named / "config.json").read_text())["dtype"] == "float16"
    assert AutoModelForCausalLM.from_pretrained(named, dtype="auto").dtype == torch.float16


def test_weights_in_bfloat16_are_rounded_once_from_float32(pair, tmp_path):
    first, second = (save_variant(pair[0], tmp_path / str(seed), seed=seed, dtype=torch.bfloat16) for seed in (1, 2))
    merged = tensors_of(merge_models(first, second, tmp_path / "merged", ratio=0.3))
    for name, tensor in merged.items():
        exact = slow_slerp(tensors_of(first)[name], tensors_of(second)[name], 0.3)
        # Half a step of bfloat16, which has 8 significant bits, and float32's own rounding.
        assert ((tensor.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-7).all()


def test_a_tied_head_stays_tied(tmp_path):
    merged = merge_models(*two_models(tmp_path, "qwen3"), tmp_path / "merged")
    model = load(merged)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert "lm_head.weight" not in tensors_of(merged)


def test_pickled_weights_with_a_tied_head_stored_twice_merge_with_safetensors(tmp_path):
    first, second = two_models(tmp_path, "qwen3")
    expected = tensors_of(merge_models(first, second, tmp_path / "expected"))
    tensors = load_file(first / "model.safetensors")
    torch.save(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, first / "pytorch_model.bin")
    (first / "model.safetensors").unlink()
    merged = merge_models(first, second, tmp_path / "merged")
    assert not list(merged.glob("*.bin"))
    assert not list(merged.glob(".*"))
    found = tensors_of(merged)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_tokenizer_template_and_code_of_the_first_come_along_and_traces_of_training_do_not(own_pair, tmp_path):
    first, second = own_pair
    for name in ("tokenizer.json", "chat_template.jinja", "modeling_own.py", "trainer_state.json", "README.md"):
        (first / name).write_text(f"{name} of the first")
        (second / name).write_text(f"{name} of the second")
    merged = merge_models(first, second, tmp_path / "merged")
    for name in ("tokenizer.json", "chat_template.jinja", "modeling_own.py"):
        assert (merged / name).read_text() == f"{name} of the first"
    assert not (merged / "trainer_state.json").exists()
    assert not (merged / "README.md").exists()


def test_equal_integers_are_kept_and_different_ones_refused(own_pair, tmp_path):
    for folder in own_pair:
        edit_tensors(folder, lambda tensors: tensors.update({"model.steps": torch.tensor([3, 4])}))
    merged = tensors_of(merge_models(*own_pair, tmp_path / "merged"))
    assert torch.equal(merged["model.steps"], torch.tensor([3, 4]))
    edit_tensors(own_pair[1], lambda tensors: tensors.update({"model.steps": torch.tensor([3, 5])}))
    with pytest.raises(CheckpointError, match=r"model\.steps is stored in I64, which can't be averaged, and differs"):
        merge_models(*own_pair, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_empty_and_a_single_number_are_merged_too(own_pair, tmp_path):
    for folder, value in zip(own_pair, (1.0, 2.0), strict=True):
        edit_tensors(folder, lambda t, value=value: t.update({"a": torch.zeros(0, 3), "b": torch.tensor(value)}))
    merged = tensors_of(merge_models(*own_pair, tmp_path / "merged"))
    assert merged["a"].shape == (0, 3)
    assert merged["b"] == 1.5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["slerp", "linear"])
def test_what_is_no_number_is_refused_by_name(own_pair, tmp_path, value, method):
    edit_tensors(own_pair[1], lambda tensors: tensors["model.norm.weight"].fill_(value))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds infinities or NaN in .*first.* or .*second"):
        merge_models(*own_pair, tmp_path / "merged", method=method)


def test_numbers_too_large_for_float16_are_refused(own_pair, tmp_path):
    for folder in own_pair:
        edit_tensors(folder, lambda tensors: tensors["model.norm.weight"].fill_(70_000.0))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight .* numbers too large for dtype: float16"):
        merge_models(*own_pair, tmp_path / "merged", dtype="float16")


def test_another_number_of_layers_is_refused_with_both_counts(pair, tmp_path):
    shallow = save_tiny_model(tmp_path / "shallow", num_hidden_layers=4)
    message = f"{pair[0]} has 6 layers, {shallow} 4; merge what was trained from the same base"
    with pytest.raises(ConfigError, match=re.escape(message)):
        merge_models(pair[0], shallow, tmp_path / "merged")


def test_another_architecture_is_refused(pair, tmp_path):
    other = save_tiny_model(tmp_path / "other", "mistral")
    with pytest.raises(ConfigError, match=r"is a llama model, .* a mistral one; merge what was trained from the same"):
        merge_models(pair[0], other, tmp_path / "merged")


def test_a_resized_vocabulary_is_refused_with_the_way_out(pair, tmp_path):
    model = load(pair[1])
    model.resize_token_embeddings(64)
    model.save_pretrained(tmp_path / "resized")
    with pytest.raises(
        ConfigError, match=r"is \[61, 16\] in .*\[64, 16\] in .*vocabulary was resized. Resize the other"
    ):
        merge_models(pair[0], tmp_path / "resized", tmp_path / "merged")


def test_another_shape_is_refused_by_name(own_pair, tmp_path):
    edit_tensors(own_pair[1], lambda tensors: tensors.update({"model.norm.weight": torch.ones(8)}))
    with pytest.raises(ConfigError, match=r"model\.norm\.weight is \[16\] in .*first, but \[8\] in .*second; merge"):
        merge_models(*own_pair, tmp_path / "merged")


@pytest.mark.parametrize("which", [0, 1])
def test_a_tensor_that_only_one_has_is_refused_by_name(own_pair, tmp_path, which):
    edit_tensors(own_pair[which], lambda tensors: tensors.update({"model.extra": torch.ones(2)}))
    with pytest.raises(ConfigError, match=rf"only .*{own_pair[which].name} has a tensor 'model\.extra'"):
        merge_models(*own_pair, tmp_path / "merged")


def test_settings_that_change_what_the_weights_compute_must_agree(own_pair, tmp_path):
    edit_config(own_pair[1], rope_parameters={"rope_theta": 5.0, "rope_type": "default"})
    with pytest.raises(ConfigError, match=r"says rope_parameters\.rope_theta: 10000\.0 in .*, but 5\.0 in"):
        merge_models(*own_pair, tmp_path / "merged")


def test_settings_are_compared_as_transformers_reads_them_under_old_names_too(own_pair, tmp_path):
    config = json.loads((own_pair[0] / "config.json").read_text())
    assert config.pop("rope_parameters")["rope_theta"] == 10000.0
    # As models on the Hub write it that are older than transformers 5.
    old = config | {"rope_theta": 10000.0, "rope_scaling": None}
    (own_pair[0] / "config.json").write_text(json.dumps(old))
    assert merge_models(*own_pair, tmp_path / "merged").is_dir()

    edit_config(own_pair[1], rope_parameters={"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0})
    with pytest.raises(ConfigError, match=r"says rope_parameters\.rope_type: 'default' in .*, but 'linear' in"):
        merge_models(*own_pair, tmp_path / "other")


@pytest.mark.parametrize("tied_first", [True, False])
def test_a_setting_that_one_leaves_to_its_default_must_agree_with_the_other(tmp_path, tied_first):
    first, second = two_models(tmp_path, "gemma2")
    config = json.loads((first / "config.json").read_text())
    config.pop("tie_word_embeddings", None)  # which is true in Gemma
    (first / "config.json").write_text(json.dumps(config))
    edit_config(second, tie_word_embeddings=False)
    edit_tensors(second, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}))
    models, told = (
        ((first, second), "True in .*, but False in") if tied_first else ((second, first), "False in .*, but True")
    )

    with pytest.raises(ConfigError, match=rf"says tie_word_embeddings: {told}"):
        merge_models(*models, tmp_path / "merged")


def test_a_head_of_its_own_that_only_one_has_is_refused_where_the_default_is_not_tied(own_pair, tmp_path):
    for folder in own_pair:
        config = json.loads((folder / "config.json").read_text())
        config.pop("tie_word_embeddings", None)  # which is false in Llama
        (folder / "config.json").write_text(json.dumps(config))
    edit_tensors(own_pair[1], lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ConfigError, match=rf"only .*{own_pair[0].name} has a tensor 'lm_head\.weight'"):
        merge_models(*own_pair, tmp_path / "merged")


def test_settings_that_nothing_here_can_read_are_compared_as_they_are_written(own_pair, tmp_path):
    for folder, size in zip(own_pair, (1, 2), strict=True):
        edit_config(folder, model_type="unheard_of", window=size)
    with pytest.raises(ConfigError, match=r"says window: 1 in .*, but 2 in"):
        merge_models(*own_pair, tmp_path / "merged")


def test_settings_that_change_nothing_of_it_may_differ(own_pair, tmp_path):
    edit_config(
        own_pair[1], transformers_version="4.0", use_cache=False, attention_dropout=0.1, rms_norm_eps=1.0000001e-6
    )
    assert merge_models(*own_pair, tmp_path / "merged").is_dir()


def test_models_pruned_in_different_ways_are_refused(own_pair, tmp_path):
    edit_config(own_pair[0], **{PRUNED_KEY: "0" * 12})
    edit_config(own_pair[1], **{PRUNED_KEY: "1" * 12})
    with pytest.raises(ConfigError, match="were pruned with different settings, so their layers may not be the same"):
        merge_models(*own_pair, tmp_path / "merged")


def test_a_quantized_model_is_refused_with_the_way_out(own_pair, tmp_path):
    edit_config(own_pair[1], quantization_config={"quant_method": "gptq"})
    with pytest.raises(
        CheckpointError, match=r"second is quantized.*merge the unquantized models and quantize the result"
    ):
        merge_models(*own_pair, tmp_path / "merged")


def test_a_truncated_file_is_refused_and_nothing_is_left_behind(own_pair, tmp_path):
    path = own_pair[1] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is truncated"):
        merge_models(*own_pair, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir() if "merged" in path.name] == []


def test_memory_stays_at_a_few_pieces_however_large_a_tensor_is(tmp_path, monkeypatch):
    """Python's own buffers, which hold what is read; a tensor has 64 pieces here."""
    pair = two_models(tmp_path, vocab_size=65_536)
    monkeypatch.setattr(checkpoints, "_PIECE", 65_536 * 16 // 64)
    tracemalloc.start()
    try:
        merge_models(*pair, tmp_path / "merged")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 65_536 * 16 * 4 / 2  # half of one embedding in float32
