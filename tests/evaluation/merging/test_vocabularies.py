"""Two models whose shapes agree may mean other tokens by the same rows."""

import json
import logging
import shutil

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.evaluation.merging import same_model
from axolotl_sdft.evaluation.merging.merge import merge_models
from axolotl_sdft.evaluation.merging.same_model import check_same_tokens
from tests.evaluation.merging.references import save_adapter, two_models
from tests.pruning.conftest import save_tiny_model

WORDS = ("<unk>", "<s>", "</s>", "red", "green", "blue")  # ids 0 to 5


def save_tokenizer(folder, words=WORDS, added=(), template=None):
    """Save a tokenizer that knows these words by their places, with added tokens behind them; return its folder."""
    inner = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.add_tokens(list(added), special_tokens=True)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def pair(tmp_path):
    """A tiny Llama and a variant, without tokenizers."""
    return two_models(tmp_path)


def refused(pair, tmp_path, message):
    with pytest.raises(ConfigError, match=message):
        merge_models(*pair, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_two_tokens_that_changed_places_are_refused_with_one_of_them_and_both_ids(pair, tmp_path):
    save_tokenizer(pair[0], added=["<tool>", "<think>"])
    save_tokenizer(pair[1], added=["<think>", "<tool>"])
    refused(pair, tmp_path, r"token '<tool>' has id 6 in .*first, but 7 in .*second \(and 1 more\), so the same row")


def test_other_tokens_at_the_same_ids_are_refused_with_the_id_and_both_tokens(pair, tmp_path):
    save_tokenizer(pair[0], added=["<a>", "<b>"])
    save_tokenizer(pair[1], added=["<c>", "<d>"])
    refused(pair, tmp_path, r"id 6 is token '<a>' in .*first, but '<c>' in .*second \(and 1 more\), so the same row")


def test_a_vocabulary_in_another_order_is_refused(pair, tmp_path):
    save_tokenizer(pair[0])
    save_tokenizer(pair[1], words=("<unk>", "<s>", "</s>", "red", "blue", "green"))
    refused(pair, tmp_path, r"token 'green' has id 4 in .*first, but 5 in .*second")


def test_a_reserved_token_that_was_renamed_is_refused_with_the_way_out(pair, tmp_path):
    save_tokenizer(pair[0], added=["<reserved_0>", "<reserved_1>"])
    save_tokenizer(pair[1], added=["<call>", "<reserved_1>"])
    refused(pair, tmp_path, r"id 6 is token '<reserved_0>' in .*first, but '<call>' in .*second, so .*only renamed")


def test_a_token_that_only_the_second_model_knows_would_lose_its_name(pair, tmp_path):
    save_tokenizer(pair[0])
    save_tokenizer(pair[1], added=["<call>"])
    refused(
        pair, tmp_path, r"token '<call>' has id 6 in .*second, but the tokenizer of .*first, .* has no token there;"
    )


def test_a_token_that_only_the_first_model_knows_is_kept_and_told(pair, tmp_path, caplog):
    save_tokenizer(pair[0], added=["<call>"])
    save_tokenizer(pair[1])
    with caplog.at_level(logging.INFO, "axolotl_sdft"):
        merged = merge_models(*pair, tmp_path / "merged")
    assert PreTrainedTokenizerFast.from_pretrained(merged).get_vocab()["<call>"] == 6
    assert "1 tokens, such as '<call>', are known to" in caplog.text


def test_another_chat_template_is_no_reason_to_refuse(pair, tmp_path, caplog):
    save_tokenizer(pair[0], added=["<call>"], template="{{ messages[0].content }}")
    save_tokenizer(pair[1], added=["<call>"], template="{{ messages }}")
    merged = merge_models(*pair, tmp_path / "merged")
    assert PreTrainedTokenizerFast.from_pretrained(merged).chat_template == "{{ messages[0].content }}"
    assert "not compared" not in caplog.text


def test_equal_tokenizers_are_not_loaded(pair, tmp_path, monkeypatch):
    for folder in pair:
        save_tokenizer(folder)
    monkeypatch.setattr(same_model, "_vocabulary", lambda folder: pytest.fail("loaded"))
    assert merge_models(*pair, tmp_path / "merged").is_dir()


@pytest.mark.parametrize("number", [0, 1])
def test_a_model_without_a_tokenizer_is_merged_with_a_word(pair, tmp_path, caplog, number):
    save_tokenizer(pair[number])
    assert merge_models(*pair, tmp_path / "merged").is_dir()
    assert f"{pair[1 - number]} holds no tokenizer, so its tokens are not compared" in caplog.text


def test_two_models_without_tokenizers_are_merged_with_a_word(pair, tmp_path, caplog):
    assert merge_models(*pair, tmp_path / "merged").is_dir()
    assert "holds a tokenizer, so their tokens are not compared" in caplog.text


def test_a_tokenizer_that_can_not_be_read_is_merged_with_a_word(pair, tmp_path, caplog):
    save_tokenizer(pair[0])
    (pair[1] / "tokenizer.json").write_text("{")
    assert merge_models(*pair, tmp_path / "merged").is_dir()
    assert f"the tokenizer of {pair[1]} can't be read (" in caplog.text


def test_code_of_a_tokenizer_is_not_run(pair, tmp_path, caplog):
    save_tokenizer(pair[0])
    save_tokenizer(pair[1])
    path = pair[1] / "tokenizer_config.json"
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    (pair[1] / "tokenization_own.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    check_same_tokens(*pair)
    assert not (tmp_path / "was_run").exists()
    assert "can't be read" in caplog.text


# Adapters


@pytest.fixture
def adapters(tmp_path):
    """Two adapters of one base, which has a tokenizer."""
    base = save_tokenizer(save_tiny_model(tmp_path / "base"), added=["<a>", "<b>"])
    return [save_adapter(base, tmp_path / str(seed), seed) for seed in (1, 2)]


def test_adapters_that_were_trained_with_other_tokens_are_refused(adapters, tmp_path):
    save_tokenizer(adapters[0], added=["<a>", "<b>"])
    save_tokenizer(adapters[1], added=["<b>", "<a>"])
    refused(adapters, tmp_path, r"token '<a>' has id 6 in .*1, but 7 in .*2")


def test_an_adapter_without_a_tokenizer_was_trained_with_that_of_its_base(adapters, tmp_path, caplog):
    assert merge_models(*adapters, tmp_path / "both_the_bases").is_dir()
    save_tokenizer(adapters[1], added=["<b>", "<a>"])
    refused(adapters, tmp_path, r"token '<a>' has id 6 in .*base, but 7 in .*2")
    assert "not compared" not in caplog.text


def test_an_adapter_and_its_base_keep_the_tokenizer_of_the_adapter(adapters, tmp_path):
    save_tokenizer(adapters[0], added=["<renamed>", "<b>"])
    base = tmp_path / "base"
    merged = merge_models(base, adapters[0], tmp_path / "merged")
    assert PreTrainedTokenizerFast.from_pretrained(merged).get_vocab()["<renamed>"] == 6
    shutil.rmtree(merged)
