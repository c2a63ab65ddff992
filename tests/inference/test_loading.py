import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from axolotl_sdft.config import TransformersGeneration
from axolotl_sdft.core.errors import CheckpointError, MissingExtraError
from axolotl_sdft.inference import loading
from axolotl_sdft.inference.loading import context_length, load_seed_model
from axolotl_sdft.inference.local.decoding import ContinuousDecoder
from axolotl_sdft.inference.local.grouped_attention import use_grouped_attention, use_plain_attention
from axolotl_sdft.inference.local.sequences import TokenChooser
from axolotl_sdft.inference.local.support import unsupported_reason
from tests.inference.decoders import END, plainly_written, rows_of, tiny_model

TRIAL = list(range(5, 27))


def assert_written_as_plainly(model):
    assert use_grouped_attention(model)
    assert unsupported_reason(model, TRIAL) is None
    written = list(ContinuousDecoder(model, TokenChooser(), [END], 3, 10**6).run(rows_of()))
    use_plain_attention(model)
    assert [row.new_ids for row in written] == [plainly_written(model, row) for row in written]


def test_an_adapter_is_loaded_on_top_of_its_base_and_written_with(tmp_path):
    tiny_model("qwen2").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")

    model = load_seed_model(tmp_path / "adapter", TransformersGeneration(dtype="float32"))

    ids = torch.tensor([TRIAL])
    torch.testing.assert_close(model(input_ids=ids).logits, adapted.eval()(input_ids=ids).logits)
    assert_written_as_plainly(model)


def test_a_vision_language_model_is_loaded_whole_and_written_with(tmp_path):
    tiny_model("gemma3").save_pretrained(tmp_path)

    model = load_seed_model(tmp_path, TransformersGeneration(dtype="float32"))

    assert type(model).__name__ == "Gemma3ForConditionalGeneration"
    assert context_length(model) == model.config.text_config.max_position_embeddings
    assert_written_as_plainly(model)


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_weights_have_the_format_that_is_asked_for(tmp_path, dtype, expected):
    tiny_model("llama").save_pretrained(tmp_path)

    assert load_seed_model(tmp_path, TransformersGeneration(dtype=dtype)).dtype == expected


def test_spreading_a_model_needs_accelerate(tmp_path, monkeypatch):
    tiny_model("llama").save_pretrained(tmp_path)
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(MissingExtraError, match=r"generation\.device_map is 'auto', but accelerate is not installed"):
        load_seed_model(tmp_path, TransformersGeneration(device_map="auto"))


def test_a_checkpoint_that_can_not_be_loaded_is_named_with_the_reason_and_the_way_out(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard_of"}))

    with pytest.raises(CheckpointError, match=r"can't be loaded to rewrite.*unheard_of.*trust_remote_code: true"):
        load_seed_model(tmp_path, TransformersGeneration())


def test_a_model_without_a_limit_on_its_length_has_none():
    assert context_length(tiny_model("mamba")) is None
    assert context_length(tiny_model("gpt2")) == 64
