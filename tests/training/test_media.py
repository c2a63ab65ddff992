"""Batches with pictures: one pass over both learns what two passes would."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn
from transformers import (
    AriaConfig,
    AutoModelForImageTextToText,
    DeepseekVLHybridConfig,
    LlavaNextConfig,
    VideoLlama3Config,
)

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.training.batching import join_batches, join_media, label_mask
from axolotl_sdft.training.teachers.prediction import Predictions
from axolotl_sdft.training.trainers import DynSDPBTrainer
from tests.pruning.checkpoint.test_vision_language import (
    CONFIGS,
    HEADLESS,
    IMAGE,
    NUM_IMAGE_TOKENS,
    QWEN_TOKENS,
    TEXT,
)
from tests.training.micro_batches import STATIC, train, train_logs

Batch = dict[str, Tensor]


def llava_next() -> LlavaNextConfig:
    parts = CONFIGS["llava"]()
    tiles = {"image_grid_pinpoints": [[8, 8], [8, 16], [16, 8]]}
    return LlavaNextConfig(
        text_config=parts.text_config, vision_config=parts.vision_config, image_token_id=IMAGE, **tiles
    )


def video_llama() -> VideoLlama3Config:
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"patch_size": 4, "initializer_range": 0.3}
    tokens = {"image_token_id": IMAGE, "video_token_id": 62}
    return VideoLlama3Config(text_config=TEXT | {"model_type": "qwen2"}, vision_config=vision, **tokens)


def aria() -> AriaConfig:
    experts = {"model_type": "aria_text", "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}
    vision = HEADLESS | {"model_type": "idefics3_vision"}
    queries = {"projector_patch_to_query_dict": {"4": 4}}
    return AriaConfig(text_config=TEXT | experts, vision_config=vision, image_token_index=IMAGE, **queries)


def deepseek_vl_hybrid() -> DeepseekVLHybridConfig:
    details = {"model_type": "sam_vision_model", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    details |= {"image_size": 32, "patch_size": 8, "output_channels": 8, "mlp_dim": 24}
    return DeepseekVLHybridConfig(
        text_config=TEXT | {"model_type": "llama"},
        vision_config=HEADLESS | {"model_type": "siglip_vision_model"},
        high_res_vision_config=details | {"window_size": 2, "global_attn_indexes": [0]},
        image_token_id=IMAGE,
    )


OWN_CONFIGS = {
    "llava_next": llava_next,
    "video_llama_3": video_llama,
    "aria": aria,
    "deepseek_vl_hybrid": deepseek_vl_hybrid,
}


def make_model(name: str) -> nn.Module:
    """A tiny model that sees, with large random weights, in training, without dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        config = (CONFIGS | OWN_CONFIGS)[name]()
        model = AutoModelForImageTextToText.from_config(config)
        for parameter in model.parameters():
            if not parameter.isfinite().all() or parameter.unique().numel() == 1:  # left empty, or a gate that is shut
                nn.init.normal_(parameter, mean=0.5, std=0.3)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def batch(name: str, length: int, num_image_tokens: int, *shape: int, seed: int = 1, **more: Any) -> Batch:
    """One row with its pictures' tokens near the beginning; ``shape`` is that of the pixels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (1, length), generator=generator)
    ids[0, 3 : 3 + num_image_tokens] = IMAGE
    marks = (ids == IMAGE).long()
    if name.startswith("qwen"):
        ids[0, 2] = QWEN_TOKENS["vision_start_token_id"]
        more |= {"mm_token_type_ids": marks}
    if name in ("gemma3", "paligemma"):
        more |= {"token_type_ids": marks if name == "gemma3" else marks * 0}
    pixels = torch.randn(shape, generator=generator)
    labels = ids.masked_fill(marks.bool(), -100)
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, **more}


def text(*lengths: int) -> Batch:
    """Rows without pictures."""
    ids = torch.randint(3, 60, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(5))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids, "labels": ids.masked_fill(mask == 0, -100), "attention_mask": mask}


def qwen(length: int, *grid: int, seed: int = 1, name: str = "qwen2_vl") -> Batch:
    """One picture of so many patches; four make a token."""
    num_patches = grid[0] * grid[1]
    sizes = {"image_grid_thw": torch.tensor([[1, *grid]])}
    return batch(name, length, num_patches // 4, num_patches, 3 * 2 * 4 * 4, seed=seed, **sizes)


def plain(name: str, length: int, seed: int) -> Batch:
    return batch(name, length, NUM_IMAGE_TOKENS.get(name, 1), 1, 3, 8, 8, seed=seed)


def sized(length: int, num_tokens: int, height: int, width: int) -> Batch:
    sizes = {"image_sizes": torch.tensor([[height, width]])}
    return batch("mistral3", length, num_tokens, 1, 3, height, width, seed=width, **sizes)


def tiled(length: int, num_tokens: int, num_tiles: int, width: int) -> Batch:
    sizes = {"image_sizes": torch.tensor([[8, width]])}
    return batch("llava_next", length, num_tokens, 1, num_tiles, 3, 8, 8, seed=width, **sizes)


def masked(name: str, length: int, num_pictures: int, height: int = 8) -> Batch:
    """Pictures by row, with masks of what is real."""
    mask = torch.ones(1, num_pictures, height, 8, dtype=torch.bool)
    num_tokens = num_pictures * NUM_IMAGE_TOKENS.get(name, 1)
    shape = (1, num_pictures, 3, height, 8)
    return batch(name, length, num_tokens, *shape, seed=num_pictures, pixel_attention_mask=mask)


def mllama(length: int, num_pictures: int) -> Batch:
    ones = torch.ones(1, num_pictures, 1, dtype=torch.long)
    more = {"aspect_ratio_ids": ones[:, :, 0], "aspect_ratio_mask": ones}
    more |= {"cross_attention_mask": torch.ones(1, length, num_pictures, 1, dtype=torch.long)}
    return batch("mllama", length, 1, 1, num_pictures, 1, 3, 8, 8, seed=num_pictures, **more)


def merged(length: int, *grid: int, seed: int = 1) -> Batch:
    """A picture of so many patches, of which four become a token by a size of its own."""
    num_patches = grid[0] * grid[1]
    sizes = {"image_grid_thw": torch.tensor([[1, *grid]]), "image_merge_sizes": torch.tensor([2])}
    return batch("video_llama_3", length, num_patches // 4, num_patches, 3 * 4 * 4, seed=seed, **sizes)


def with_mask(length: int, seed: int) -> Batch:
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    return batch("aria", length, 4, 1, 3, 8, 8, seed=seed, pixel_mask=mask)


def seen_twice(length: int, seed: int) -> Batch:
    details = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return batch("deepseek_vl_hybrid", length, 4, 1, 3, 8, 8, seed=seed, high_res_pixel_values=details)


PAIRS: dict[str, tuple[str, Callable[[], tuple[Batch, Batch]]]] = {
    "grids that differ": ("qwen2_vl", lambda: (qwen(14, 2, 2), qwen(11, 4, 2, seed=2))),
    "a grid after text": ("qwen2_vl", lambda: (text(12, 9), qwen(11, 4, 2))),
    "text after a grid": ("qwen2_vl", lambda: (qwen(11, 4, 2), text(12, 9))),
    "grids in windows": ("qwen2_5_vl", lambda: (qwen(14, 2, 2), qwen(11, 4, 2, seed=2))),
    "grids seen in several layers": ("qwen3_vl", lambda: (qwen(14, 2, 2), qwen(11, 4, 2, seed=2))),
    "pictures of one size": ("llava", lambda: (plain("llava", 14, 1), plain("llava", 9, 2))),
    "a picture after text": ("llava", lambda: (text(12, 9), plain("llava", 9, 2))),
    "text before tokens of several kinds": ("gemma3", lambda: (text(12, 9), plain("gemma3", 9, 2))),
    "sizes that differ": ("mistral3", lambda: (sized(14, 4, 8, 8), sized(10, 2, 8, 4))),
    "numbers of tiles that differ": ("llava_next", lambda: (tiled(30, 10, 2, 8), tiled(40, 14, 3, 16))),
    "numbers by row": ("smolvlm", lambda: (masked("smolvlm", 12, 1), masked("smolvlm", 14, 2))),
    "pictures by row after text": ("idefics3", lambda: (text(12, 9), masked("idefics3", 14, 2))),
    "text after pictures by row": ("smolvlm", lambda: (masked("smolvlm", 14, 2), text(12, 9))),
    "sizes of merging": ("video_llama_3", lambda: (merged(14, 2, 2), merged(11, 4, 2, seed=2))),
    "a size of merging after text": ("video_llama_3", lambda: (text(12, 9), merged(11, 4, 2))),
    "masks of pixels": ("aria", lambda: (with_mask(14, 1), with_mask(11, 2))),
    "a mask of pixels after text": ("aria", lambda: (text(12, 9), with_mask(11, 2))),
    "pictures in two resolutions": ("deepseek_vl_hybrid", lambda: (seen_twice(14, 1), seen_twice(11, 2))),
    "pictures attended to": ("mllama", lambda: (mllama(12, 1), mllama(9, 2))),
}


def loss_of(model: nn.Module, inputs: Batch) -> Tensor:
    """The sum over the trained tokens."""
    logits = model(**{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False).logits
    places = label_mask(inputs)
    return nn.functional.cross_entropy(logits[places], inputs["labels"].roll(-1, 1)[places], reduction="sum")


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(("name", "make"), PAIRS.values(), ids=PAIRS)
def test_one_joined_pass_has_the_loss_and_the_gradients_of_two(name: str, make: Any):
    model, (previous, new) = make_model(name), make()
    if name == "gemma3" and Version(version("transformers")) < Version("5.10"):
        pytest.skip("this transformers trains no text without kinds of tokens")
    apart = loss_of(model, previous) + loss_of(model, new)
    expected = gradients(model, apart)
    joined = loss_of(model, join_batches(previous, new, 0))
    assert joined.item() == pytest.approx(apart.item(), rel=1e-5)
    found = gradients(model, joined)
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert (found[key] - value).norm() <= 1e-3 * value.norm() + 1e-4, key


def test_a_model_that_sees_is_trained_through_batches_with_and_without_pictures(tmp_path: Path):
    epoch = [qwen(14, 2, 2), text(12, 9), qwen(11, 4, 2, seed=2), qwen(9, 2, 2, seed=3)]
    settings = {"learning_rate": 0.01, "remove_unused_columns": False}
    trainer = train(DynSDPBTrainer, make_model("qwen2_vl"), [epoch], tmp_path, dynsdpb=STATIC, **settings)
    assert trainer.state.global_step == 4
    assert all(entry["dynsdpb/kl"] > 0 for entry in train_logs(trainer)[1:])


SEEN: dict[str, Callable[[], Batch]] = {
    "qwen2_vl": lambda: qwen(14, 2, 2),
    "qwen3_vl": lambda: qwen(14, 2, 2),
    "gemma3": lambda: plain("gemma3", 14, 1),  # can't train without the kinds of its tokens
    "mistral3": lambda: sized(14, 4, 8, 8),
    "smolvlm": lambda: masked("smolvlm", 12, 1),
    "mllama": lambda: mllama(12, 1),
}


@pytest.mark.parametrize(("name", "make"), SEEN.items(), ids=SEEN)
def test_logits_are_made_of_what_the_body_of_a_model_that_sees_gives(name: str, make: Any):
    model, inputs = make_model(name), make()
    predictions, places = Predictions(model, DynSDPBConfig()), label_mask(inputs)
    with predictions.watched() as seen:
        logits = model(**{key: value for key, value in inputs.items() if key != "labels"}).logits
    result = predictions.read(seen, None, places, inputs)  # as if the loss had been computed without them
    made = torch.cat(list(result.raw_parts(places.flatten().nonzero().squeeze(1), 64)))
    torch.testing.assert_close(result.logit_transform(made), logits.detach()[places], rtol=1e-5, atol=1e-5)


def test_pictures_come_in_the_order_of_the_rows():
    previous, new = qwen(14, 2, 2), qwen(11, 4, 2, seed=2)
    joined = join_batches(previous, new, 0)
    assert torch.equal(joined["pixel_values"], torch.cat([previous["pixel_values"], new["pixel_values"]]))
    assert joined["image_grid_thw"].tolist() == [[1, 2, 2], [1, 4, 2]]
    assert joined["mm_token_type_ids"].shape == (2, 14)


def test_positions_of_rows_and_columns_are_joined_row_by_row():
    previous, new = qwen(5, 2, 2), qwen(4, 2, 2)
    previous["position_ids"], new["position_ids"] = torch.full((3, 1, 5), 7), torch.full((3, 1, 4), 8)
    joined = join_batches(previous, new, 0)["position_ids"]
    assert joined[2].tolist() == [[7, 7, 7, 7, 7], [8, 8, 8, 8, 0]]


def test_entries_in_lists_are_put_end_to_end():
    sizes = torch.Size([1, 4]), torch.Size([1, 4])
    assert join_media({"second_per_grid_ts": [1.0]}, {"second_per_grid_ts": [0.5, 2.0]}, sizes) == {
        "second_per_grid_ts": [1.0, 0.5, 2.0]
    }
    assert join_media({}, {}, sizes) == {}


def test_what_is_smaller_is_filled_up_with_nothing():
    joined = join_batches(masked("smolvlm", 12, 1, height=4), masked("smolvlm", 14, 2), 0)
    assert joined["pixel_values"].shape == (2, 2, 3, 8, 8)
    assert joined["pixel_attention_mask"].sum(dim=(2, 3)).tolist() == [[32, 0], [64, 64]]
    assert joined["pixel_values"][0, 1].abs().sum() == joined["pixel_values"][0, 0, :, 4:].abs().sum() == 0


def videos(num_frames: int) -> Batch:
    return {**text(5), "pixel_values_videos": torch.zeros(1, num_frames, 3, 8, 8)}


@pytest.mark.parametrize(
    ("previous", "new", "name"),
    [
        (plain("llava", 9, 1), batch("llava", 9, 1, 1, 3, 8, 12), r"pixel_values.*\(1, 3, 8, 8\).*\(1, 3, 8, 12\)"),
        (videos(2), videos(3), r"pixel_values_videos.*\(1, 2, 3, 8, 8\)"),
        (mllama(9, 1), text(9), r"pixel_values.*\(1, 1, 1, 3, 8, 8\)"),
        (plain("llava", 9, 1), {**text(9), "pixel_values": ["a path"]}, "pixel_values.* and a list"),
        (plain("llava", 9, 1), {**text(9), "pixel_values": torch.zeros(1, 4)}, r"pixel_values.*\(1, 4\)"),
        (masked("smolvlm", 9, 1), {**masked("smolvlm", 9, 1), "pixel_attention_mask": torch.ones(2, 1, 8, 8)}, "mask"),
    ],
)
def test_pictures_that_a_model_could_not_tell_apart_are_refused(previous: Batch, new: Batch, name: str):
    with pytest.raises(ConfigError, match=rf"dynsdpb: input '.*{name}.*can't be joined.*give all pictures one size"):
        join_batches(previous, new, 0)
