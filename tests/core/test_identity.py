import hashlib
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from axolotl_sdft.core import identity
from axolotl_sdft.core.artifacts import write_json
from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.core.identity import file_digests, model_identity
from axolotl_sdft.pruning.checkpoint.tensor_files import read_checkpoint

MIB = 2**20
LONG_AGO = 10**18  # in nanoseconds: the year 2001


@pytest.fixture(autouse=True)
def cache_file(tmp_path_factory, monkeypatch) -> Path:
    """A cache folder for each test, and the file that will be in it."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "axolotl-sdft" / "file_digests.json"


@pytest.fixture
def settled(monkeypatch):
    """Let files that were written just now count as written long ago, so that their digests are remembered."""
    monkeypatch.setattr(identity, "_SETTLED_NS", -(10**10))


@pytest.fixture
def hashed(monkeypatch) -> list[Path]:
    """The files whose content is read, in order."""
    paths = []
    read = identity._sha256

    def noted(path: Path) -> str:
        paths.append(path)
        return read(path)

    monkeypatch.setattr(identity, "_sha256", noted)
    return paths


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_json(folder / "config.json", {"num_hidden_layers": 4})
    (folder / "model.safetensors").write_bytes(bytes(2 * MIB))
    return folder


# What counts


def test_one_changed_byte_in_any_tensor_of_a_real_checkpoint_is_noticed(tiny_llama_dir, tmp_path):
    folder = Path(shutil.copytree(tiny_llama_dir, tmp_path / "copy"))
    before = model_identity(folder)
    tensors, _ = read_checkpoint(folder)
    seen = {before}
    with (folder / "model.safetensors").open("r+b") as file:
        for tensor in tensors:
            place = tensor.offset + tensor.num_bytes // 3
            file.seek(place)
            (byte,) = file.read(1)
            for changed in (byte ^ 1, byte):
                file.seek(place)
                file.write(bytes([changed]))
                file.flush()
                seen.add(model_identity(folder))
    assert len(tensors) > 50
    assert len(seen) == len(tensors) + 1  # each change gives another identity, and taking it back the first one


@pytest.mark.parametrize(
    "name",
    [
        *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"),
        *("tokenizer.model", "merges.txt", "qwen.tiktoken", "chat_template.jinja", "chat_template.json"),
        *("additional_chat_templates/tools.jinja", "adapter_model.safetensors", "modeling_own.py", "__init__.py"),
        *("model-00002-of-00002.safetensors", "preprocessor_config.json", "quantize_config.json", "codebook.bin"),
        *("custom_generate/generate.py", "added_tokens.json", "source.spm"),
    ],
)
def test_a_file_that_shapes_what_the_model_says_counts(model, name):
    identities = [model_identity(model)]
    (model / name).parent.mkdir(exist_ok=True)
    for content in ("{}", "[]"):
        (model / name).write_text(content)
        identities.append(model_identity(model))
    assert len(set(identities)) == 3


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "LICENSE", "LICENSE.txt", "NOTICE", "report.html", "layer_pruning.json", "optimizer.pt"),
        *("trainer_state.json", "training_args.bin", "scheduler.pt", "rng_state_0.pth", ".model.lock", "debug.log"),
        *(
            "sdft_merge.json",
            "sdft_trained_on.json",
            "dynsdpb_memory_1.pt",
            "checkpoint-5/model.safetensors",
            "runs/events.out.tfevents.1",
        ),
        *("tokenizer/notes.json", "curve.png", "tf_model.h5", "pytorch_model.bin", "consolidated.safetensors"),
        *("consolidated.00.pth", "openvino_model.bin", "openvino_model.xml", "try_it.ipynb"),
    ],
)
def test_a_file_that_leaves_the_model_as_it_is_does_not_count(model, name):
    before = model_identity(model)
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("{}")
    assert model_identity(model) == before


def test_weights_in_mistral_s_layout_count_where_there_are_no_others(model):
    (model / "model.safetensors").rename(model / "consolidated.safetensors")
    before = model_identity(model)
    (model / "consolidated.safetensors").write_bytes(b"others")
    assert model_identity(model) != before


def test_modules_in_folders_count_where_there_is_custom_code_but_not_those_of_another_model(model):
    (model / "modeling_own.py").write_text("from .layers.attention import Attention")
    (model / "layers").mkdir()
    before = model_identity(model)
    (model / "layers" / "attention.py").write_text("class Attention: ...")
    with_module = model_identity(model)
    (model / "checkpoint-5").mkdir()
    write_json(model / "checkpoint-5" / "config.json", {})
    (model / "checkpoint-5" / "modeling_own.py").write_text("other")
    assert before != with_module == model_identity(model)


def test_the_name_of_a_file_counts(model):
    (model / "a.safetensors").write_bytes(b"1")
    before = model_identity(model)
    (model / "a.safetensors").rename(model / "b.safetensors")
    assert model_identity(model) != before


def test_a_copy_in_another_folder_with_other_dates_is_the_same_model(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "elsewhere" / "copy")
    os.utime(copy / "model.safetensors", ns=(LONG_AGO, LONG_AGO))
    assert model_identity(copy) == model_identity(model)
    assert model_identity(Path(os.path.relpath(copy))) == model_identity(copy)


def test_an_adapter_counts_its_settings_but_not_where_its_base_lies(tmp_path):
    identities = []
    for rank, base in ((8, "/models/base"), (8, "elsewhere/base"), (16, "/models/base")):
        write_json(tmp_path / "adapter_config.json", {"r": rank, "base_model_name_or_path": base})
        identities.append(model_identity(tmp_path))
    assert identities[0] == identities[1] != identities[2]


def test_the_identity_is_64_hex_digits_and_never_changes_between_runs(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    empty_object = hashlib.sha256(b"{}").hexdigest()
    expected = hashlib.sha256(f'[1, [["config.json", "{empty_object}"]]]'.encode()).hexdigest()
    assert model_identity(tmp_path) == expected


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"the model in .*nowhere can't be read: .*No such file"):
        model_identity(tmp_path / "nowhere")


# What is remembered


def test_a_large_file_is_read_once_and_a_small_one_each_time(model, hashed, settled):
    assert model_identity(model) == model_identity(model)
    assert sorted(path.name for path in hashed) == ["config.json", "config.json", "model.safetensors"]


def test_a_file_changed_within_one_tick_of_the_clock_is_noticed(model, hashed):
    weights = model / "model.safetensors"
    before = model_identity(model)
    dates = weights.stat()
    with weights.open("r+b") as file:
        file.write(b"1")
    os.utime(weights, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert model_identity(model) != before
    assert hashed.count(weights) == 2  # a fresh file is not remembered


def test_a_change_whose_date_was_set_back_is_noticed(model, settled):
    weights = model / "model.safetensors"
    os.utime(weights, ns=(LONG_AGO, LONG_AGO))
    before = model_identity(model)
    time.sleep(0.02)
    with weights.open("r+b") as file:
        file.write(b"1")
    os.utime(weights, ns=(LONG_AGO, LONG_AGO))
    assert model_identity(model) != before


@pytest.mark.parametrize(
    "content", [b"", b"{cut off", b"[]", b'{"files": 1}', b"\xff", b"[" * 200_000, b'{"files": {"a": [1, 2]}}']
)
def test_a_damaged_cache_is_replaced(model, cache_file, hashed, settled, content):
    before = model_identity(model)
    cache_file.write_bytes(content)
    assert model_identity(model) == before
    assert list(json.loads(cache_file.read_bytes())["files"]) == [str(model / "model.safetensors")]


def test_an_entry_that_is_damaged_is_not_believed(model, cache_file, settled):
    before = model_identity(model)
    cache = json.loads(cache_file.read_bytes())
    (entry,) = cache["files"].values()
    entry[0] = "not a digest"
    write_json(cache_file, cache)
    assert model_identity(model) == before


@pytest.mark.parametrize("blocked_by", ["file", "no home"])
def test_a_cache_that_can_not_be_written_does_not_hurt(model, tmp_path, monkeypatch, settled, blocked_by):
    before = model_identity(model)
    if blocked_by == "file":
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(identity.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert model_identity(model) == before


def test_writers_at_one_time_leave_a_whole_cache_and_no_scraps(tmp_path, cache_file, settled):
    files = [tmp_path / f"{number}" for number in range(8)]
    for number, path in enumerate(files):
        path.write_bytes(bytes([number]) * MIB)
    threads = [threading.Thread(target=file_digests, args=([path],)) for path in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    remembered = json.loads(cache_file.read_bytes())["files"]
    assert remembered
    for path, (digest, size, *_) in remembered.items():
        assert (digest, size) == (hashlib.sha256(Path(path).read_bytes()).hexdigest(), MIB)
    assert [path.name for path in cache_file.parent.iterdir()] == [cache_file.name]


# The Hub's cache


def test_a_blob_of_the_hub_cache_is_not_read_when_its_name_is_its_sha256(model, tmp_path, hashed):
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "1f", tmp_path / "hub" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for path in model.iterdir():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        name = digest if path.suffix == ".safetensors" else digest[:40]  # small files are named by git's sha1
        shutil.copyfile(path, blobs / name)
        (snapshot / path.name).symlink_to(f"../../blobs/{name}")
    assert model_identity(snapshot) == model_identity(model)
    assert [path.parent.name for path in hashed if path.name != "config.json"].count("blobs") == 1
    assert not any(path.stat().st_size > MIB for path in hashed if path.parent == blobs)


def test_a_file_that_is_only_called_by_a_sha256_is_read(tmp_path, hashed):
    path = tmp_path / ("a" * 64)
    path.write_bytes(b"1")
    (tmp_path / "link").symlink_to(path.name)
    assert file_digests([path, tmp_path / "link"]) == [hashlib.sha256(b"1").hexdigest()] * 2
