import json

import pytest
import torch

from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.evaluation.measuring import footprint
from axolotl_sdft.evaluation.spec import ReportedModel
from axolotl_sdft.pruning.planning.savings import read_footprint, read_savings


def test_seed_and_pruned_model_are_as_large_as_the_pruning_says(tiny_llama_dir, tiny_pruned_dir):
    savings = read_savings(tiny_llama_dir, [2, 3])

    assert footprint(ReportedModel("seed", tiny_llama_dir)) == savings.before
    assert footprint(ReportedModel("pruned", tiny_pruned_dir)) == savings.after


def test_an_adapter_counts_as_merged(tiny_pruned_dir, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_pruned_dir)}))

    assert footprint(ReportedModel("trained", tmp_path)) == footprint(ReportedModel("pruned", tiny_pruned_dir))


def test_pickled_weights_count_alike(seed, tiny_llama_dir, tmp_path):
    weights = {name: value for name, value in seed.state_dict().items() if name != "lm_head.weight"}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((tiny_llama_dir / "config.json").read_bytes())

    assert read_footprint(tmp_path) == read_footprint(tiny_llama_dir)


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2}))

    with pytest.raises(CheckpointError, match="safetensors"):
        footprint(ReportedModel("trained", tmp_path))
