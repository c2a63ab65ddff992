"""Quantized checkpoints: codes, scales and settings move with their layer, and no bit changes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations import finegrained_fp8

from axolotl_sdft import cut_layers
from axolotl_sdft.core.errors import CheckpointError
from tests.pruning.conftest import edit_config, layers_skipped, logits, save_tiny_model, token_ids

DROPPED = (1, 3)
HOMES = {0: 0, 2: 1, 4: 2, 5: 3}
WIDE = {"hidden_size": 128, "intermediate_size": 128, "initializer_range": 0.1}
# Layer 4 keeps one module as it is, and so does a layer that goes.
UNQUANTIZED = ["lm_head", "model.layers.4.mlp.down_proj", "model.layers.1.mlp.up_proj"]
UNQUANTIZED_AFTER = ["lm_head", "model.layers.2.mlp.down_proj"]


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("wide") / "seed", **WIDE)


def config_of(folder, file="config.json"):
    return json.loads((folder / file).read_text())


def expected_names(before):
    """Old name of each tensor that stays, by its new name."""
    names = {}
    for name in before:
        number, _, rest = name.removeprefix("model.layers.").partition(".") if ".layers." in name else ("", "", "")
        if number and int(number) in HOMES:
            names[f"model.layers.{HOMES[int(number)]}.{rest}"] = name
        elif not number:
            names[name] = name
    return names


def assert_same_bits(seed, pruned):
    before, after = load_file(seed / "model.safetensors"), load_file(pruned / "model.safetensors")
    homes = expected_names(before)
    assert after.keys() == homes.keys()
    for name, tensor in after.items():
        old = before[homes[name]]
        assert (tensor.dtype, tensor.shape) == (old.dtype, old.shape)
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), old.reshape(-1).view(torch.uint8))


def quantized_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


BITS_AND_BYTES = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


@pytest.mark.parametrize("name", BITS_AND_BYTES)
def test_a_bitsandbytes_checkpoint_equals_itself_with_those_layers_skipped(wide_checkpoint, tmp_path, name):
    pytest.importorskip("bitsandbytes")
    settings = BitsAndBytesConfig(**BITS_AND_BYTES[name], llm_int8_skip_modules=UNQUANTIZED)
    seed = tmp_path / "seed"
    AutoModelForCausalLM.from_pretrained(wide_checkpoint, quantization_config=settings).save_pretrained(seed)
    pruned = cut_layers(seed, DROPPED, tmp_path / "pruned")
    assert config_of(pruned)["quantization_config"]["llm_int8_skip_modules"] == UNQUANTIZED_AFTER
    assert_same_bits(seed, pruned)
    model = quantized_model(pruned)
    kinds = [type(layer.mlp.down_proj).__name__ for layer in model.model.layers]
    assert kinds[2] == "Linear"
    assert all(kinds[layer].startswith("Linear") and kinds[layer] != "Linear" for layer in (0, 1, 3))
    with layers_skipped(quantized_model(seed), DROPPED) as whole:
        assert torch.equal(logits(model, token_ids()), logits(whole, token_ids()))


def save_fp8(source, folder):
    """Save a checkpoint with 8-bit floats in blocks of 64 x 64, one scale each, as DeepSeek's and Qwen's are."""
    state = load_file(source / "model.safetensors")
    for name in [
        name for name in state if name.endswith("_proj.weight") and name.removesuffix(".weight") not in UNQUANTIZED
    ]:
        blocks = state[name].unflatten(0, (-1, 64)).unflatten(2, (-1, 64))
        scale = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
        state[name] = (blocks / scale[:, None, :, None]).flatten(2).flatten(0, 1).to(torch.float8_e4m3fn)
        state[f"{name}_scale_inv"] = scale
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [64, 64]}
    edit_config(folder, quantization_config=settings | {"modules_to_not_convert": UNQUANTIZED})
    return folder


def test_an_fp8_checkpoint_equals_itself_with_those_layers_skipped(wide_checkpoint, tmp_path, monkeypatch):
    seed = save_fp8(wide_checkpoint, tmp_path / "seed")
    pruned = cut_layers(seed, DROPPED, tmp_path / "pruned")
    assert config_of(pruned)["quantization_config"]["modules_to_not_convert"] == UNQUANTIZED_AFTER
    assert_same_bits(seed, pruned)
    # transformers 5.16 looks up how experts are run even where there are none.
    experts = getattr(finegrained_fp8, "FP8Experts", None)
    if hasattr(experts, "_impl_tp_layer_overrides"):
        monkeypatch.setitem(experts._impl_tp_layer_overrides, None, {})
    model = quantized_model(pruned)  # without a GPU, transformers turns the 8-bit floats back
    with layers_skipped(quantized_model(seed), DROPPED) as whole:
        assert torch.equal(logits(model, token_ids()), logits(whole, token_ids()))


def packed(shape, dtype=torch.int32):
    return torch.randint(0, 100, shape).to(dtype)


GPTQ = {"qweight": (16, 16), "qzeros": (1, 2), "scales": (1, 16), "g_idx": (16,)}
AWQ = {"qweight": (16, 2), "qzeros": (1, 2), "scales": (1, 16)}
PACKED = {"weight_packed": (16, 2), "weight_scale": (16, 1), "weight_shape": (2,), "weight_zero_point": (2, 1)}
# Kind, tensors of a module, settings before and after, and the file that repeats them.
SETTINGS = {
    "gptq": (
        GPTQ,
        {
            "quant_method": "gptq",
            "bits": 4,
            "dynamic": {"-:.*\\.4\\.mlp\\.down_proj": {}, "+:.*\\.1\\..*": {"bits": 8}},
        },
        {"quant_method": "gptq", "bits": 4, "dynamic": {"-:.*\\.2\\.mlp\\.down_proj": {}}},
        "quantize_config.json",
    ),
    "awq": (
        AWQ,
        {"quant_method": "awq", "bits": 4, "modules_to_not_convert": UNQUANTIZED},
        {"quant_method": "awq", "bits": 4, "modules_to_not_convert": UNQUANTIZED_AFTER},
        "quant_config.json",
    ),
    "compressed-tensors": (
        PACKED,
        {"quant_method": "compressed-tensors", "ignore": [*UNQUANTIZED, "re:.*layers\\.[2-4]\\.self_attn.*"]},
        {"quant_method": "compressed-tensors", "ignore": [*UNQUANTIZED_AFTER, "re:.*layers\\.[12]\\.self_attn.*"]},
        "hf_quant_config.json",
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_packed_weights_and_their_scales_move_with_their_layer_and_the_settings_follow(tmp_path, name):
    tensors, before, after, file = SETTINGS[name]
    seed = save_tiny_model(tmp_path / "seed")
    state = load_file(seed / "model.safetensors")
    for module in [name.removesuffix(".weight") for name in state if name.endswith("_proj.weight")]:
        if module not in UNQUANTIZED:
            del state[f"{module}.weight"]
            dtypes = {"scales": torch.float16, "weight_scale": torch.bfloat16}
            state |= {
                f"{module}.{kind}": packed(shape, dtypes.get(kind, torch.int32)) for kind, shape in tensors.items()
            }
    save_file(state, seed / "model.safetensors", metadata={"format": "pt"})
    edit_config(seed, quantization_config=before)
    (seed / file).write_text(json.dumps(before))

    pruned = cut_layers(seed, DROPPED, tmp_path / "pruned")

    assert_same_bits(seed, pruned)
    assert config_of(pruned)["quantization_config"] == config_of(pruned, file) == after


def test_a_pattern_that_can_not_be_rewritten_is_refused_and_leaves_nothing_behind(own_checkpoint, tmp_path):
    edit_config(own_checkpoint, quantization_config={"quant_method": "gptq", "dynamic": {"-:.*rs\\.[45].*": {}}})
    with pytest.raises(
        CheckpointError, match=r"quantization_config\.dynamic of the checkpoint holds .* can't be rewritten"
    ):
        cut_layers(own_checkpoint, DROPPED, tmp_path / "pruned")
    assert [path.name for path in tmp_path.iterdir()] == ["seed"]
