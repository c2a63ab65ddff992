"""Every file under example_configs/, and the README's own YAML, passes our rules and Axolotl's real schema."""

from pathlib import Path

import pytest
import yaml

pytest.importorskip("axolotl")

from axolotl.integrations.base import PluginManager
from axolotl.utils.dict import DictDefault

from axolotl_sdft.host.blocks import read_blocks
from axolotl_sdft.host.compat import validate_early
from axolotl_sdft.host.rules import check_rules

REPOSITORY = Path(__file__).parent.parent
EXAMPLES = sorted((REPOSITORY / "example_configs").glob("*.yml"))
LEAST = {
    **{"micro_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 0.001, "num_epochs": 1},
    "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
}


@pytest.fixture(autouse=True)
def sdft_plugin(monkeypatch):
    """The plugin's keys are in Axolotl's schema, as its command puts them there."""
    from axolotl_sdft import SDFTPlugin

    monkeypatch.setattr(PluginManager.get_instance(), "plugins", {"axolotl_sdft.SDFTPlugin": SDFTPlugin()})


def validate(config):
    check_rules(config, read_blocks(config), other_trainers={})
    validate_early(DictDefault(config))


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_valid_and_its_local_data_is_there(path):
    config = yaml.safe_load(path.read_text())
    validate(config)
    for entry in config["datasets"]:
        assert (REPOSITORY / entry["path"]).exists()


def test_axolotl_refuses_a_wrong_key_inside_our_blocks_too():
    plugins = ["axolotl_sdft.SDFTPlugin"]
    config = LEAST | {"base_model": "seed", "plugins": plugins, "layer_pruning": {"num_layer": 1}}
    with pytest.raises(ValueError, match="did you mean 'num_layers'"):
        validate_early(DictDefault(config))
