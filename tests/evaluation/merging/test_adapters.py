"""Merged adapters as peft loads them, against the deltas built in full."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("peft")

import peft

from axolotl_sdft.core.errors import CheckpointError, ConfigError
from axolotl_sdft.evaluation.merging.merge import merge_models
from tests.evaluation.merging.references import ATTENTION, save_adapter, slow_slerp
from tests.pruning.conftest import load, save_tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny Llama; read only."""
    return save_tiny_model(tmp_path_factory.mktemp("base"))


def merged_weights(base, adapter=None):
    """Return the weights of a model with an adapter merged into it by peft."""
    model = load(base)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: weight.detach() for name, weight in model.named_parameters()}


def deltas(base, adapter):
    plain = merged_weights(base)
    return {name: weight - plain[name] for name, weight in merged_weights(base, adapter).items()}


def assert_merges(base, first, second, merged, ratio):
    """The model with the merged adapter is the base plus the SLERP of what the two add."""
    ours, theirs, plain = deltas(base, first), deltas(base, second), merged_weights(base)
    found = merged_weights(base, merged)
    assert any(delta.any() for delta in ours.values())
    for name, weight in found.items():
        expected = plain[name] + slow_slerp(ours[name], theirs[name], ratio)
        torch.testing.assert_close(weight.double(), expected, rtol=1e-4, atol=2e-6)


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def edit_adapter(folder, **changes):
    (folder / "adapter_config.json").write_text(json.dumps(config_of(folder) | changes))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
def test_the_model_with_the_merged_adapter_is_the_base_plus_the_slerp_of_the_deltas(base, tmp_path, ratio):
    first, second = (save_adapter(base, tmp_path / str(seed), seed) for seed in (1, 2))
    merged = merge_models(first, second, tmp_path / "merged", ratio=ratio)
    assert_merges(base, first, second, merged, ratio)
    assert config_of(merged)["r"] == config_of(merged)["lora_alpha"] == 6
    assert sorted(config_of(merged)["target_modules"]) == ATTENTION


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 5, "lora_alpha": 2},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, r"^model\.layers\.3\.self_attn\.v_proj": 4}},
        {"alpha_pattern": {"layers.1.self_attn.q_proj": 20}},
        {"targets": ["q_proj", "down_proj"]},
        {"targets": ["embed_tokens", "q_proj"]},
        {"targets": "all-linear"},
        {"targets": ATTENTION, "layers_to_transform": [0, 4]},
    ],
    ids=["rank", "rslora", "rank_pattern", "alpha_pattern", "modules", "embedding", "all-linear", "layers"],
)
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "second"])
def test_adapters_of_other_shapes_and_scalings_merge_exactly(base, tmp_path, settings, is_first):
    plain, other = save_adapter(base, tmp_path / "plain"), save_adapter(base, tmp_path / "other", 2, **settings)
    pair = (other, plain) if is_first else (plain, other)
    merged = merge_models(*pair, tmp_path / "merged", ratio=0.3)
    assert_merges(base, *pair, merged, 0.3)


def test_linear_averages_what_the_adapters_add(base, tmp_path):
    first, second = (save_adapter(base, tmp_path / str(seed), seed) for seed in (1, 2))
    found = deltas(base, merge_models(first, second, tmp_path / "merged", ratio=0.25, method="linear"))
    ours, theirs = deltas(base, first), deltas(base, second)
    for name, delta in found.items():
        torch.testing.assert_close(delta, 0.75 * ours[name] + 0.25 * theirs[name], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "second"])
def test_an_adapter_and_its_base_give_the_adapter_scaled_by_the_way_towards_it(base, tmp_path, is_first):
    adapter = save_adapter(base, tmp_path / "adapter", use_rslora=True)
    pair = (adapter, base) if is_first else (base, adapter)
    merged = merge_models(*pair, tmp_path / "merged", ratio=0.2)
    share = 0.8 if is_first else 0.2
    whole = deltas(base, adapter)
    for name, delta in deltas(base, merged).items():
        torch.testing.assert_close(delta, share * whole[name], rtol=1e-4, atol=2e-6)
    assert config_of(merged)["r"] == 3


def test_a_copy_of_the_base_is_the_base(base, tmp_path):
    adapter = save_adapter(base, tmp_path / "adapter")
    copy = shutil.copytree(base, tmp_path / "copy")
    assert merge_models(copy, adapter, tmp_path / "merged").is_dir()


def test_a_fresh_adapter_that_adds_nothing_is_averaged(base, tmp_path):
    first, second = save_adapter(base, tmp_path / "first"), save_adapter(base, tmp_path / "second", weights=0.0)
    merged = merge_models(first, second, tmp_path / "merged", ratio=0.25)
    whole = deltas(base, first)
    for name, delta in deltas(base, merged).items():
        torch.testing.assert_close(delta, 0.75 * whole[name], rtol=1e-4, atol=2e-6)


def test_the_format_is_the_first_ones_or_as_named_and_tokenizer_files_come_along(base, tmp_path):
    first, second = (save_adapter(base, tmp_path / str(seed), seed) for seed in (1, 2))
    (first / "tokenizer.json").write_text("the first's")
    kept = merge_models(first, second, tmp_path / "kept")
    named = merge_models(first, second, tmp_path / "named", dtype="bfloat16")
    dtypes = [{t.dtype for t in load_file(f / "adapter_model.safetensors").values()} for f in (kept, named)]
    assert dtypes == [{torch.float32}, {torch.bfloat16}]
    assert (kept / "tokenizer.json").read_text() == "the first's"


def test_a_full_checkpoint_that_is_not_the_base_is_refused_with_the_way_out(base, tmp_path):
    adapter = save_adapter(base, tmp_path / "adapter")
    other = save_tiny_model(tmp_path / "other", intermediate_size=28)
    message = rf"is a LoRA adapter of '{re.escape(str(base))}', and .*other another full checkpoint; merge the adapter"
    with pytest.raises(ConfigError, match=message):
        merge_models(other, adapter, tmp_path / "merged")


def test_adapters_of_different_bases_are_refused_with_both(base, tmp_path):
    first, second = (save_adapter(base, tmp_path / str(seed), seed) for seed in (1, 2))
    edit_adapter(second, base_model_name_or_path="org/other")
    with pytest.raises(ConfigError, match=r"was trained on '.*', .* on 'org/other'; merge adapters of the same base"):
        merge_models(first, second, tmp_path / "merged")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora: True"),
        ({"bias": "lora_only"}, "bias: 'lora_only'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save: \['lm_head'\]"),
        ({"lora_bias": True}, "lora_bias: True"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices: "),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa, which changes the base model too"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_more_than_lora_matrices_is_refused_by_its_setting_with_the_way_out(base, tmp_path, settings, named):
    plain, other = save_adapter(base, tmp_path / "plain"), save_adapter(base, tmp_path / "other", **settings)
    edit_adapter(other, **settings)  # some versions of peft save another value once the adapter is made
    with pytest.raises(
        CheckpointError, match=rf"other .*{named}.*; merge each adapter into its base \(axolotl merge-lora"
    ):
        merge_models(plain, other, tmp_path / "merged")


def test_another_kind_of_adapter_is_refused(base, tmp_path):
    plain, other = save_adapter(base, tmp_path / "plain"), save_adapter(base, tmp_path / "other")
    edit_adapter(other, peft_type="LOHA")
    with pytest.raises(CheckpointError, match="other holds a LOHA adapter, not LoRA; merge each adapter into its base"):
        merge_models(plain, other, tmp_path / "merged")


def edit_matrices(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj.lora"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(2)}),
            "holds '.*lm_head.weight', which is no",
        ),
        (lambda t: t.pop(f"{Q_PROJ}_A.weight"), r"holds only one of the two LoRA matrices of .*q_proj"),
        (
            lambda t: t.update({f"{Q_PROJ}_B.weight": torch.ones(16, 2)}),
            r"are \[16, 2\] and \[3, 16\], which don't mult",
        ),
        (
            lambda t: t.update({f"{Q_PROJ}_A.weight": torch.full((3, 16), torch.nan)}),
            r"holds infinities or NaN in .*q_proj",
        ),
        (lambda t: t.update({f"{Q_PROJ}_A.weight": torch.ones(3, 8)}), r"q_proj has outputs and inputs \[16, 8\] in"),
    ],
    ids=["full weight", "one side", "no product", "no number", "other shape"],
)
def test_matrices_that_make_no_adapter_are_refused_by_name(base, tmp_path, change, message):
    first, second = (save_adapter(base, tmp_path / str(seed), seed) for seed in (1, 2))
    edit_matrices(first, change)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        merge_models(first, second, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_without_safetensors_is_refused_with_the_way_out(base, tmp_path):
    first, second = (save_adapter(base, tmp_path / str(seed), seed) for seed in (1, 2))
    (second / "adapter_model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"has no adapter_model\.safetensors; load the adapter with peft and save"
    ):
        merge_models(first, second, tmp_path / "merged")
