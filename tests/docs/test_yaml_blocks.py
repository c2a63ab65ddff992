"""Every YAML block passes our rules and Axolotl's real schema, laid over the least configuration that trains."""

import json

import pytest
import tomllib
import yaml

pytest.importorskip("axolotl")

from axolotl.utils.schemas.config import AxolotlInputConfig

from axolotl_sdft.config import BLOCKS
from tests.configs.test_example_configs import LEAST, sdft_plugin, validate
from tests.docs.pages import each_block

__all__ = ["sdft_plugin"]  # a fixture: Axolotl's schema knows our keys

KEYS_OF_OTHER_PLUGINS = {"lm_eval_model"}


def configuration(block):
    """Return the least configuration with what a block adds to it."""
    content = yaml.safe_load(block.text)
    if block.title.startswith("an entry of datasets"):
        content = {"datasets": [content]}
    return {"base_model": "seed", "plugins": ["axolotl_sdft.SDFTPlugin"]} | LEAST | content


@each_block("yaml")
def test_a_yaml_block_is_valid(block, plugins_of_the_pages):
    validate(configuration(block))


@each_block("yaml")
def test_a_yaml_block_has_no_key_that_axolotl_would_drop_without_a_word(block):
    known = {*AxolotlInputConfig.model_fields, *BLOCKS, *KEYS_OF_OTHER_PLUGINS}
    assert set(configuration(block)) <= known


@each_block("toml")
def test_a_toml_block_can_be_read(block):
    assert tomllib.loads(block.text)


@each_block("json")
def test_a_json_block_can_be_read(block):
    assert json.loads(block.text)
