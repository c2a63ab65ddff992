import sys
from types import ModuleType

import pytest

from axolotl_sdft.config import OpenAIGeneration, VLLMGeneration
from axolotl_sdft.core.errors import MissingExtraError
from axolotl_sdft.inference.backends import openai_backend, vllm_backend


@pytest.mark.parametrize(
    ("factory", "config"),
    [(openai_backend, OpenAIGeneration(base_urls="http://localhost:1/v1")), (vllm_backend, VLLMGeneration())],
)
@pytest.mark.parametrize("installed", [None, ModuleType("openai")], ids=["not installed", "too old"])
def test_without_the_sdk_one_error_names_the_extra(tmp_path, monkeypatch, factory, config, installed):
    monkeypatch.setitem(sys.modules, "openai", installed)

    with pytest.raises(MissingExtraError, match=rf"backend is {config.backend}, but .*'axolotl-sdft\[openai\]'"):
        factory(tmp_path, config)
