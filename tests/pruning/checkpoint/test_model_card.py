"""The model card of a pruned checkpoint, which merged models carry on."""

import json
import shutil

import yaml
from huggingface_hub import ModelCard

from axolotl_sdft import cut_layers
from axolotl_sdft.pruning.checkpoint.model_card import model_card

PROVENANCE = {
    **{"seed_model": "org/big", "drop_layers": [2, 3], "num_layers_before": 6, "num_layers_after": 4},
    **{"parameters_before": 3_400_000, "parameters_after": 2_600_000},
    **{"metric": "last", "package_versions": {"torch": "1"}},
}


def test_the_card_names_the_seed_the_layers_and_what_they_were_chosen_by(tmp_path):
    card = model_card(tmp_path, PROVENANCE)
    assert ModelCard(card).data.base_model == "org/big"
    assert "# big without 2 of its 6 layers" in card
    assert "| Layers removed, counted from 0 | 2, 3 |" in card
    assert "| Parameters | 2.6M of 3.4M |" in card
    assert "| Layers chosen by | `last` |" in card
    assert "add the seed model's `license`" in card


def test_licence_and_language_come_from_the_seed_model_and_its_own_facts_do_not(tmp_path):
    metadata = {"license": "apache-2.0", "language": ["en"], "model-index": [{"name": "big"}], "base_model": "org/x"}
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(metadata)}---\n\n# The best model\n")
    card = model_card(tmp_path, PROVENANCE)
    data = ModelCard(card).data.to_dict()
    assert (data["license"], data["language"], data["base_model"]) == ("apache-2.0", ["en"], "org/big")
    assert "best model" not in card
    assert "model-index" not in card
    assert "`license`" not in card


def test_a_card_of_the_seed_that_can_not_be_read_does_not_stop_a_cut(checkpoint, tmp_path):
    seed = shutil.copytree(checkpoint(), tmp_path / "seed")
    (seed / "README.md").write_bytes(b"---\nlicense: [\xff\n---\n")
    pruned = cut_layers(seed, [1], tmp_path / "pruned")
    card = (pruned / "README.md").read_text()
    before = json.loads((pruned / "provenance/layer_pruning.json").read_text())["num_layers_before"]
    assert f"# seed without 1 of its {before} layers" in card
    assert str(tmp_path) not in card
    assert ModelCard(card).data.base_model is None
