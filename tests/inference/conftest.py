"""What the tests of several backends share."""

import json
import shutil

import pytest

from tests.distillation.conftest import echo_plugin as echo_plugin
from tests.distillation.conftest import seed_dir as seed_dir

CODE = """
from transformers import PreTrainedTokenizerFast

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def seed_with_code(tiny_llama_dir, tmp_path, monkeypatch):
    """A seed model whose tokenizer comes with code of its own."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = shutil.copytree(tiny_llama_dir, tmp_path / "coded")
    (folder / "own.py").write_text(CODE)
    path = folder / "tokenizer_config.json"
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    return folder
