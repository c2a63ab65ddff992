"""Pictures that DynSDPB can't join are told by the seed model's processor, before anything is pruned or rewritten."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.integrations.axolotl.pictures import check_pictures
from tests.pruning.checkpoint.test_vision_language import CONFIGS

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
)
PROCESSING = {"do_resize": False, "do_center_crop": False}
ONE_SIZE = {"size": {"height": 28, "width": 28}, "crop_size": {"height": 28, "width": 28}}


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = ["<unk>", "<pad>", "<s>", "</s>", "<image>", "What", "is", "this", "A", "cat", "user", "assistant"]
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, additional_special_tokens=["<image>"], **special
    )


def llava(folder: Path, **processing: Any) -> None:
    transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(**processing),
        tokenizer=tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    CONFIGS["qwen2_vl"]().save_pretrained(folder)  # its vision tower takes pictures of any size


def llava_with_a_tower_of_one_size(folder: Path) -> None:
    llava(folder, **PROCESSING)
    CONFIGS["llava"]().save_pretrained(folder)


def mllama(folder: Path) -> None:
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>", "<|image|>"]})
    template = TEMPLATE.replace("<image>", "<|image|>")
    sizes = {"size": {"height": 28, "width": 28}, "max_image_tiles": 2}
    transformers.MllamaProcessor(
        transformers.MllamaImageProcessorPil(**sizes), words, chat_template=template
    ).save_pretrained(folder)
    CONFIGS["mllama"]().save_pretrained(folder)


def config(folder: Path, make: Callable[..., None], *, processing: Any = None, **more: Any) -> dict[str, Any]:
    make(folder, **(processing or {}))
    return {"base_model": str(folder), "processor_type": "AutoProcessor", "dynsdpb": {}} | more


def test_sizes_that_the_processor_leaves_as_they_are_are_refused_with_image_size_as_the_way_out(tmp_path):
    cfg = config(tmp_path, llava, processing=PROCESSING)
    message = (
        r"processor_type is 'AutoProcessor' \(LlavaProcessor of .*\), which leaves pictures of different sizes as they "
        r"are: input 'pixel_values' .*\(1, 3, 84, 112\) and .*\(1, 3, 140, 84\).*set image_size"
    )
    with pytest.raises(ConfigError, match=message):
        check_pictures(cfg)


@pytest.mark.parametrize("image_size", [56, [56, 28]])
def test_one_size_for_all_pictures_is_the_way_out(tmp_path, image_size, caplog):
    check_pictures(config(tmp_path, llava, processing=PROCESSING, image_size=image_size))
    assert not caplog.records


def test_the_size_of_the_vision_tower_is_that_of_all_pictures(tmp_path, caplog):
    check_pictures(config(tmp_path, llava_with_a_tower_of_one_size))
    assert not caplog.records


def test_a_processor_that_gives_all_pictures_one_size_is_let_through(tmp_path, caplog):
    check_pictures(config(tmp_path, llava, processing=ONE_SIZE))
    assert not caplog.records


def test_rows_of_text_that_the_model_can_not_have_beside_pictures_are_warned_of(tmp_path, caplog):
    check_pictures(config(tmp_path, mllama))
    assert "MllamaProcessor), whose rows with pictures can't be joined with rows that have none" in caplog.text


def test_what_can_not_be_joined_in_any_size_is_refused_without_a_vain_way_out(tmp_path, monkeypatch):
    cfg = config(tmp_path, llava, processing=ONE_SIZE)
    plain = transformers.LlavaProcessor.apply_chat_template

    def with_entries(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**plain(self, *args, **kwargs), "grids": [[1, 1]]}

    monkeypatch.setattr(transformers.LlavaProcessor, "apply_chat_template", with_entries)
    with pytest.raises(ConfigError, match=r"whose pictures can't be joined: input 'grids'.*train without the dynsdpb"):
        check_pictures(cfg)


def test_text_alone_needs_no_processor():
    check_pictures({"base_model": "no such folder"})


@pytest.mark.parametrize("kind", ["AutoProcessor", "NoSuchProcessor"])
def test_a_processor_that_can_not_be_tried_is_named_and_left_to_axolotl(tmp_path, caplog, kind):
    check_pictures({"base_model": str(tmp_path), "processor_type": kind, "dynsdpb": {}})
    assert f"could not be tried with processor_type {kind} (" in caplog.text
