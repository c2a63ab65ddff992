"""Models that see: the text decoder is cut, everything else stays as it is."""

import json
from collections.abc import Callable
from functools import cache

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from axolotl_sdft import cut_layers
from axolotl_sdft.core.errors import CheckpointError
from tests.pruning.skipped_layers import hand_on

IMAGE = 63  # the token that an image's features replace
NUM_LAYERS = 6  # of the vision tower too, which must not be mistaken for the decoder
TEXT = {
    **{"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": NUM_LAYERS},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
VISION = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": NUM_LAYERS, "num_attention_heads": 2},
    **{"image_size": 8, "patch_size": 4, "initializer_range": 0.3},
}
HEADLESS = VISION | {"vision_use_head": False}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
QWEN_TEXT = TEXT | {"rope_parameters": ROPE}
QWEN_VISION = {
    **{"depth": NUM_LAYERS, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2},
    "initializer_range": 0.3,
}
QWEN_TOKENS = {"image_token_id": IMAGE, "video_token_id": 62, "vision_start_token_id": 61, "vision_end_token_id": 60}

CONFIGS: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "llava": lambda: tf.LlavaConfig(
        text_config=tf.LlamaConfig(**TEXT),
        vision_config=tf.CLIPVisionConfig(**VISION, projection_dim=16),
        image_token_id=IMAGE,
    ),
    "qwen2_vl": lambda: tf.Qwen2VLConfig(
        text_config=QWEN_TEXT, vision_config=QWEN_VISION | {"embed_dim": 16, "mlp_ratio": 2}, **QWEN_TOKENS
    ),
    "qwen2_5_vl": lambda: tf.Qwen2_5_VLConfig(
        text_config=QWEN_TEXT,
        vision_config=QWEN_VISION
        | {"out_hidden_size": 16, "intermediate_size": 24, "window_size": 8, "fullatt_block_indexes": [2, 5]},
        **QWEN_TOKENS,
    ),
    "qwen3_vl": lambda: tf.Qwen3VLConfig(
        text_config=QWEN_TEXT | {"head_dim": 8},
        vision_config=QWEN_VISION
        | {"out_hidden_size": 16, "intermediate_size": 24, "num_position_embeddings": 16}
        | {"deepstack_visual_indexes": [2]},
        **QWEN_TOKENS,
    ),
    "gemma3": lambda: tf.Gemma3Config(
        text_config=TEXT | {"head_dim": 8, "sliding_window": 3, "sliding_window_pattern": 3},
        vision_config=HEADLESS,
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
    ),
    "paligemma": lambda: tf.PaliGemmaConfig(
        text_config=tf.GemmaConfig(**TEXT, head_dim=8),
        vision_config=tf.SiglipVisionConfig(**HEADLESS, projection_dim=16),
        image_token_id=IMAGE,
        projection_dim=16,
    ),
    "idefics3": lambda: tf.Idefics3Config(
        text_config=tf.LlamaConfig(**TEXT), vision_config=VISION, image_token_id=IMAGE, pad_token_id=0, scale_factor=2
    ),
    "smolvlm": lambda: tf.SmolVLMConfig(
        text_config=tf.LlamaConfig(**TEXT), vision_config=VISION, image_token_id=IMAGE, pad_token_id=0, scale_factor=1
    ),
    "mistral3": lambda: tf.Mistral3Config(
        text_config=tf.MistralConfig(**TEXT, head_dim=8),
        vision_config=tf.PixtralVisionConfig(**VISION, head_dim=8),
        image_token_id=IMAGE,
        spatial_merge_size=1,
    ),
    "internvl": lambda: tf.InternVLConfig(
        text_config=tf.Qwen2Config(**TEXT),
        vision_config=VISION | {"image_size": [8, 8], "patch_size": [4, 4]},
        image_token_id=IMAGE,
    ),
    "llama4": lambda: tf.Llama4Config(
        text_config=TEXT
        | {"intermediate_size_mlp": 24, "num_local_experts": 2, "head_dim": 8, "attention_chunk_size": 4}
        | {"moe_layers": [1, 3, 5], "no_rope_layers": [1, 1, 1, 0, 1, 1]},
        vision_config=VISION
        | {"intermediate_size": 64, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
        image_token_index=IMAGE,
    ),
    "granite4_vision": lambda: tf.Granite4VisionConfig(
        text_config=tf.GraniteConfig(**TEXT),
        vision_config=tf.SiglipVisionConfig(**HEADLESS | {"hidden_size": 64}),
        image_token_index=IMAGE,
        downsample_rate="1/2",
        deepstack_layer_map=[[1, 2], [3, 5]],
        spatial_target_layers=[0],
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[8, 8]],
        qformer_config={"model_type": "blip_2_qformer", "hidden_size": 64, "num_hidden_layers": 1}
        | {"num_attention_heads": 1, "intermediate_size": 24, "encoder_hidden_size": 64},
    ),
    "mllama": lambda: tf.MllamaConfig(
        text_config=TEXT | {"cross_attention_layers": [2, 5]},
        vision_config={"hidden_size": 16, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2}
        | {"intermediate_size": 24, "vision_output_dim": 32, "image_size": 8, "patch_size": 4, "max_num_tiles": 1}
        | {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]]},
        image_token_index=IMAGE,
    ),
}
NUM_IMAGE_TOKENS = {"llava": 4, "smolvlm": 4, "gemma3": 4, "paligemma": 4, "mistral3": 4, "granite4_vision": 3}


def text_input() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(3, 60, (1, 14), generator=torch.Generator().manual_seed(1))}


def image_input(name: str) -> dict[str, torch.Tensor]:
    """A text with one image of 8 x 8 pixels, as the model's processor would give it."""
    ids = text_input()["input_ids"]
    ids[0, 3 : 3 + NUM_IMAGE_TOKENS.get(name, 1)] = IMAGE
    pixels = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    marks = (ids == IMAGE).long()
    if name.startswith("qwen"):
        ids[0, 2] = QWEN_TOKENS["vision_start_token_id"]
        patches = torch.randn(4, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(2))
        grid = torch.tensor([[1, 2, 2]])
        return {"input_ids": ids, "pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": marks}
    more: dict[str, dict[str, torch.Tensor]] = {
        "gemma3": {"token_type_ids": marks},
        "paligemma": {"token_type_ids": marks * 0},
        "idefics3": {"pixel_values": pixels[None]},
        "smolvlm": {"pixel_values": pixels[None]},
        "mistral3": {"image_sizes": torch.tensor([[8, 8]])},
        "granite4_vision": {"pixel_values": torch.stack([pixels, -pixels], 1), "image_sizes": torch.tensor([[8, 8]])},
        "mllama": {
            "pixel_values": pixels[None, None],
            "aspect_ratio_ids": torch.tensor([[1]]),
            "aspect_ratio_mask": torch.tensor([[[1]]]),
            "cross_attention_mask": torch.ones(1, 14, 1, 1, dtype=torch.long),
        },
    }
    return {"input_ids": ids, "pixel_values": pixels} | more.get(name, {})


@pytest.fixture(scope="session")
def vision_checkpoint(tmp_path_factory):
    """Give the folder of a tiny model that sees, saved once, with large random weights; read only."""

    def save(name):
        if (tf.__version__, name) == ("5.0.0", "llama4") or name not in tf.CONFIG_MAPPING:
            pytest.skip("this transformers can't make the model")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model = AutoModelForImageTextToText.from_config(CONFIGS[name]())
            for parameter in model.parameters():
                if (
                    not parameter.isfinite().all() or parameter.unique().numel() == 1
                ):  # left empty, or a gate that is shut
                    torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        return folder

    return cache(save)


def load(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def decoder_layers(model):
    inner = getattr(model, "model", model)
    decoder = inner.language_model if hasattr(inner, "language_model") else inner.text_model
    return getattr(decoder, "model", decoder).layers


@torch.no_grad()
def logits(model, name):
    """Without and with an image."""
    return [model(**inputs, use_cache=False).logits for inputs in (text_input(), image_input(name))]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cut_decoder_equals_the_decoder_with_those_layers_skipped(vision_checkpoint, tmp_path, name):
    if (tf.__version__, name) == ("5.24.0", "llama4"):
        pytest.skip("this transformers can't run the model on a text without a picture")
    dropped = (2, 4)
    pruned = load(cut_layers(vision_checkpoint(name), dropped, tmp_path / "pruned"))
    seed = load(vision_checkpoint(name))
    whole = logits(seed, name)
    for layer in dropped:
        decoder_layers(seed)[layer].register_forward_hook(hand_on, with_kwargs=True)
    expected, actual = logits(seed, name), logits(pruned, name)
    assert len(decoder_layers(pruned)) == NUM_LAYERS - len(dropped)
    for before, skipped, cut in zip(whole, expected, actual, strict=True):
        assert torch.equal(cut, skipped)
        assert not torch.allclose(before, skipped)
    assert not torch.allclose(*actual)  # the image plays a part


@pytest.mark.parametrize("name", CONFIGS)
def test_all_but_the_decoder_layers_keeps_its_names_and_bits(vision_checkpoint, tmp_path, name):
    before = load_file(vision_checkpoint(name) / "model.safetensors")
    pruned = cut_layers(vision_checkpoint(name), (3,), tmp_path / "pruned")
    after = load_file(pruned / "model.safetensors")
    decoder = next(tensor for tensor in before if ".layers.5." in tensor and "vision" not in tensor).partition("5.")[0]
    others = {tensor for tensor in before if not tensor.startswith(decoder)}
    assert any("vis" in tensor for tensor in others)
    assert others == {tensor for tensor in after if not tensor.startswith(decoder)}
    assert all(torch.equal(after[tensor].view(torch.uint8), before[tensor].view(torch.uint8)) for tensor in others)


def test_the_processor_comes_along(vision_checkpoint, tmp_path):
    seed = tmp_path / "seed"
    load(vision_checkpoint("llava")).save_pretrained(seed)
    files = [
        "preprocessor_config.json",
        "processor_config.json",
        "video_preprocessor_config.json",
        "chat_template.jinja",
    ]
    for file in files:
        (seed / file).write_text(file)
    pruned = cut_layers(seed, (1,), tmp_path / "pruned")
    assert [(pruned / file).read_text() for file in files] == files


def test_only_the_count_of_the_text_decoder_changes(vision_checkpoint, tmp_path):
    before = json.loads((vision_checkpoint("qwen2_5_vl") / "config.json").read_text())
    after = json.loads((cut_layers(vision_checkpoint("qwen2_5_vl"), (1,), tmp_path / "p") / "config.json").read_text())
    assert after["text_config"]["num_hidden_layers"] == NUM_LAYERS - 1
    assert after["vision_config"] == before["vision_config"]


def test_layers_that_take_in_features_of_the_vision_tower_stay(vision_checkpoint, tmp_path):
    message = (
        r"added after each of layers 0 to 0 \(deepstack_visual_indexes\); keep these, for instance by protect_first"
    )
    with pytest.raises(CheckpointError, match=message):
        cut_layers(vision_checkpoint("qwen3_vl"), (0, 3), tmp_path / "pruned")
    assert list(tmp_path.iterdir()) == []


def test_features_that_come_in_before_a_dropped_layer_come_in_before_the_next(vision_checkpoint, tmp_path):
    pruned = cut_layers(vision_checkpoint("granite4_vision"), (1, 2, 4), tmp_path / "pruned")
    config = json.loads((pruned / "config.json").read_text())
    # Layers 0, 3 and 5 stay: what came in before 2 comes in before 3, now 1.
    assert (config["deepstack_layer_map"], config["spatial_target_layers"]) == ([[1, 1], [3, 2]], [0])


@pytest.mark.parametrize("dropped", [(2, 3, 4), (5,)], ids=["at one layer", "after the last"])
def test_features_that_would_come_in_at_one_layer_or_none_are_refused(vision_checkpoint, tmp_path, dropped):
    with pytest.raises(
        CheckpointError, match=r"deepstack_layer_map.*several would come in at once, or none; drop fewer"
    ):
        cut_layers(vision_checkpoint("granite4_vision"), dropped, tmp_path / "pruned")
