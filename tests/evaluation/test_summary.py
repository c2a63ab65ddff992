"""What a person is told of a pruned checkpoint."""

import json

import pytest

from axolotl_sdft.evaluation.summary import Artifacts, RunSummary

CUT = {"removed": [2, 3], "applied": True, "reason": None}


@pytest.fixture
def told(tmp_path):
    """The lines about a checkpoint whose provenance says this of the patch."""

    def lines(patch):
        counts = {"drop_layers": [2, 3], "num_layers_before": 8, "parameters_before": 4e6, "parameters_after": 3e6}
        folder = tmp_path / "pruned"
        (folder / "provenance").mkdir(parents=True)
        (folder / "provenance" / "layer_pruning.json").write_text(json.dumps(counts | {"patch": patch}))
        return list(RunSummary.of(Artifacts(None, folder, [], tmp_path / "out")).lines())

    return lines


def test_a_patch_is_told_by_how_much_nearer_it_brings_the_model(told):
    patch = {"divergence_bare": 0.4123, "divergence_patched": 0.25, "cuts": [CUT]}
    assert "Patch             KL to the seed model 0.412 nats per token without it, 0.25 with it" in told(patch)


def test_a_cut_that_stays_bare_is_told_with_its_reason(told):
    bare = CUT | {"applied": False, "reason": "the cut begins with layer 0"}
    lines = told({"divergence_bare": None, "divergence_patched": None, "cuts": [bare]})
    assert "Patch             none before layers 2, 3: the cut begins with layer 0" in lines


def test_without_a_patch_nothing_is_said_of_one(told):
    assert not [line for line in told(None) if line.startswith("Patch")]
