import json

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.core.trained_on import weights_dir
from axolotl_sdft.evaluation.loading import load_model
from axolotl_sdft.evaluation.spec import ReportedModel
from axolotl_sdft.inference.loading import load_checkpoint

IDS = torch.tensor([list(range(40, 60))])


@pytest.fixture
def adapter(tiny_pruned_dir, tmp_path):
    """An adapter of random weights on the pruned model, and the logits of the model that it makes."""
    base = AutoModelForCausalLM.from_pretrained(tiny_pruned_dir, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    return ReportedModel("trained", tmp_path / "adapter"), logits_of(adapted.eval())


@torch.inference_mode()
def logits_of(model):
    return model(input_ids=IDS).logits


def edit_adapter(model, **changes):
    path = model.folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_checkpoint_is_loaded_in_evaluation_mode_with_its_tokenizer(tiny_pruned_dir, pruned):
    model, tokenizer = load_model(ReportedModel("pruned", tiny_pruned_dir), "auto")

    assert not model.training
    assert tokenizer.padding_side == "left"
    torch.testing.assert_close(logits_of(model), logits_of(pruned))


def test_an_adapter_is_merged_into_the_pruned_checkpoint_that_it_was_trained_on(adapter):
    reported, expected = adapter

    model, tokenizer = load_model(reported, "float32")

    assert type(model).__name__ == "LlamaForCausalLM"
    assert not [name for name, _ in model.named_modules() if "lora" in name]
    assert not model.training
    assert tokenizer.chat_template  # the base model's, as the adapter was saved without one
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_weights_have_the_format_that_is_asked_for(tiny_llama_dir, dtype):
    assert load_model(ReportedModel("seed", tiny_llama_dir), dtype)[0].dtype == getattr(torch, dtype)


def test_in_4_bits_an_adapter_stays_beside_the_packed_weights(adapter):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model, _ = load_model(adapter[0], "float32", load_in_4bit=True)

    base_layer = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert isinstance(base_layer, bitsandbytes.nn.Linear4bit)
    assert [name for name, _ in model.named_modules() if "lora" in name]


def test_a_model_is_spread_as_the_device_map_says(tiny_llama_dir, monkeypatch):
    whole = load_checkpoint(tiny_llama_dir)
    given = {}
    monkeypatch.setattr(
        "axolotl_sdft.inference.loading.load_checkpoint", lambda *_args, **settings: given.update(settings) or whole
    )
    load_model(ReportedModel("seed", tiny_llama_dir), "float32", device_map="auto")
    assert (given["device_map"], given["load_in_4bit"]) == ("auto", False)


def test_on_a_cpu_auto_is_float32_and_elsewhere_the_format_of_the_checkpoint(tiny_llama_dir, tmp_path, monkeypatch):
    load_model(ReportedModel("seed", tiny_llama_dir), "bfloat16")[0].save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tiny_llama_dir / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes((tiny_llama_dir / "tokenizer_config.json").read_bytes())
    half = ReportedModel("trained", tmp_path)
    assert load_model(half, "auto")[0].dtype == torch.float32

    monkeypatch.setattr("axolotl_sdft.core.runtime.local_device", lambda: torch.device("meta"))
    assert load_model(half, "auto")[0].dtype == torch.bfloat16


def test_a_folder_that_holds_no_model_is_named_with_the_reason(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard_of"}))

    with pytest.raises(CheckpointError, match=rf"the model 'mine' \({tmp_path}\) can't be loaded \(.*unheard_of"):
        load_model(ReportedModel("mine", tmp_path), "auto")


def test_an_adapter_whose_base_is_gone_is_named(adapter):
    reported, _ = adapter
    edit_adapter(reported, base_model_name_or_path="./gone")

    with pytest.raises(CheckpointError, match=r"base_model_name_or_path in .*adapter_config.json is './gone'"):
        weights_dir(reported.folder)


def test_an_adapter_that_names_no_base_is_refused(adapter):
    reported, _ = adapter
    edit_adapter(reported, base_model_name_or_path=None)

    with pytest.raises(CheckpointError, match=r"adapter_config.json is not set; write the folder of its base model"):
        load_model(reported, "auto")


def test_an_adapter_that_can_not_be_merged_is_refused(tiny_pruned_dir, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_pruned_dir, dtype=torch.float32)
    get_peft_model(base, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")).save_pretrained(tmp_path)

    with pytest.raises(CheckpointError, match=r"'prompts' .* can't be loaded .* LoRA adapter that is merged"):
        load_model(ReportedModel("prompts", tmp_path), "auto")
