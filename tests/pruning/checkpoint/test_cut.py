import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from axolotl_sdft import cut_layers
from axolotl_sdft.core import artifacts
from axolotl_sdft.core.errors import ArtifactError, CheckpointError, ConfigError
from axolotl_sdft.core.trained_on import PROVENANCE_FILE, seed_dir_of_pruned
from axolotl_sdft.pruning.checkpoint import tensor_writer
from tests.pruning.conftest import (
    FAMILIES,
    NUM_LAYERS,
    edit_config,
    layers_skipped,
    load,
    logits,
    save_tiny_model,
    snapshot,
    token_ids,
)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("drop_layers", [(2,), (0, 1, 4), (3, 4, 5)], ids=str)
def test_a_cut_model_equals_the_model_with_those_layers_skipped(checkpoint, tmp_path, name, drop_layers):
    pruned = load(cut_layers(checkpoint(name), drop_layers, tmp_path / "pruned"))
    with layers_skipped(load(checkpoint(name)), drop_layers) as whole:
        expected = logits(whole, token_ids())
    assert pruned.config.num_hidden_layers == NUM_LAYERS - len(drop_layers)
    assert torch.equal(logits(pruned, token_ids()), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cut_model_generates_the_same_with_and_without_cache(checkpoint, tmp_path, name):
    pruned = load(cut_layers(checkpoint(name), (0, 3), tmp_path / "pruned"))
    ids = token_ids(rows=1, length=5)
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cached, uncached = (pruned.generate(ids, use_cache=use_cache, **settings) for use_cache in (True, False))
    assert cached.shape == (1, 13)
    assert torch.equal(cached, uncached)


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(
    drop_layers=st.sets(st.integers(0, NUM_LAYERS - 1), min_size=1, max_size=NUM_LAYERS - 1),
    max_shard_size=st.sampled_from(["1KB", "4KB", "5GB"]),
)
def test_any_drop_set_in_any_shards_equals_the_skipped_layers(
    checkpoint, tmp_path_factory, drop_layers, max_shard_size
):
    output_dir = tmp_path_factory.mktemp("cuts") / "pruned"
    pruned = load(cut_layers(checkpoint("gemma3"), drop_layers, output_dir, max_shard_size=max_shard_size))
    with layers_skipped(load(checkpoint("gemma3")), drop_layers) as whole:
        assert torch.equal(logits(pruned, token_ids()), logits(whole, token_ids()))


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("gemma2", "layer_types", ["sliding_attention", "full_attention", "full_attention", "full_attention"]),
        ("gemma3", "layer_types", ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]),
        ("qwen2", "layer_types", ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]),
        ("smollm3", "no_rope_layers", [1, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("is_written", [True, False], ids=["written", "derived"])
def test_lists_with_an_entry_per_layer_lose_the_entries_of_dropped_layers(tmp_path, name, key, expected, is_written):
    seed = save_tiny_model(tmp_path / "seed", name)
    pattern = {"gemma3": {"sliding_window_pattern": 3}}.get(name, {})
    config = config_of(seed) | pattern
    if not is_written:  # as older checkpoints are: the config class derives the list
        config = {kept: value for kept, value in config.items() if kept not in ("layer_types", "no_rope_layers")}
    (seed / "config.json").write_text(json.dumps(config))
    pruned = cut_layers(seed, (2, 4), tmp_path / "pruned")
    assert config_of(pruned)[key] == expected
    assert getattr(load(pruned).config, key) == expected


def test_a_tied_head_stays_tied_and_is_stored_once(checkpoint, tmp_path):
    pruned = cut_layers(checkpoint("qwen3"), (1,), tmp_path / "pruned")
    model = load(pruned)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert "lm_head.weight" not in load_file(pruned / "model.safetensors")


def test_sharded_and_single_files_are_cut_into_shards_of_at_most_the_size(own_checkpoint, tmp_path):
    load(own_checkpoint).save_pretrained(tmp_path / "sharded", max_shard_size="6KB")
    whole = load_file(cut_layers(own_checkpoint, (1, 2), tmp_path / "one") / "model.safetensors")

    pruned = cut_layers(tmp_path / "sharded", (1, 2), tmp_path / "many", max_shard_size="9KB")

    index = json.loads((pruned / "model.safetensors.index.json").read_text())
    shards = sorted(pruned.glob("*.safetensors"))
    assert [path.name for path in shards] == [
        f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)
    ]
    tensors = {name: tensor for path in shards for name, tensor in load_file(path).items()}
    assert all(sum(tensor.nbytes for tensor in load_file(path).values()) <= 9000 for path in shards)
    assert index["weight_map"].keys() == tensors.keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert all(torch.equal(tensors[name], whole[name]) for name in whole)


def test_weights_keep_every_bit_and_later_layers_move_up(checkpoint, tmp_path):
    before = load_file(checkpoint() / "model.safetensors")
    pruned = cut_layers(checkpoint(), (1, 3), tmp_path / "pruned") / "model.safetensors"
    after = load_file(pruned)
    homes = {0: 0, 2: 1, 4: 2, 5: 3}
    expected = {name for name in before if not name.startswith(("model.layers.1.", "model.layers.3."))}
    for name in expected:
        _, _, number, rest = name.split(".", 3) if ".layers." in name else ("", "", "", "")
        new_name = f"model.layers.{homes[int(number)]}.{rest}" if number else name
        assert torch.equal(before[name], after.pop(new_name))
    assert after == {}
    with safe_open(pruned, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_everything_but_weights_model_card_and_hidden_files_comes_along(own_checkpoint, tmp_path):
    taken = ["tokenizer.json", "chat_template.jinja", "modeling_own.py", "LICENSE", "merges.txt"]
    left = ["README.md", "pytorch_model.bin", "model.gguf", ".gitattributes", "pytorch_model.bin.index.json"]
    for name in taken + left:
        (own_checkpoint / name).write_text(name)
    for name in ("additional_chat_templates/tools.jinja", "custom_generate/generate.py"):
        (own_checkpoint / name).parent.mkdir()
        (own_checkpoint / name).write_text(name)
    (own_checkpoint / "original").mkdir()

    pruned = cut_layers(own_checkpoint, (1,), tmp_path / "pruned")

    made = ["additional_chat_templates", "additional_chat_templates/tools.jinja", "config.json"]
    made += ["custom_generate", "custom_generate/generate.py"]
    made += ["generation_config.json", "model.safetensors", "README.md"]
    made += ["provenance", "provenance/layer_pruning.json"]
    assert snapshot(pruned) == sorted(taken + made)
    assert (pruned / "README.md").read_text() != "README.md"
    assert (pruned / "LICENSE").read_text() == "LICENSE"


def test_the_provenance_says_where_the_model_comes_from(checkpoint, tmp_path):
    pruned = cut_layers(checkpoint(), {4, 1}, tmp_path / "pruned", provenance={"seed_model": "org/seed", "note": 1})
    provenance = json.loads((pruned / PROVENANCE_FILE).read_text())
    counts = [sum(parameter.numel() for parameter in load(folder).parameters()) for folder in (checkpoint(), pruned)]
    assert [provenance.pop(key) for key in ("parameters_before", "parameters_after")] == counts
    assert provenance.pop("package_versions").keys() >= {"transformers"}
    assert provenance == {
        "seed_model": "org/seed",
        "seed_dir": str(checkpoint()),
        "note": 1,
        "drop_layers": [1, 4],
        "num_layers_before": 6,
        "num_layers_after": 4,
    }


def test_a_seed_model_that_was_named_from_one_folder_is_found_from_another(checkpoint, tmp_path, monkeypatch):
    seed_dir, notebooks = checkpoint(), tmp_path / "notebooks"
    monkeypatch.chdir(seed_dir.parent)
    pruned = cut_layers(seed_dir.name, [2], tmp_path / "pruned")
    notebooks.mkdir()
    monkeypatch.chdir(notebooks)
    assert seed_dir_of_pruned(pruned, "logit_distillation", "name it") == seed_dir


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "ctrl-c"])
def test_an_interrupted_cut_leaves_nothing_behind(checkpoint, tmp_path, monkeypatch, fault):
    def fail(*_args):
        raise fault

    monkeypatch.setattr(tensor_writer, "copy_range", fail)
    expected = ArtifactError if isinstance(fault, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        cut_layers(checkpoint(), (1,), tmp_path / "pruned")
    assert snapshot(tmp_path) == []


def test_a_folder_that_is_there_is_never_written_into(checkpoint, tmp_path):
    (tmp_path / "pruned").mkdir()
    with pytest.raises(ArtifactError, match=r"pruned exists already; delete it or name another folder"):
        cut_layers(checkpoint(), (1,), tmp_path / "pruned")


def test_a_folder_below_a_file_is_refused_by_its_key(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"layer_pruning\.output_dir: can't write to .*file"):
        cut_layers(checkpoint(), (1,), tmp_path / "file" / "pruned")


def test_a_disk_too_small_is_refused_before_anything_is_written(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts.shutil, "disk_usage", lambda _folder: type("Usage", (), {"free": 10})())
    with pytest.raises(ArtifactError, match=r"layer_pruning\.output_dir: .* GB are needed in .*; make room"):
        cut_layers(checkpoint(), (1,), tmp_path / "pruned")
    assert snapshot(tmp_path) == []


@pytest.mark.parametrize(
    ("drop_layers", "message"),
    [
        ((2, 6), r"drop_layers holds 6, but the model has 6 layers, 0 to 5"),
        ((-1,), r"drop_layers holds -1, but the model has 6 layers"),
        (range(6), r"drop_layers names all 6 layers of the model; keep at least one"),
        ((), r"drop_layers is empty; name the layers to remove"),
        ((1.5, 2), r"drop_layers is \(1\.5, 2\), which is not a list of layer numbers \('float' object"),
        (2, r"drop_layers is 2, which is not a list of layer numbers"),
        ([False, True, True], r"drop_layers is \[False, True, True\], which is a mask; name the numbers of the layers"),
        (torch.tensor([False, True]), r"drop_layers is tensor\(\[False,  True\]\), which is a mask"),
    ],
)
def test_layers_that_are_not_there_or_all_of_them_are_refused(checkpoint, tmp_path, drop_layers, message):
    with pytest.raises(ConfigError, match=message):
        cut_layers(checkpoint(), drop_layers, tmp_path / "pruned")


@pytest.mark.parametrize("drop_layers", [np.array([4, 1]), [np.int64(1), 4], torch.tensor([1, 4]), [1, 4, 4]])
def test_layers_may_be_numbers_of_any_library(checkpoint, tmp_path, drop_layers):
    cut_layers(checkpoint(), drop_layers, tmp_path / "pruned")
    assert json.loads((tmp_path / "pruned" / PROVENANCE_FILE).read_text())["drop_layers"] == [1, 4]


def test_an_adapter_beside_whole_weights_is_refused(own_checkpoint, tmp_path):
    (own_checkpoint / "adapter_config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"seed holds an adapter \(adapter_config\.json\), which .*; merge it into"
    ):
        cut_layers(own_checkpoint, (1,), tmp_path / "pruned")


def test_a_source_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere is not a folder; name the folder of a checkpoint"):
        cut_layers(tmp_path / "nowhere", (1,), tmp_path / "pruned")


def test_a_source_without_config_is_refused_with_what_it_holds(tmp_path):
    (tmp_path / "seed").mkdir()
    (tmp_path / "seed" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"seed has no config\.json.*; it holds adapter_config\.json"):
        cut_layers(tmp_path / "seed", (1,), tmp_path / "pruned")


@pytest.mark.parametrize(("text", "message"), [("{", r"can't be read: Expecting"), ("[]", r"holds a list instead")])
def test_a_source_with_a_broken_config_is_refused(own_checkpoint, tmp_path, text, message):
    (own_checkpoint / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.json'? {message}"):
        cut_layers(own_checkpoint, (1,), tmp_path / "pruned")


def test_a_layer_count_that_the_tensors_contradict_is_refused(own_checkpoint, tmp_path):
    edit_config(own_checkpoint, num_hidden_layers=7)
    with pytest.raises(CheckpointError, match=r"says 7 layers, but no group .*model\.layers\.0 to model\.layers\.5"):
        cut_layers(own_checkpoint, (1,), tmp_path / "pruned")


def test_a_real_checkpoint_is_cut_without_its_tensors_in_memory(smollm2_dir, tmp_path):
    pruned = cut_layers(smollm2_dir, (13, 14, 15), Path(tmp_path) / "pruned", max_shard_size="100MB")
    provenance = json.loads((pruned / PROVENANCE_FILE).read_text())
    # A layer: attention 2 * 576 * (576 + 192), mlp 3 * 576 * 1536, two norms of 576.
    assert provenance["parameters_before"] - provenance["parameters_after"] == 3 * (884_736 + 2_654_208 + 1_152)
    assert len(list(pruned.glob("*.safetensors"))) == 3


def test_layers_that_predict_further_tokens_stay_behind_the_last_layer(own_checkpoint, tmp_path):
    tensors = load_file(own_checkpoint / "model.safetensors")
    names = [name.removeprefix("model.layers.5.") for name in tensors if name.startswith("model.layers.5.")]
    extra = {f"model.layers.6.{name}": tensors[f"model.layers.5.{name}"] + 1 for name in names}
    save_file(tensors | extra, own_checkpoint / "model.safetensors", {"format": "pt"})
    edit_config(own_checkpoint, num_nextn_predict_layers=1)

    pruned = cut_layers(own_checkpoint, (1, 5), tmp_path / "pruned")

    after = load_file(pruned / "model.safetensors")
    assert all(torch.equal(after[f"model.layers.4.{name}"], extra[f"model.layers.6.{name}"]) for name in names)
    assert torch.equal(after["model.layers.3.mlp.up_proj.weight"], tensors["model.layers.4.mlp.up_proj.weight"])
    assert config_of(pruned)["num_hidden_layers"] == 4
    assert not any(name.startswith("model.layers.5.") for name in after)
