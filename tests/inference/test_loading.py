import json

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_sdft.config import TransformersGeneration
from axolotl_sdft.core.errors import CheckpointError, MissingExtraError
from axolotl_sdft.inference import loading
from axolotl_sdft.inference.loading import context_length, load_checkpoint, load_seed_model
from axolotl_sdft.inference.local.decoding import ContinuousDecoder
from axolotl_sdft.inference.local.sequence_cache import use_grouped_attention, use_plain_attention
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

    with pytest.raises(MissingExtraError, match=r"generation\.device_map is set, but accelerate is not installed"):
        load_seed_model(tmp_path, TransformersGeneration(device_map="auto"))


def test_a_checkpoint_that_can_not_be_loaded_is_named_with_the_reason_and_the_way_out(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard_of"}))

    with pytest.raises(CheckpointError, match=r"can't be loaded to rewrite.*unheard_of.*trust_remote_code: true"):
        load_seed_model(tmp_path, TransformersGeneration())


def test_a_vision_language_model_without_a_causal_class_is_loaded_as_one_that_sees():
    assert "qwen2_vl" not in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    for any_head in (False, True):
        chosen = loading._auto_class({"model_type": "qwen2_vl", "architectures": None}, False, any_head)
        assert chosen is transformers.AutoModelForImageTextToText


def test_a_class_of_the_model_s_own_code_is_chosen_only_where_that_may_run():
    config = {"model_type": "llama", "auto_map": {"AutoModelForImageTextToText": "own.OwnForImages"}}
    assert loading._auto_class(config, True, False) is transformers.AutoModelForImageTextToText
    assert loading._auto_class(config, False, False) is transformers.AutoModelForCausalLM


def test_a_head_that_writes_no_text_is_kept_only_where_any_will_do():
    config = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}
    assert loading._auto_class(config, False, True) is transformers.AutoModelForSequenceClassification
    assert loading._auto_class(config, False, False) is transformers.AutoModelForCausalLM


def adapter_on(base_dir, adapter_dir, **settings):
    base = load_checkpoint(base_dir, torch.float32, **settings)
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, config).eval()
    adapted.save_pretrained(adapter_dir)
    return adapted


def test_an_adapter_on_a_vision_language_model_keeps_the_part_that_sees(tmp_path):
    tiny_model("gemma3").save_pretrained(tmp_path / "base")
    adapted = adapter_on(tmp_path / "base", tmp_path / "adapter")

    model = load_checkpoint(tmp_path / "adapter", torch.float32)

    assert type(model.get_base_model()).__name__ == "Gemma3ForConditionalGeneration"
    ids = torch.tensor([TRIAL])
    torch.testing.assert_close(model(input_ids=ids).logits, adapted(input_ids=ids).logits)


def test_an_adapter_on_a_quantized_base_leaves_that_as_it_is(tiny_llama_dir, tmp_path):
    pytest.importorskip("bitsandbytes")
    load_checkpoint(tiny_llama_dir, torch.float32, load_in_4bit=True).save_pretrained(tmp_path / "base")
    adapter_on(tmp_path / "base", tmp_path / "adapter")

    model = load_checkpoint(tmp_path / "adapter", torch.bfloat16)

    projections = {
        name: parameter for name, parameter in model.named_parameters() if name.endswith("q_proj.base_layer.weight")
    }
    assert projections
    assert {parameter.dtype for parameter in projections.values()} == {torch.uint8}


def test_weights_keep_the_format_of_the_checkpoint_where_none_is_given(tmp_path):
    tiny_model("llama").to(torch.float16).save_pretrained(tmp_path)

    assert load_checkpoint(tmp_path).dtype == torch.float16


def test_an_adapter_that_writes_no_text_is_refused(tmp_path):
    settings = {"base_model_name_or_path": str(tmp_path), "peft_type": "LORA", "task_type": "SEQ_CLS"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))

    with pytest.raises(CheckpointError, match=r"adapter_config\.json says task_type: SEQ_CLS, but only adapters that"):
        load_seed_model(tmp_path, TransformersGeneration())


def test_a_folder_of_gguf_files_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")

    with pytest.raises(CheckpointError, match=r"holds model-Q4_K_M\.gguf; GGUF files can't be used here: name the ch"):
        load_seed_model(tmp_path, TransformersGeneration())


def rename_tensors(path, old, new):
    save_file({name.replace(old, new): tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def test_a_checkpoint_without_some_of_its_weights_is_refused_by_their_names(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    rename_tensors(tmp_path / "model.safetensors", "layers.1.mlp", "layers.1._orig_mod.mlp")

    with pytest.raises(
        CheckpointError,
        match=r"no weights for 3 of the \d+ tensors of its model, such as model\.layers\.1\.mlp\.down_proj\.weight, "
        r"but 3 that it does not know, such as model\.layers\.1\._orig_mod\.mlp\.down_proj\.weight",
    ):
        load_checkpoint(tmp_path, torch.float32)
    assert load_checkpoint(tmp_path, torch.float32, any_head=True)


@pytest.mark.parametrize("is_tied", [True, False])
def test_only_a_head_that_is_tied_to_the_embeddings_may_lack_weights(tmp_path, is_tied):
    model = tiny_model("llama")
    model.config.tie_word_embeddings = is_tied
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {n: w for n, w in weights.items() if n != "lm_head.weight"}, tmp_path / "model.safetensors", {"format": "pt"}
    )

    if is_tied:
        assert load_checkpoint(tmp_path, torch.float32)
    else:
        with pytest.raises(
            CheckpointError, match=r"no weights for 1 of the \d+ tensors .* such as lm_head\.weight; rand"
        ):
            load_checkpoint(tmp_path, torch.float32)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("base_model.model.", "base_model.model._orig_mod.", "it lacks 12 of its tensors, and 12 have no place"),
        ("layers.1.", "layers.9.", "it lacks 2 of its tensors, and 2 have no place"),
    ],
)
def test_an_adapter_whose_tensors_have_no_place_in_its_base_is_refused(tmp_path, old, new, told):
    tiny_model("llama").save_pretrained(tmp_path / "base")
    adapter_on(tmp_path / "base", tmp_path / "adapter")
    rename_tensors(tmp_path / "adapter" / "adapter_model.safetensors", old, new)

    with pytest.raises(
        CheckpointError, match=rf"the adapter in .* does not fit its base model: {told}, such as base_mo"
    ):
        load_checkpoint(tmp_path / "adapter", torch.float32)


def test_an_adapter_with_resized_embeddings_of_its_own_fits(tmp_path, tiny_llama_dir):
    base, tokenizer = load_checkpoint(tiny_llama_dir, torch.float32), AutoTokenizer.from_pretrained(tiny_llama_dir)
    tokenizer.add_tokens(["<tool>"])
    base.resize_token_embeddings(len(tokenizer))
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(base, LoraConfig(r=4, init_lora_weights=False, **settings)).eval()
    adapted.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    ids = torch.tensor([TRIAL])
    torch.testing.assert_close(
        load_checkpoint(tmp_path, torch.float32)(input_ids=ids).logits, adapted(input_ids=ids).logits
    )


def test_memory_that_runs_out_while_the_seed_model_loads_is_told_with_the_way_out(tmp_path, monkeypatch):
    def fail(*_args, **_settings):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loading, "load_checkpoint", fail)
    with pytest.raises(CheckpointError, match=r"ran out while the seed model .* \(CUDA out of memory\); .*device_map"):
        load_seed_model(tmp_path, TransformersGeneration())


def test_a_model_without_a_limit_on_its_length_has_none():
    assert context_length(tiny_model("mamba")) is None
    assert context_length(tiny_model("gpt2")) == 64
