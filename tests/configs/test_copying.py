import errno
import shutil

import pytest
import yaml

from axolotl_sdft.configs.catalogue import copy_config, find_config
from axolotl_sdft.core.errors import ArtifactError

WITH_DATA = "sdft/llama-2-7b-chat-openfunctions"


def test_a_copy_is_the_file_as_it_is_where_it_names_no_data_of_the_package(tmp_path):
    config = find_config("sdft/llama-2-7b-chat-gsm8k")
    assert copy_config(config, tmp_path / "mine.yml") == [tmp_path / "mine.yml"]
    assert (tmp_path / "mine.yml").read_text() == config.text()


def test_data_is_copied_along_and_found_from_the_folder_of_the_copy(tmp_path):
    config = find_config(WITH_DATA)
    written = copy_config(config, tmp_path)

    copied = tmp_path / "llama-2-7b-chat-openfunctions.yml"
    assert written == [copied, tmp_path / "data" / "function_calls.jsonl"]
    (entry,) = yaml.safe_load(copied.read_text())["datasets"]
    assert entry["path"] == "data/function_calls.jsonl"
    assert (tmp_path / entry["path"]).read_bytes() == (config.path.parent.parent / entry["path"]).read_bytes()
    unchanged = [(a, b) for a, b in zip(copied.read_text().splitlines(), config.text().splitlines(), strict=True)]
    assert sum(a != b for a, b in unchanged) == 1


def test_a_script_that_the_description_names_comes_along(tmp_path):
    written = copy_config(find_config("sdft/llama-2-7b-chat-lima"), tmp_path)
    assert written[1:] == [tmp_path / "prepare_lima.py"]
    assert "python prepare_lima.py writes" in written[0].read_text()


def test_folders_on_the_way_are_made(tmp_path):
    assert copy_config(find_config("quickstart"), tmp_path / "a" / "b" / "mine.yml")[0].is_file()


def test_a_file_that_is_there_is_kept_unless_forced(tmp_path):
    there = tmp_path / "mine.yml"
    there.write_text("mine")
    with pytest.raises(ArtifactError, match=r"mine.yml is there already.*--force"):
        copy_config(find_config("quickstart"), there)
    assert there.read_text() == "mine"
    assert not (tmp_path / "data").exists()

    copy_config(find_config("quickstart"), there, force=True)
    assert there.read_text() != "mine"


def test_data_that_is_there_with_other_content_is_kept_and_nothing_is_written(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "function_calls.jsonl").write_text("mine")
    with pytest.raises(ArtifactError, match=r"function_calls.jsonl is there already with other content"):
        copy_config(find_config(WITH_DATA), tmp_path / "mine.yml")
    assert not (tmp_path / "mine.yml").exists()


def test_two_copies_share_the_same_data(tmp_path):
    copy_config(find_config(WITH_DATA), tmp_path / "one.yml")
    assert copy_config(find_config(WITH_DATA), tmp_path / "two.yml")[0].is_file()


def test_a_copy_that_fills_the_disk_leaves_no_half_of_a_file(tmp_path, monkeypatch):
    def copy_half(source, target):
        target.write_bytes(source.read_bytes()[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", copy_half)

    with pytest.raises(ArtifactError, match=r"function_calls.jsonl can't be written \(No space left on device\)"):
        copy_config(find_config(WITH_DATA), tmp_path / "mine.yml")

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_that_can_not_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="can't be written"):
        copy_config(find_config("quickstart"), tmp_path / "file" / "mine.yml")
