import pytest

from axolotl_sdft.config import CalibrationConfig
from axolotl_sdft.core.errors import CheckpointError, DatasetError
from axolotl_sdft.pruning.scoring.calibration import encode_texts

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


def test_a_seed_whose_tokenizer_can_t_be_loaded_is_told_by_its_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"base_model \(.*\) can't be loaded to score its layers .*trust_remote"):
        encode_texts(TEXTS, tmp_path, CalibrationConfig())
