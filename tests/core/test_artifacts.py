import datetime
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.core.artifacts import (
    atomic_folder,
    ensure_free_space,
    ensure_writable,
    find_or_make,
    fingerprint,
    package_versions,
    read_json,
    replace_json,
    replacing,
    write_json,
)
from axolotl_sdft.core.errors import ArtifactError, ConfigError

REPO_ROOT = Path(__file__).parents[2]
MIB = 2**20

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


# Fingerprints


@given(st.dictionaries(st.text(), JSON_VALUES))
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(settings):
    backwards = dict(reversed(settings.items()))
    assert fingerprint(backwards) == fingerprint(settings)


@given(JSON_VALUES, JSON_VALUES)
def test_fingerprints_are_equal_when_and_only_when_the_json_is(left, right):
    same_json = json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
    assert (fingerprint(left) == fingerprint(right)) == same_json


def test_a_fingerprint_is_twelve_hex_digits_and_never_changes_between_runs():
    # The first 12 digits of sha256 of the text {"a":[1,null]}
    assert fingerprint({"a": [1, None]}) == "a290b55a84a4"


@pytest.mark.parametrize("value", [datetime.date(2026, 1, 2), {1: 2, "a": 3}, [{"a", "b"}], Path("here")])
def test_what_json_can_not_hold_is_refused_instead_of_taken_by_its_address(value):
    with pytest.raises(ConfigError, match=r"something else than texts, numbers, lists and mappings: .* in quotes"):
        fingerprint({"settings": value})


# Folders written whole or not at all


def test_a_folder_appears_under_its_name_only_when_the_block_ends(tmp_path):
    with atomic_folder(tmp_path / "pruned") as folder:
        (folder / "config.json").write_text("{}")
        assert not (tmp_path / "pruned").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]
    assert (tmp_path / "pruned" / "config.json").read_text() == "{}"


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_nothing_behind(tmp_path, interruption):
    def write_half(folder):
        (folder / "half.safetensors").write_text("half")
        raise interruption("stop")

    with pytest.raises(interruption, match="stop"), atomic_folder(tmp_path / "pruned") as folder:
        write_half(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_error_names_the_target_and_the_cause_and_leaves_nothing_behind(tmp_path):
    message = r"pruned could not be written \(.*No space left on device.*\); nothing was left behind"
    with pytest.raises(ArtifactError, match=message) as caught, atomic_folder(tmp_path / "pruned"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert isinstance(caught.value.__cause__, OSError)
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_error_of_the_block_comes_out_as_it_is(tmp_path):
    with pytest.raises(ArtifactError, match=r"^scores are missing$"), atomic_folder(tmp_path / "pruned"):
        raise ArtifactError("scores are missing")


def test_a_target_that_exists_is_refused_and_stays_as_it_is(tmp_path):
    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned" / "mine").touch()
    with (
        pytest.raises(ArtifactError, match="pruned exists already; delete it or name another folder"),
        atomic_folder(tmp_path / "pruned"),
    ):
        pass
    assert [path.name for path in (tmp_path / "pruned").iterdir()] == ["mine"]


def test_a_target_without_a_parent_folder_is_an_artifact_error(tmp_path):
    with (
        pytest.raises(ArtifactError, match=r"pruned could not be written \(.*No such file or directory"),
        atomic_folder(tmp_path / "missing" / "pruned"),
    ):
        pass


def test_a_finished_folder_is_as_open_to_others_as_any_new_folder(tmp_path):
    (tmp_path / "usual").mkdir()
    with atomic_folder(tmp_path / "pruned"):
        pass
    assert stat.S_IMODE((tmp_path / "pruned").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


# Found, or made by one process

MAKER = """
import sys, time
from pathlib import Path
from axolotl_sdft.core.artifacts import find_or_make

target = Path(sys.argv[1])

def make():
    with (target.parent / "log").open("a") as log:
        log.write("made\\n")
    time.sleep(0.3)
    target.touch()

print("up", flush=True)
sys.stdin.readline()
print(find_or_make(target, make, target.exists), flush=True)
"""


def test_of_two_processes_one_makes_the_artifact_and_the_other_waits_for_it(tmp_path):
    command = [sys.executable, "-c", MAKER, tmp_path / "artifact"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": REPO_ROOT}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "up\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=600)[0].strip() for process in processes]
    assert sorted(answers) == ["False", "True"]
    assert (tmp_path / "log").read_text() == "made\n"


def test_what_is_there_is_not_made_again(tmp_path):
    def make():
        pytest.fail("made again")

    assert find_or_make(tmp_path / "artifact", make, lambda: True) is False


def test_after_a_maker_that_failed_the_next_one_makes_it(tmp_path):
    target = tmp_path / "artifact"
    with pytest.raises(ZeroDivisionError):
        find_or_make(target, lambda: 1 / 0, target.exists)
    assert find_or_make(target, target.touch, target.exists) is True
    assert target.exists()


# Disks and files


def test_a_writable_folder_is_created_and_left_empty(tmp_path):
    ensure_writable(tmp_path / "deep" / "down", "layer_pruning.output_dir")
    assert list((tmp_path / "deep" / "down").iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_can_not_be_made_is_refused_with_key_folder_and_cause(tmp_path, place):
    (tmp_path / "file").touch()
    message = rf"layer_pruning\.output_dir: can't write to .*{place} \(.*/file is not a folder\); name another"
    with pytest.raises(ArtifactError, match=message):
        ensure_writable(tmp_path / place, "layer_pruning.output_dir")


def test_a_folder_that_is_there_but_takes_no_files_is_refused(tmp_path, monkeypatch):
    def refuse(dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ArtifactError, match=r"output_dir: can't write to .* \(Read-only file system\); name another"):
        ensure_writable(tmp_path, "self_distillation.output_dir")


@pytest.mark.parametrize("inside", ["", "deep/down"])
def test_a_link_to_a_disk_that_is_gone_is_named_where_a_folder_would_be_behind_it(tmp_path, inside):
    (tmp_path / "link").symlink_to("/scratch/gone")
    message = r"key: can't write to .* \(.*/link is a link to /scratch/gone, which is not there\); name another folder"
    with pytest.raises(ArtifactError, match=message):
        ensure_writable(tmp_path / "link" / inside, "key")


def test_a_link_to_what_is_gone_is_refused_as_a_target_before_anything_is_written(tmp_path):
    (tmp_path / "pruned").symlink_to("/scratch/gone")
    with pytest.raises(ArtifactError, match="pruned exists already"), atomic_folder(tmp_path / "pruned"):
        pytest.fail("begun")


def test_too_little_free_space_is_refused_with_both_sizes(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(4 * 10**9, 3 * 10**9, 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    ensure_free_space(tmp_path, 10**9, "layer_pruning.output_dir")
    message = r"layer_pruning\.output_dir: 2\.50 GB are needed in .*, but 1\.00 GB are free; make room or name another"
    with pytest.raises(ArtifactError, match=message):
        ensure_free_space(tmp_path, 2_500_000_000, "layer_pruning.output_dir")


def test_json_comes_back_as_it_was_written_and_stays_readable(tmp_path):
    value = {"rows": 3, "reason": "größer", "scores": [0.5, None]}
    write_json(tmp_path / "summary.json", value)
    assert read_json(tmp_path / "summary.json") == value
    assert '\n  "reason": "größer",\n' in (tmp_path / "summary.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_file_stays_as_it_was_where_what_replaces_it_is_not_finished(tmp_path, error):
    def write_half(temporary):
        temporary.write_text("new and ha")
        raise error("stop")

    (tmp_path / "report.html").write_text("old")
    with pytest.raises(error, match="stop"), replacing(tmp_path / "report.html") as temporary:
        write_half(temporary)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"report.html": "old"}


def test_a_file_that_can_not_take_its_place_is_named_with_the_cause_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "report.html").mkdir()
    (tmp_path / "taken").touch()
    with pytest.raises(
        ArtifactError, match=r"report\.html can't be written \(Is a directory\); make room there, or name"
    ):
        replace_json(tmp_path / "report.html", {})
    with pytest.raises(ArtifactError, match=r"figures\.json can't be written \((File exists|Not a directory)\)"):
        replace_json(tmp_path / "taken" / "figures.json", {})
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["report.html", "taken"]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "No such file"),
        (b"{cut off", "Expecting property name"),
        (b"\xff", "can't decode"),
        (b"[]", "it holds a list instead of an object"),
    ],
)
def test_a_json_file_that_can_not_be_read_is_named_with_the_cause(tmp_path, content, cause):
    if content is not None:
        (tmp_path / "scores.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"scores\.json can't be read: .*{cause}"):
        read_json(tmp_path / "scores.json")


def test_versions_of_packages_that_are_not_installed_are_left_out():
    assert package_versions("pytest", "no-such-package").keys() - {"axolotl-sdft"} == {"pytest"}
