import importlib.util
import re

import pytest
import torch
import transformers

from axolotl_sdft import LayerPruningConfig, score_layers
from axolotl_sdft.config import CalibrationConfig
from axolotl_sdft.core.errors import CheckpointError, ConfigError, DatasetError, MissingExtraError, error_context
from axolotl_sdft.pruning.scoring import loading
from axolotl_sdft.pruning.scoring.loading import (
    MEMORY_SHORTAGE,
    check_loading,
    encode_texts,
    load_for_scoring,
    load_structure,
)
from tests.pruning.conftest import edit_config, load, token_ids
from tests.pruning.scoring.test_scores import BERT_LIKE, vision_language_model
from tests.pruning.test_pipeline import batches, run_of


def config(**settings):
    return LayerPruningConfig(num_layers=1, **settings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_number_format_that_is_named_is_used(checkpoint, dtype):
    model = load_for_scoring(checkpoint(), config(dtype=dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert not model.training


def test_on_a_cpu_auto_is_what_it_computes_fast_in(checkpoint, monkeypatch):
    monkeypatch.setattr(loading, "local_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(loading, "compute_dtype", lambda name, device: {"auto": torch.bfloat16}[name])
    assert load_for_scoring(checkpoint(), config()).dtype == torch.bfloat16


BERT = {**BERT_LIKE, "vocab_size": 61}
CHECKPOINTS = {
    "LlamaModel": lambda: transformers.LlamaModel(
        transformers.LlamaConfig(vocab_size=61, hidden_size=16, num_attention_heads=2, num_hidden_layers=2)
    ),
    "BertForMaskedLM": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**BERT)),
    "BertForSequenceClassification": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(**BERT)
    ),
    "BertForTokenClassification": lambda: transformers.BertForTokenClassification(transformers.BertConfig(**BERT)),
    "Gemma3ForConditionalGeneration": vision_language_model,
}
LOADED_AS = {"LlamaModel": "LlamaForCausalLM"}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_loaded_with_its_own_head_and_scored(name, tmp_path):
    CHECKPOINTS[name]().save_pretrained(tmp_path)
    model = load_for_scoring(tmp_path, config())
    assert type(model).__name__ == LOADED_AS.get(name, name)
    assert score_layers(model, [{"input_ids": token_ids(rows=1)}]).num_tokens == 12
    assert type(load_structure(tmp_path)).__name__ == LOADED_AS.get(name, name)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_that_comes_with_the_model_runs_only_on_request(own_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (own_checkpoint / "own.py").write_text(CODE)
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    edit_config(own_checkpoint, model_type="own_llama", auto_map=auto_map, architectures=["OwnForCausalLM"])
    with pytest.raises(CheckpointError, match=r"can't be loaded to score its layers .*set trust_remote_code: true, or"):
        load_for_scoring(own_checkpoint, config())
    model = load_for_scoring(own_checkpoint, config(dtype="float32"), trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM"


def test_the_structure_alone_has_no_weights(checkpoint):
    model = load_structure(checkpoint())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("metric", ["angular_distance", "perplexity"])
@pytest.mark.parametrize("part", ["cpu", "disk"])
def test_a_model_spread_over_devices_scores_the_same(checkpoint, tmp_path, metric, part):
    pytest.importorskip("accelerate")
    device_map = {"model.embed_tokens": part, "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    device_map |= {f"model.layers.{layer}": part if layer in (1, 4) else "cpu" for layer in range(6)}
    spread = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint(), dtype=torch.float32, device_map=device_map, offload_folder=str(tmp_path)
    )
    options = {"metric": metric, "num_layers": 2}
    expected = score_layers(load(checkpoint()), batches(), **options)
    found = score_layers(spread, batches(), **options)
    assert found.removal_order == expected.removal_order
    assert found.removal_costs == pytest.approx(expected.removal_costs, rel=1e-5)
    torch.testing.assert_close(torch.tensor(found.block_costs), torch.tensor(expected.block_costs), atol=1e-5, rtol=0)
    assert score_layers(spread, batches(), **options) == found  # accelerate's own forwards came back


def test_a_device_map_is_handed_on_and_the_result_is_the_same(checkpoint, tmp_path):
    pytest.importorskip("accelerate")
    plans = [
        run_of(checkpoint(), tmp_path / str(device_map), {"num_layers": 2, "device_map": device_map}).plan()
        for device_map in (None, {"": "cpu"}, "auto")
    ]
    assert plans[0] == plans[1] == plans[2]


def test_in_4_bits_the_scores_are_close_and_the_weights_small(tiny_llama_dir, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = load_for_scoring(tiny_llama_dir, config(load_in_4bit=True, dtype="float32"))
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    ids = token_ids(rows=4)
    found = score_layers(model, [{"input_ids": ids}])
    expected = score_layers(load(tiny_llama_dir), [{"input_ids": ids}])
    difference = torch.tensor(found.block_costs) - torch.tensor(expected.block_costs)
    assert 0 < difference.abs().max() < 0.1
    assert len(score_layers(model, [{"input_ids": ids}], "perplexity", num_layers=2).removal_order) == 2


def test_a_seed_that_is_quantized_already_is_scored_as_it_is(tiny_llama_dir, tmp_path):
    pytest.importorskip("bitsandbytes")
    load_for_scoring(tiny_llama_dir, config(load_in_4bit=True, dtype="float32")).save_pretrained(tmp_path)
    model = load_for_scoring(tmp_path, config())
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert score_layers(model, [{"input_ids": token_ids()}]).num_tokens == 24


def test_4_bits_of_what_is_quantized_already_are_refused():
    with pytest.raises(ConfigError, match=r"load_in_4bit is true, but base_model is quantized already \(gptq\); rem"):
        check_loading({"quantization_config": {"quant_method": "gptq"}}, config(load_in_4bit=True))


@pytest.mark.parametrize(
    ("settings", "missing"), [({"load_in_4bit": True}, "bitsandbytes"), ({"device_map": "auto"}, "accelerate")]
)
def test_a_missing_package_is_named_with_its_extra_before_any_text_is_read(
    checkpoint, tmp_path, monkeypatch, settings, missing
):
    own = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else own(name))
    message = rf"{next(iter(settings))} is set, but {missing} is not installed; .*pip install 'axolotl-sdft\[large\]'"
    with pytest.raises(MissingExtraError, match=message):
        run_of(checkpoint(), tmp_path, {"num_layers": 1} | settings, lambda: pytest.fail("text was read")).plan()
    assert run_of(checkpoint(), tmp_path, {"drop_layers": (1,)} | settings).plan().drop_layers == (1,)


def test_weights_of_another_shape_are_told_by_the_seed_s_folder(own_checkpoint):
    edit_config(own_checkpoint, intermediate_size=99)
    with pytest.raises(CheckpointError, match=r"base_model \(.*seed\) can't be loaded to score its layers"):
        load_for_scoring(own_checkpoint, config())


def test_settings_that_make_no_model_are_told_by_the_seed_s_folder(own_checkpoint):
    edit_config(own_checkpoint, hidden_size="wide")
    with pytest.raises(CheckpointError, match=r"base_model \(.*seed\) can't be loaded to score its layers \(.+\)"):
        load_structure(own_checkpoint)


@pytest.mark.parametrize(
    "shortage",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["accelerator", "cpu"],
)
def test_memory_that_runs_out_is_told_with_the_settings_that_save_some(monkeypatch, checkpoint, shortage):
    def fail(*_args, **_settings):
        raise shortage

    monkeypatch.setattr(loading, "load_checkpoint", fail)
    message = rf"^memory ran out while the layers were scored \({re.escape(str(shortage))}\); lower .*batch_size .*4bit"
    with pytest.raises(CheckpointError, match=message), error_context(MEMORY_SHORTAGE):
        load_for_scoring(checkpoint(), config())


TEXTS = ["one two three four five six", "one", "", "one two three"]


def test_texts_are_batched_by_length_and_padded_on_the_right(tiny_llama_dir):
    batches = encode_texts(TEXTS, tiny_llama_dir, CalibrationConfig(batch_size=2))
    assert [batch["attention_mask"].tolist() for batch in batches] == [[[1, 0, 0], [1, 1, 1]], [[1] * 6]]
    assert batches[0]["input_ids"][0, 0] == batches[0]["input_ids"][1, 0] == batches[1]["input_ids"][0, 0]


def test_texts_are_cut_to_the_sequence_length(tiny_llama_dir):
    (batch,) = encode_texts(["word " * 50], tiny_llama_dir, CalibrationConfig(sequence_len=8))
    assert batch["input_ids"].shape == (1, 8)


def test_texts_without_a_token_are_refused(tiny_llama_dir):
    with pytest.raises(DatasetError, match=r"layer_pruning\.calibration holds no text; check its path, split and type"):
        encode_texts([""], tiny_llama_dir, CalibrationConfig())


def with_tokenizer(source, target, **changes):
    """Save a checkpoint's tokenizer and configuration elsewhere, changed."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(target)
    AutoConfig.from_pretrained(source).save_pretrained(target)
    return target


def test_a_model_made_for_fewer_tokens_cuts_the_texts_there(tiny_llama_dir, tmp_path, caplog):
    caplog.set_level("INFO")
    seed_dir = with_tokenizer(tiny_llama_dir, tmp_path, model_max_length=5)
    (batch,) = encode_texts(["word " * 50], seed_dir, CalibrationConfig())
    assert batch["input_ids"].shape == (1, 5)
    assert "sequence_len is 1024, but the model was made for 5 tokens; rows are cut there" in caplog.text


def test_positions_that_run_out_cut_the_texts_too(tiny_llama_dir):
    (batch,) = encode_texts(["word " * 4000], tiny_llama_dir, CalibrationConfig(sequence_len=4096))
    assert batch["input_ids"].shape == (1, 2048)


def test_a_model_whose_positions_begin_after_that_of_the_padding_has_fewer(tiny_llama_dir, tmp_path):
    seed_dir = with_tokenizer(tiny_llama_dir, tmp_path, model_max_length=10**30)
    config = transformers.RobertaConfig(**BERT_LIKE | {"vocab_size": 4096}, pad_token_id=1, max_position_embeddings=34)
    model = transformers.RobertaForMaskedLM(config).eval()
    config.save_pretrained(seed_dir)
    batches = encode_texts(["word " * 50], seed_dir, CalibrationConfig())
    assert batches[0]["input_ids"].shape == (1, 32)
    assert score_layers(model, batches).num_tokens == 32


def test_a_text_that_begins_as_a_chat_template_writes_it_gets_no_second_beginning(tiny_llama_dir, tmp_path):
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    begin, id_ = tokenizer.bos_token, tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{begin} $A", special_tokens=[(begin, id_)])
    seed_dir = with_tokenizer(tiny_llama_dir, tmp_path)
    tokenizer.save_pretrained(seed_dir)

    (batch,) = encode_texts(["one two", f"{begin}one two"], seed_dir, CalibrationConfig())

    assert batch["input_ids"][0].tolist() == batch["input_ids"][1].tolist()
    assert (batch["input_ids"] == id_).sum(1).tolist() == [1, 1]


def test_a_tokenizer_without_a_padding_token_will_do(tiny_llama_dir, tmp_path):
    seed_dir = with_tokenizer(tiny_llama_dir, tmp_path, pad_token=None, eos_token=None)
    (batch,) = encode_texts(TEXTS, seed_dir, CalibrationConfig())
    assert batch["attention_mask"].tolist() == [[1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1] * 6]


def with_tokens_beyond_the_embeddings(source, target, **tokens):
    """Save a checkpoint's tokenizer and configuration elsewhere, with special tokens that the model lacks."""
    with_tokenizer(source, target)
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    tokenizer.add_special_tokens(tokens)
    tokenizer.save_pretrained(target)
    return target


def test_rows_are_filled_up_with_tokens_that_the_model_knows(tiny_llama_dir, tmp_path):
    seed_dir = with_tokens_beyond_the_embeddings(tiny_llama_dir, tmp_path, pad_token="<pad>")
    batches = encode_texts(TEXTS, seed_dir, CalibrationConfig())
    model = load(tiny_llama_dir)
    assert int(batches[0]["input_ids"].max()) < model.config.vocab_size
    assert score_layers(model, batches).num_tokens == 10


def test_a_token_that_the_model_has_no_embedding_for_is_refused_by_name(tiny_llama_dir, tmp_path):
    seed_dir = with_tokens_beyond_the_embeddings(tiny_llama_dir, tmp_path, additional_special_tokens=["<new>"])
    with pytest.raises(
        CheckpointError, match=r"writes '<new>' as token 4096, but the model has .* 0 to 4095 alone; giv"
    ):
        encode_texts([*TEXTS, "one <new> two"], seed_dir, CalibrationConfig())


def test_a_seed_whose_tokenizer_can_t_be_loaded_is_told_by_its_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"base_model \(.*\) can't be loaded to score its layers .*trust_remote"):
        encode_texts(TEXTS, tmp_path, CalibrationConfig())
