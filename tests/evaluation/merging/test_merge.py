import json
import os
import shutil
import subprocess

import pytest
import torch

from axolotl_sdft.core import artifacts
from axolotl_sdft.core.errors import ArtifactError, CheckpointError
from axolotl_sdft.evaluation.merging import checkpoints, merge
from axolotl_sdft.evaluation.merging.merge import MERGE_FILE, merge_models
from tests.evaluation.merging.references import save_variant, tensors_of, two_models
from tests.pruning.conftest import save_tiny_model, snapshot


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A tiny Llama and a variant; read only."""
    return two_models(tmp_path_factory.mktemp("pair"))


def test_the_provenance_says_what_was_merged_how_and_with_what(pair, tmp_path):
    merged = merge_models(*pair, tmp_path / "merged", ratio=0.3, method="linear")
    provenance = json.loads((merged / MERGE_FILE).read_text())
    assert provenance["models"] == provenance["folders"] == [str(folder) for folder in pair]
    assert (provenance["ratio"], provenance["method"], provenance["dtype"]) == (0.3, "linear", "auto")
    assert provenance["first"] != provenance["second"]
    assert "torch" in provenance["package_versions"]


def test_the_same_merge_is_found_again_and_not_made_anew(pair, tmp_path, monkeypatch):
    merged = merge_models(*pair, tmp_path / "merged")
    monkeypatch.setattr(checkpoints, "_write_merged", lambda *_: pytest.fail("made anew"))
    assert merge_models(*pair, tmp_path / "merged") == merged


def test_another_ratio_in_the_same_folder_is_refused_by_the_setting_that_differs(pair, tmp_path):
    merge_models(*pair, tmp_path / "merged")
    with pytest.raises(ArtifactError, match=r"merge\.output_dir: .* its sdft_merge\.json differs in ratio; delete"):
        merge_models(*pair, tmp_path / "merged", ratio=0.6)


def test_a_folder_that_another_merge_filled_while_one_waited_for_it_says_what_differs(pair, tmp_path, monkeypatch):
    wait = merge.find_or_make

    def after_another(*args):
        monkeypatch.setattr(merge, "find_or_make", wait)
        merge_models(*pair, tmp_path / "merged", ratio=0.6)
        return wait(*args)

    monkeypatch.setattr(merge, "find_or_make", after_another)
    with pytest.raises(ArtifactError, match=r"merge\.output_dir: .* its sdft_merge\.json differs in ratio; delete"):
        merge_models(*pair, tmp_path / "merged")


def test_models_trained_further_are_another_merge(pair, tmp_path):
    second = shutil.copytree(pair[1], tmp_path / "second")
    merge_models(pair[0], second, tmp_path / "merged")
    save_variant(pair[1], second, seed=3)
    with pytest.raises(ArtifactError, match=r"differs in second; delete the folder or name another one"):
        merge_models(pair[0], second, tmp_path / "merged")


def test_a_folder_of_something_else_is_left_alone(pair, tmp_path):
    (tmp_path / "merged").mkdir()
    with pytest.raises(ArtifactError, match=r"its sdft_merge\.json is missing; delete the folder or name another one"):
        merge_models(*pair, tmp_path / "merged")


def test_a_link_to_what_is_gone_is_refused_before_anything_is_merged(pair, tmp_path, monkeypatch):
    (tmp_path / "merged").symlink_to(tmp_path / "gone")
    monkeypatch.setattr(checkpoints, "_write_merged", lambda *_: pytest.fail("written"))
    with pytest.raises(ArtifactError, match=r"its sdft_merge\.json is missing; delete the folder or name another one"):
        merge_models(*pair, tmp_path / "merged")


def test_a_full_disk_is_told_before_anything_is_written(pair, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(artifacts.shutil, "disk_usage", lambda _: usage._replace(free=10))
    monkeypatch.setattr(checkpoints, "_write_merged", lambda *_: pytest.fail("written"))
    with pytest.raises(ArtifactError, match=r"merge\.output_dir: 0\.00 GB are needed in"):
        merge_models(*pair, tmp_path / "merged")


def test_a_merge_that_stops_half_way_leaves_nothing_and_can_be_made_again(pair, tmp_path, monkeypatch):
    written = []

    def fail_at_the_third(target, tensor_pair, blend):
        written.append(tensor_pair)
        if len(written) == 3:
            raise CheckpointError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "_write_merged", fail_at_the_third)
        with pytest.raises(CheckpointError, match="stopped"):
            merge_models(*pair, tmp_path / "merged")
    assert snapshot(tmp_path) == []
    assert merge_models(*pair, tmp_path / "merged").is_dir()


def test_a_model_that_is_not_there_is_named(pair, tmp_path):
    with pytest.raises(CheckpointError, match=r"the model to merge is '.*absent', which is not a local folder"):
        merge_models(pair[0], tmp_path / "absent", tmp_path / "merged")


@pytest.mark.skipif(
    "AXOLOTL_SDFT_MERGEKIT" not in os.environ, reason="set AXOLOTL_SDFT_MERGEKIT to the path of mergekit-yaml"
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_each_tensor_equals_mergekits(tmp_path, ratio, dtype):
    """mergekit 0.1.5, in an environment of its own; ``AXOLOTL_SDFT_MERGEKIT`` is the path of its ``mergekit-yaml``.

    The models are in the format of the merge: mergekit rounds wider weights before it merges, not only after.
    """
    source = save_tiny_model(tmp_path / "source")
    first, second = (
        save_variant(source, tmp_path / str(seed), seed=seed, dtype=getattr(torch, dtype)) for seed in (1, 2)
    )
    recipe = {
        "models": [{"model": str(first)}, {"model": str(second)}],
        **{"merge_method": "slerp", "base_model": str(first), "parameters": {"t": ratio}, "dtype": dtype},
    }
    theirs = mergekit_merge(recipe, tmp_path)
    ours = tensors_of(merge_models(first, second, tmp_path / "ours", ratio=ratio, dtype=dtype))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        step = 0.0 if dtype == "float32" else 2**-7
        torch.testing.assert_close(tensor, theirs[name], rtol=max(step, 1e-5), atol=1e-6)


def mergekit_merge(recipe, folder):
    (folder / "recipe.yml").write_text(json.dumps(recipe))
    command = [os.environ["AXOLOTL_SDFT_MERGEKIT"], folder / "recipe.yml", folder / "mergekit", "--no-copy-tokenizer"]
    subprocess.run(command, check=True, capture_output=True)
    return tensors_of(folder / "mergekit")
