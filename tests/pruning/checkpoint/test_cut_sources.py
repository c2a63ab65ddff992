"""Where a cut reads from and what a killed one leaves: Hub ids, caches of links, mixtures of experts, large headers."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GptOssConfig, MixtralConfig

from axolotl_sdft import cut_layers
from axolotl_sdft.core.artifacts import read_json
from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.core.model_folder import resolve_seed
from axolotl_sdft.core.trained_on import PROVENANCE_FILE
from axolotl_sdft.pruning.checkpoint.tensor_files import StoredTensor
from tests.pruning.conftest import layers_skipped, load, logits, save_tiny_model, snapshot, token_ids

REPO_ROOT = Path(__file__).parents[3]
REVISION = "3" * 40


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A cache as huggingface_hub lays it out, with links to blobs, which holds the tiny Llama as ``org/seed``."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--seed"
    snapshot_dir = repository / "snapshots" / REVISION
    for folder in (snapshot_dir, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    for number, path in enumerate(sorted(save_tiny_model(tmp_path / "plain").iterdir())):
        path.rename(repository / "blobs" / f"{number:040}")
        (snapshot_dir / path.name).symlink_to(f"../../blobs/{number:040}")
    return snapshot_dir


@pytest.mark.parametrize("name", ["LICENSE", "vocab.txt", "config.json", "additional_chat_templates/tools.jinja"])
def test_a_symlink_out_of_the_folder_stops_the_cut_before_anything_is_written(name, tmp_path):
    seed = save_tiny_model(tmp_path / "seed")
    (tmp_path / "secret").write_text("a key")
    (seed / name).unlink(missing_ok=True)
    (seed / name).parent.mkdir(exist_ok=True)
    (seed / name).symlink_to("../secret" if "/" not in name else "../../secret")
    with pytest.raises(CheckpointError, match=r"is a symlink to .*secret, outside the model's folder"):
        cut_layers(seed, (1,), tmp_path / "pruned")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "seed"]


def test_a_link_to_another_file_of_the_folder_is_copied_as_a_file(tmp_path):
    seed = save_tiny_model(tmp_path / "seed")
    (seed / "vocab.txt").write_text("words")
    (seed / "words.txt").symlink_to("vocab.txt")
    pruned = cut_layers(seed, (1,), tmp_path / "pruned")
    assert (pruned / "words.txt").read_text() == "words"
    assert not (pruned / "words.txt").is_symlink()


def test_a_config_that_is_nested_too_deeply_is_refused_in_one_line(tmp_path):
    seed = save_tiny_model(tmp_path / "seed")
    (seed / "config.json").write_text('{"a": ' * 100_000)
    with pytest.raises(CheckpointError, match=r"config\.json can't be read: its JSON is nested too deeply"):
        cut_layers(seed, (1,), tmp_path / "pruned")


def test_a_hub_id_is_cut_from_the_cache_and_named_in_the_provenance(hub_cache, tmp_path):
    pruned = cut_layers("org/seed", (1, 4), tmp_path / "pruned")
    provenance = read_json(pruned / PROVENANCE_FILE)
    assert (provenance["seed_model"], provenance["seed_dir"]) == ("org/seed", str(hub_cache))
    assert not any(path.is_symlink() for path in pruned.iterdir())
    with layers_skipped(load(hub_cache), (1, 4)) as whole:
        assert torch.equal(logits(load(pruned), token_ids()), logits(whole, token_ids()))


def test_a_hub_id_that_can_not_be_had_is_refused_by_the_name_of_the_argument(hub_cache, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"source_dir is 'org/other', which is not a local folder and could not be downloaded"
    ):
        cut_layers("org/other", (1,), tmp_path / "pruned")


@pytest.mark.parametrize("has_safetensors", [True, False])
def test_pickled_weights_are_fetched_only_where_there_are_no_safetensors(tmp_path, monkeypatch, has_safetensors):
    asked = []

    def download(_repository, allow_patterns, **_settings):
        asked.append(any("bin" in pattern for pattern in allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    (tmp_path / ("model.safetensors" if has_safetensors else "pytorch_model.bin")).touch()
    assert resolve_seed("org/seed") == tmp_path
    assert asked == [False] if has_safetensors else [False, True]


# A killed cut

STUCK = """
import sys, time
from axolotl_sdft import cut_layers
from axolotl_sdft.pruning.checkpoint import tensor_writer

copy_range = tensor_writer.copy_range

def copy_and_hang(*arguments):
    copy_range(*arguments)
    print("copied", flush=True)
    time.sleep(600)

tensor_writer.copy_range = copy_and_hang
cut_layers(sys.argv[1], [1], sys.argv[2])
"""


@pytest.fixture
def stuck_cut(checkpoint, tmp_path):
    """A process that has copied weights and hangs; ends with the test."""
    command = [sys.executable, "-c", STUCK, checkpoint(), tmp_path / "pruned"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPO_ROOT)
    assert process.stdout.readline() == "copied\n"
    yield process
    process.kill()
    process.communicate()


def test_a_killed_cut_leaves_one_hidden_folder_that_the_next_cut_removes(stuck_cut, checkpoint, tmp_path):
    stuck_cut.send_signal(signal.SIGKILL)
    stuck_cut.wait()
    (left,) = tmp_path.iterdir()
    assert re.fullmatch(r"\.pruned\..+\.unfinished", left.name)
    assert (left / "model.safetensors").stat().st_size > 0

    pruned = cut_layers(checkpoint(), (1,), tmp_path / "pruned")

    assert list(tmp_path.iterdir()) == [pruned]
    assert load(pruned).config.num_hidden_layers == 5


def test_a_cut_that_is_still_running_loses_nothing_to_another_one(stuck_cut, checkpoint, tmp_path):
    (running,) = tmp_path.iterdir()
    before = (running / "model.safetensors").read_bytes()
    cut_layers(checkpoint(), (1,), tmp_path / "pruned")
    assert (running / "model.safetensors").read_bytes() == before


# Experts, and the size of it all

MIXTURES = {
    "stored one by one": (MixtralConfig, {"num_local_experts": 3}, "block_sparse_moe.experts.2.w1.weight"),
    "stored as one": (GptOssConfig, {"num_local_experts": 3, "head_dim": 8}, "mlp.experts.gate_up_proj"),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_move_with_their_layer_and_keep_their_numbers(tmp_path, name):
    config_class, settings, expert = MIXTURES[name]
    sizes = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 6, "pad_token_id": 0}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3, "num_experts_per_tok": 2}
    AutoModelForCausalLM.from_config(config_class(**sizes, **heads, **settings)).save_pretrained(tmp_path / "seed")
    before = load_file(tmp_path / "seed" / "model.safetensors")
    pruned = cut_layers(tmp_path / "seed", (0, 3), tmp_path / "pruned", max_shard_size="9KB")
    after = {key: value for path in pruned.glob("*.safetensors") for key, value in load_file(path).items()}
    for new, old in enumerate((1, 2, 4, 5)):
        assert torch.equal(after[f"model.layers.{new}.{expert}"], before[f"model.layers.{old}.{expert}"])
    assert len(after) == len([key for key in before if not re.search(r"layers\.[03]\.", key)])
    with layers_skipped(load(tmp_path / "seed"), (0, 3)) as whole:
        assert torch.equal(logits(load(pruned), token_ids()), logits(whole, token_ids()))


CUT_AND_MEASURE = """
import sys
from axolotl_sdft import cut_layers

cut_layers(sys.argv[1], [1], sys.argv[2])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print("torch" in sys.modules, "transformers" in sys.modules, int(peak.split()[1]) // 1024)
"""


def save_large_model(folder, megabytes):
    """Save a Llama of this size without ever holding it: the files are holes, of which only the header is written."""
    seed = save_tiny_model(folder)
    tensors = load_file(seed / "model.safetensors")
    places, end = {}, 0
    for name, tensor in tensors.items():
        size = tensor.nbytes if tensor.dim() < 2 else megabytes * 2**20 // len(tensors)
        places[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(places).encode()
    with (seed / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return seed


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's peak memory")
def test_a_fresh_process_cuts_without_torch_in_less_memory_than_the_checkpoint_has_bytes(tmp_path):
    seed = save_large_model(tmp_path / "seed", 400)
    command = [sys.executable, "-c", CUT_AND_MEASURE, seed, tmp_path / "pruned"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPO_ROOT, env=os.environ)
    has_torch, has_transformers, megabytes = run.stdout.split()
    assert (has_torch, has_transformers) == ("False", "False")
    assert int(megabytes) < 100
    assert [name for name in snapshot(tmp_path / "pruned") if name.startswith("model")] == ["model.safetensors"]


def test_a_place_in_a_file_costs_little_memory():
    tensor = StoredTensor("model.layers.0.mlp.up_proj.weight", "BF16", (4, 4), Path("model.safetensors"), 8, 32)
    assert not hasattr(tensor, "__dict__")  # there may be 100,000 of them
