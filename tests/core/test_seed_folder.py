import shutil

import httpx
import pytest

from axolotl_sdft.core.errors import CheckpointError, SdftError
from axolotl_sdft.core.model_folder import folder_of, resolve_seed, slug


@pytest.mark.parametrize(
    ("seed_name", "expected"),
    [
        ("meta-llama/Llama-3", "meta-llama--Llama-3"),
        ("gpt2", "gpt2"),
        ("hf://org/model name", "hf-----org--model-name"),
        ("//", "model"),
    ],
)
def test_the_name_of_a_hub_id_is_kept_whole(seed_name, expected):
    assert slug(seed_name) == expected


def test_of_a_folder_only_the_last_name_is_kept(tmp_path, monkeypatch):
    (tmp_path / "models" / "SmolLM2-135M").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "models")
    names = [str(tmp_path / "models" / "SmolLM2-135M"), "SmolLM2-135M/", "./SmolLM2-135M", "../models/SmolLM2-135M"]
    assert {slug(name) for name in names} == {"SmolLM2-135M"}


def test_a_folder_is_its_own_seed(tiny_llama_dir, monkeypatch):
    monkeypatch.chdir(tiny_llama_dir.parent)
    assert resolve_seed(tiny_llama_dir.name) == tiny_llama_dir


@pytest.mark.parametrize(
    ("base_model", "revision", "message"),
    [
        (
            "nobody/no-such-model",
            None,
            r"base_model is 'nobody/no-such-model', which is not a local folder and could not be downloaded",
        ),
        (
            "nobody/no-such-model",
            "v2",
            r"base_model is 'nobody/no-such-model' \(revision 'v2'\), which is not a local folder",
        ),
        ("models/no/such/folder", None, r"base_model is 'models/no/such/folder', which is not a local folder"),
        ("/no/such/folder", None, r"base_model is '/no/such/folder', which is not a local folder"),
    ],
)
def test_a_seed_that_is_nowhere_is_refused_by_its_key(base_model, revision, message):
    with pytest.raises(SdftError, match=message):
        resolve_seed(base_model, revision)


def test_a_download_that_breaks_off_is_one_clear_error_and_finds_no_other_folder(monkeypatch):
    def download(*_args, **_settings):
        raise httpx.RemoteProtocolError("peer closed connection (received 1000 bytes, expected 1000000)")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(CheckpointError, match=r"'org/seed', which .* not be downloaded: peer closed connection"):
        resolve_seed("org/seed")
    assert folder_of("org/seed", None, ["config.json"]) is None


def test_of_a_hub_id_every_kind_of_tokenizer_comes_and_no_weights_twice(tmp_path, monkeypatch):
    from huggingface_hub.utils import filter_repo_objects

    there = [
        *("config.json", "model.safetensors", "tokenizer.model", "merges.txt", "tokenization_own.py"),
        *("qwen.tiktoken", "bpe.codes", "vocab.bpe", "source.spm", "custom_generate/generate.py"),
    ]
    left = ["consolidated.safetensors", "onnx/model.safetensors", "pytorch_model.bin", "tf_model.h5"]
    fetched = []

    def download(_repository, *, revision, allow_patterns, ignore_patterns):
        names = there + left
        fetched.extend(filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    resolve_seed("org/seed")
    assert fetched == there


def test_a_hub_id_in_the_cache_is_found_without_a_connection(tiny_llama_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--seed"
    shutil.copytree(tiny_llama_dir, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    assert resolve_seed("org/seed").name == "a" * 40
