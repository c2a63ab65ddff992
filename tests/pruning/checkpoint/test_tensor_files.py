import errno
import json
import os
import struct
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.pruning.checkpoint import tensor_writer
from axolotl_sdft.pruning.checkpoint.tensor_files import read_checkpoint, read_header
from axolotl_sdft.pruning.checkpoint.tensor_writer import copy_range, write_checkpoint


@pytest.fixture
def sharded(tmp_path):
    """Two shards with an index: a and b, then c."""
    save_file({"a": torch.arange(3.0), "b": torch.ones(2)}, tmp_path / "1.safetensors", metadata={"format": "pt"})
    save_file({"c": torch.zeros(5)}, tmp_path / "2.safetensors", metadata={"made_by": "hand"})
    write_index(tmp_path, {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"})
    return tmp_path


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def rewrite(folder, out, max_bytes=10**9):
    """Write all tensors of a folder anew and return what safetensors itself reads."""
    out.mkdir()
    tensors, metadata = read_checkpoint(folder)
    write_checkpoint(out, [(tensor.name, tensor) for tensor in tensors], metadata, max_bytes)
    return {name: value for path in sorted(out.glob("*.safetensors")) for name, value in load_file(path).items()}


def test_tensors_of_all_shards_are_read_with_names_shapes_and_metadata(sharded):
    tensors, metadata = read_checkpoint(sharded)
    assert [(t.name, t.dtype, t.shape, t.num_bytes, t.num_parameters) for t in tensors] == [
        ("a", "F32", (3,), 12, 3),
        ("b", "F32", (2,), 8, 2),
        ("c", "F32", (5,), 20, 5),
    ]
    assert metadata == {"format": "pt", "made_by": "hand"}


def test_a_single_file_wins_over_an_index_as_it_does_in_transformers(sharded):
    save_file({"d": torch.ones(1)}, sharded / "model.safetensors")
    assert [tensor.name for tensor in read_checkpoint(sharded)[0]] == ["d"]


def test_tensors_that_the_index_does_not_name_are_left_out(sharded):
    write_index(sharded, {"a": "1.safetensors"})
    assert [tensor.name for tensor in read_checkpoint(sharded)[0]] == ["a"]


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.float8_e4m3fn]


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(
    kinds=st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(0, 9), st.booleans()), min_size=1, max_size=8),
    max_bytes=st.sampled_from([1, 40, 10**9]),
)
def test_whatever_is_written_safetensors_reads_bit_for_bit(tmp_path_factory, kinds, max_bytes):
    folder = tmp_path_factory.mktemp("any")
    shards = {"1.safetensors": {}, "2.safetensors": {}}
    for number, (dtype, length, is_second) in enumerate(kinds):
        tensor = torch.arange(length).to(dtype)
        shards["2.safetensors" if is_second else "1.safetensors"][f"t{number}"] = tensor
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    write_index(folder, {name: file for file, tensors in shards.items() for name in tensors})

    read = rewrite(folder, folder / "out", max_bytes)

    expected = shards["1.safetensors"] | shards["2.safetensors"]
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].tolist() == tensor.tolist()


def test_a_tensor_larger_than_a_shard_gets_a_file_of_its_own(sharded):
    rewrite(sharded, sharded / "out", max_bytes=12)
    sizes = [sum(t.num_bytes for t in read_header(path)[0]) for path in sorted((sharded / "out").glob("*.safetensors"))]
    assert sizes == [12, 8, 20]


def test_headers_are_padded_so_that_data_starts_at_a_multiple_of_eight(sharded):
    rewrite(sharded, sharded / "out")
    head = (sharded / "out" / "model.safetensors").read_bytes()
    assert struct.unpack("<Q", head[:8])[0] % 8 == 0


@pytest.mark.parametrize("padding", [0, 8, 1000, 4088])
def test_large_tensors_keep_their_place_within_a_page(tmp_path, padding):
    save_file({"a": torch.ones(2048), "b": torch.ones(4096)}, tmp_path / "model.safetensors", {"note": "x" * padding})
    rewrite(tmp_path, tmp_path / "out")
    (before, after) = (read_header(folder / "model.safetensors")[0] for folder in (tmp_path, tmp_path / "out"))
    assert [new.offset % 4096 for new in after] == [old.offset % 4096 for old in before]


def test_a_copy_that_was_told_to_stop_leaves_out_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_writer, "_MAX_COPY_BYTES", 3)
    (tmp_path / "source").write_bytes(b"abcdefgh")
    stop = threading.Event()
    stop.set()
    with (tmp_path / "source").open("rb") as source, (tmp_path / "copy").open("wb") as target:
        copy_range(source.fileno(), 0, target.fileno(), 8)
        copy_range(source.fileno(), 0, target.fileno(), 8, stop)
    assert (tmp_path / "copy").read_bytes() == b"abcdefgh"


def test_one_shard_that_fails_stops_the_others(sharded, monkeypatch):
    stopped = threading.Event()

    def copy(_source, _offset, _target, num_bytes, stop):
        if num_bytes == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        if stop.wait(timeout=600):
            stopped.set()

    monkeypatch.setattr(tensor_writer, "copy_range", copy)
    with pytest.raises(OSError, match="No space left"):
        rewrite(sharded, sharded / "out", max_bytes=12)
    assert stopped.is_set()


@pytest.mark.parametrize("error", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP])
def test_bytes_go_through_memory_where_the_kernel_refuses(sharded, monkeypatch, error):
    def refuse(*_args, **_kwargs):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    monkeypatch.setattr(tensor_writer, "_BUFFER_BYTES", 7)
    assert rewrite(sharded, sharded / "out")["a"].tolist() == [0.0, 1.0, 2.0]


def test_bytes_go_through_memory_where_the_kernel_moves_none(sharded, monkeypatch):
    monkeypatch.setattr(os, "copy_file_range", lambda *_args, **_kwargs: 0, raising=False)
    assert rewrite(sharded, sharded / "out")["a"].tolist() == [0.0, 1.0, 2.0]


def test_a_full_disk_is_no_reason_to_try_again(sharded, monkeypatch):
    def fill(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", fill, raising=False)
    with pytest.raises(OSError, match="No space left"):
        rewrite(sharded, sharded / "out")


def test_a_source_that_ends_early_is_told(tmp_path):
    (tmp_path / "short").write_bytes(b"abc")
    shorter = pytest.raises(CheckpointError, match="became shorter while it was copied")
    with (tmp_path / "short").open("rb") as source, (tmp_path / "copy").open("wb") as target, shorter:
        copy_range(source.fileno(), 0, target.fileno(), 4)


@pytest.mark.parametrize(
    ("num_bytes", "message"),
    [
        (5, r"it has 5 bytes, fewer than its header"),
        (60, r"it has 60 bytes, fewer than its header"),
        (-4, r"it has \d+ bytes of \d+"),
    ],
)
def test_a_truncated_file_is_refused(sharded, num_bytes, message):
    whole = (sharded / "1.safetensors").read_bytes()
    (sharded / "1.safetensors").write_bytes(whole[:num_bytes])
    with pytest.raises(CheckpointError, match=rf"1\.safetensors is truncated: {message}; download it again"):
        read_checkpoint(sharded)


@pytest.mark.parametrize(
    "header",
    [
        b"nonsense",
        b"[1, 2]",
        b'{"a": {"dtype": "F32"}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 0.5]}}',
        b'{"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": 32, "shape": [0], "data_offsets": [0, 0]}}',
        b'{"__metadata__": [1]}',
        b'{"a": ' + b"[" * 200_000,
    ],
)
def test_a_file_that_is_no_safetensors_file_is_refused(tmp_path, header):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file: \w+"):
        read_checkpoint(tmp_path)


def test_a_header_longer_than_safetensors_allows_is_refused_unread(tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)  # of nothing on most disks
    with pytest.raises(CheckpointError, match="the header has 100,000,001 bytes, more than 100,000,000"):
        read_checkpoint(tmp_path)


def test_data_beyond_the_end_of_the_file_is_refused(tmp_path):
    header = b'{"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9000000000000000000000]}}'
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match=r"is truncated: it has 89 bytes of 90{19}89"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../1.safetensors", "/etc/passwd", "inner/../../1.safetensors"])
def test_an_index_that_names_a_file_outside_the_folder_is_refused(sharded, name):
    write_index(sharded, {"a": name})
    with pytest.raises(CheckpointError, match="weight_map names a file outside"):
        read_checkpoint(sharded)


@pytest.mark.parametrize("name", ["1.safetensors", "model.safetensors"])
def test_weights_that_are_a_symlink_out_of_the_folder_are_refused(sharded, tmp_path_factory, name):
    outside = tmp_path_factory.mktemp("outside") / "weights"
    (sharded / "1.safetensors").rename(outside)
    (sharded / name).symlink_to(outside)
    with pytest.raises(CheckpointError, match=r"is a symlink to .*, outside the model's folder, and is not followed"):
        read_checkpoint(sharded)


def test_a_shard_that_is_missing_is_named(sharded):
    (sharded / "2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json names 2\.safetensors, which is missing; download it again"):
        read_checkpoint(sharded)


def test_a_tensor_that_its_shard_lacks_is_named(sharded):
    write_index(sharded, {"a": "1.safetensors", "z": "1.safetensors"})
    with pytest.raises(CheckpointError, match=r"index\.json says that 1\.safetensors holds 'z', but it doesn't"):
        read_checkpoint(sharded)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json (is not an index of weight files|can't be read): \w+"):
        read_checkpoint(tmp_path)


def test_a_folder_of_other_weights_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "model-q4.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"its weight files are model-q4\.gguf\. Load .* save_pretrained"):
        read_checkpoint(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor .*: it holds no weights"):
        read_checkpoint(tmp_path)
