import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file

from axolotl_sdft import cut_layers
from axolotl_sdft.core import artifacts
from axolotl_sdft.core.errors import ArtifactError, CheckpointError
from axolotl_sdft.core.identity import model_identity
from axolotl_sdft.pruning.checkpoint.cut import plan_checkpoint
from axolotl_sdft.pruning.checkpoint.legacy_files import converted, read_legacy_checkpoint
from tests.pruning.conftest import layers_skipped, load, logits, save_tiny_model, snapshot, token_ids


def pickled(seed, num_files=1, is_zip=True):
    """Turn a checkpoint's weights into pickled files, as transformers once saved them, and return its folder."""
    state = load(seed).state_dict()
    (seed / "model.safetensors").unlink()
    names = list(state)
    parts = [names[part::num_files] for part in range(num_files)]
    files = [f"pytorch_model-{number + 1:05}-of-{num_files:05}.bin" for number in range(num_files)]
    files = files if num_files > 1 else ["pytorch_model.bin"]
    for file, part in zip(files, parts, strict=True):
        torch.save({name: state[name] for name in part}, seed / file, _use_new_zipfile_serialization=is_zip)
    weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    if num_files > 1:
        (seed / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return seed


@pytest.mark.parametrize("num_files", [1, 3])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before-torch-1.6"])
def test_a_pickled_checkpoint_is_cut_into_the_same_bytes_as_its_safetensors_twin(tmp_path, num_files, is_zip):
    seed = save_tiny_model(tmp_path / "seed")
    expected = load_file(cut_layers(seed, (1, 4), tmp_path / "expected") / "model.safetensors")
    pruned = cut_layers(pickled(seed, num_files, is_zip), (1, 4), tmp_path / "pruned")
    actual = load_file(pruned / "model.safetensors")
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    made = ["README.md", "config.json", "generation_config.json", "model.safetensors"]
    assert snapshot(pruned) == [*made, "provenance", "provenance/layer_pruning.json"]


def is_tied(model):
    return model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_a_tied_head_that_was_pickled_twice_is_tied_again_when_loaded(tmp_path):
    seed = pickled(save_tiny_model(tmp_path / "seed", "qwen3"))
    with layers_skipped(load(seed), (2,)) as whole:
        expected = logits(whole, token_ids())
    model = load(cut_layers(seed, (2,), tmp_path / "pruned"))
    assert is_tied(model) or transformers.__version__ == "5.0.0"  # does not tie what a file holds twice
    assert torch.equal(logits(model, token_ids()), expected)


def test_a_trial_cut_reads_names_and_shapes_and_writes_nothing(tmp_path):
    seed = save_tiny_model(tmp_path / "seed")
    expected = plan_checkpoint(seed, (1,))
    cut = plan_checkpoint(pickled(seed, num_files=2), (1,))
    assert cut.parameters_before == expected.parameters_before
    assert (cut.num_bytes, cut.parameters_after) == (expected.num_bytes, expected.parameters_after)
    assert {name: (t.dtype, t.shape) for name, t in cut.tensors} == {
        name: (t.dtype, t.shape) for name, t in expected.tensors
    }
    assert snapshot(tmp_path) == sorted(["seed", *(f"seed/{name}" for name in snapshot(seed))])


DTYPES = [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn]


def test_views_transposed_tensors_and_scalars_of_any_kind_keep_their_values(tmp_path):
    grid = torch.arange(12.0).reshape(3, 4)
    state = {"whole": grid, "column": grid[:, 1], "turned": grid.t(), "scalar": torch.tensor(2.0), "none": grid[:0]}
    state |= {str(dtype): torch.tensor([0, 1, 1]).to(dtype) for dtype in DTYPES}
    state["trained"] = torch.nn.Parameter(torch.ones(2))
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "out").mkdir()
    converted([(t.name, t) for t in read_legacy_checkpoint(tmp_path)], tmp_path / "out")
    read = load_file(tmp_path / "out" / "0.safetensors")
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert read[name].tolist() == tensor.tolist()


def test_safetensors_win_where_both_are_there(own_checkpoint, tmp_path):
    (own_checkpoint / "pytorch_model.bin").write_bytes(b"never read")
    assert load(cut_layers(own_checkpoint, (1,), tmp_path / "pruned")).config.num_hidden_layers == 5


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"lm_head.weight": os.system}, r"holds something else than tensors, which is not read, since a pickled file"),
        ({"model": {"weight": torch.ones(1)}}, r"holds something else than tensors \('model' is a dict\); load"),
        ([torch.ones(1)], r"holds a list instead of named tensors; load the model with transformers"),
        (
            {"weight": torch.ones(2).to_sparse()},
            r"holds ('weight' in float32, torch\.sparse_coo, which safetens|tensors that torch can't read.* save_pret)",
        ),
        ({"weight": torch.ones(2).cfloat()}, r"holds 'weight' in complex64, torch\.strided, which safetensors"),
    ],
    ids=["code", "nested", "list", "sparse", "complex"],
)
def test_pickled_files_that_hold_more_than_plain_tensors_are_refused(own_checkpoint, tmp_path, state, message):
    (own_checkpoint / "model.safetensors").unlink()
    torch.save(state, own_checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin {message}"):
        cut_layers(own_checkpoint, (1,), tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


def test_a_pickled_file_that_was_not_downloaded_whole_is_refused(own_checkpoint, tmp_path):
    path = pickled(own_checkpoint) / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin .*(download|save) it again"):
        cut_layers(own_checkpoint, (1,), tmp_path / "pruned")


def test_a_pickled_shard_that_is_missing_is_named(own_checkpoint, tmp_path):
    (pickled(own_checkpoint, 2) / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json names pytorch_model-00002-of-00002\.bin, which is missing"):
        cut_layers(own_checkpoint, (1,), tmp_path / "pruned")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
def test_a_broken_index_of_pickled_files_is_refused(own_checkpoint, tmp_path, text):
    (own_checkpoint / "model.safetensors").unlink()
    (own_checkpoint / "pytorch_model.bin.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"bin\.index\.json (is not an index of weight files|can't be read): \w+"):
        cut_layers(own_checkpoint, (1,), tmp_path / "pruned")


def test_a_pickled_checkpoint_needs_room_for_its_weights_twice(own_checkpoint, tmp_path, monkeypatch):
    cut = plan_checkpoint(pickled(own_checkpoint), (1,))
    usage = type("Usage", (), {"free": 2 * cut.num_bytes - 1})()
    monkeypatch.setattr(artifacts.shutil, "disk_usage", lambda _folder: usage)
    with pytest.raises(ArtifactError, match="GB are needed"):
        cut_layers(own_checkpoint, (1,), tmp_path / "pruned")


def test_a_checkpoint_in_safetensors_is_cut_without_torch(smollm2_dir):
    program = "import sys; from axolotl_sdft.pruning.checkpoint import cut, legacy_files; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_the_identity_follows_pickled_weights_unless_safetensors_are_read(own_checkpoint):
    before = model_identity(own_checkpoint)
    (own_checkpoint / "pytorch_model.bin").write_bytes(b"1")
    assert model_identity(own_checkpoint) == before
    (own_checkpoint / "model.safetensors").unlink()
    first = model_identity(own_checkpoint)
    (own_checkpoint / "pytorch_model.bin").write_bytes(b"2")
    assert len({before, first, model_identity(own_checkpoint)}) == 3
