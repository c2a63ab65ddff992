"""The teacher that shares the student's layers says, to the bit, what the seed model says that is loaded apart."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.training.teachers.origin import find_origin
from axolotl_sdft.training.teachers.shared_layers import build_shared_teacher, changed_reason
from tests.training.teachers.students import IDS, adapted, load, logits, prune, prune_and_patch

pytest.importorskip("peft")

FAMILIES = [
    "llama",
    "qwen3",
    "gemma3_text",
    "gemma3",
    "smollm3",
    "qwen3_moe",
    "mixtral",
    "deepseek_v3",
    "gpt2",
    "gpt_oss",
]


def teacher_of(student: Any, pruned: Path) -> torch.nn.Module:
    return build_shared_teacher(student, find_origin(pruned))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_those_of_the_seed_model_before_and_after_a_step(family: str, tmp_path: Path):
    pruned = prune(tmp_path, family)
    student = adapted(load(pruned))
    teacher = teacher_of(student, pruned)
    expected = logits(load(tmp_path / "seed").eval())
    assert torch.equal(logits(teacher), expected)
    assert changed_reason(student, find_origin(pruned)) is None
    optimizer = torch.optim.SGD([weight for weight in student.parameters() if weight.requires_grad], lr=0.5)
    kinds = {"token_type_ids": torch.zeros_like(IDS)} if family == "gemma3" else {}  # old versions train with them only
    before = logits(student, **kinds)
    student(input_ids=IDS, labels=IDS, **kinds).loss.backward()
    optimizer.step()
    assert not torch.equal(logits(student, **kinds), before)
    assert torch.equal(logits(teacher), expected)


@pytest.mark.parametrize("drop_layers", [[0], [5], [1, 4], [0, 1, 2, 3, 4]])
def test_any_layers_may_be_gone(drop_layers: list[int], tmp_path: Path):
    pruned = prune(tmp_path, "gemma3_text", drop_layers)
    teacher = teacher_of(adapted(load(pruned)), pruned)
    assert torch.equal(logits(teacher), logits(load(tmp_path / "seed").eval()))


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
    ],
    ids=["dora", "trained copies", "embeddings"],
)
def test_any_adapter_that_leaves_the_base_weights_alone_will_do(settings: dict[str, Any], tmp_path: Path):
    pruned = prune(tmp_path, tie_word_embeddings=False)
    student = adapted(load(pruned), **settings)
    teacher = teacher_of(student, pruned)
    with torch.no_grad():
        for weight in student.parameters():
            if weight.requires_grad:
                weight.add_(0.1)
    assert torch.equal(logits(teacher), logits(load(tmp_path / "seed").eval()))


def test_a_model_that_was_not_pruned_is_its_own_teacher_without_its_adapter(tmp_path: Path):
    prune(tmp_path)
    seed = load(tmp_path / "seed")
    student = adapted(copy.deepcopy(seed))
    teacher = build_shared_teacher(student, None)
    assert torch.equal(logits(teacher), logits(seed.eval()))
    shared = {id(weight) for weight in student.parameters()}
    assert all(id(weight) in shared for weight in teacher.parameters())


def test_only_the_removed_layers_take_memory(tmp_path: Path):
    pruned = prune(tmp_path)
    student = adapted(load(pruned))
    teacher = teacher_of(student, pruned)
    shared = {id(weight) for weight in student.parameters()}
    extra = [weight for weight in teacher.parameters() if id(weight) not in shared]
    layers = load(tmp_path / "seed").model.layers
    expected = sum(weight.numel() for layer in (layers[2], layers[3]) for weight in layer.parameters())
    assert sum(weight.numel() for weight in extra) == expected


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_patched_projection_comes_from_the_seed_checkpoint(family: str, tmp_path: Path):
    pruned = prune_and_patch(tmp_path, family, [1, 3, 4])
    student = adapted(load(pruned))
    teacher = teacher_of(student, pruned)
    assert torch.equal(logits(teacher), logits(load(tmp_path / "seed").eval()))
    assert changed_reason(student, find_origin(pruned)) is None
    # Layers 0 and 2 are patched; of the seed model's six layers, 0, 2 and 5 are left.
    shared = {id(weight) for weight in student.parameters()}
    own = {name for name, weight in teacher.named_parameters() if id(weight) not in shared}
    patched = {"llama": "mlp.down_proj.weight", "gpt2": "mlp.c_proj.weight"}[family]
    prefix = {"llama": "model.layers.", "gpt2": "transformer.h."}[family]
    kept = {name for name in own if name.startswith((f"{prefix}0.", f"{prefix}2.", f"{prefix}5."))}
    assert {f"{prefix}0.{patched}", f"{prefix}2.{patched}"} <= kept
    assert all(".mlp." in name for name in kept)


def test_packed_rows_and_padding_are_seen_as_the_seed_model_sees_them(tmp_path: Path):
    pruned = prune(tmp_path, "qwen3")
    teacher, seed = teacher_of(adapted(load(pruned)), pruned), load(tmp_path / "seed").eval()
    seed.config.use_cache = False  # with a cache, packed rows are not told apart
    positions = torch.arange(8).repeat(2, 2)
    assert torch.equal(logits(teacher, position_ids=positions), logits(seed, position_ids=positions))
    mask = torch.ones_like(IDS)
    mask[1, 10:] = 0
    assert torch.equal(logits(teacher, attention_mask=mask), logits(seed, attention_mask=mask))


def test_dropout_checkpointing_and_noise_of_the_student_are_none_of_the_teachers(tmp_path: Path):
    pruned = prune(tmp_path, attention_dropout=0.5)
    student = adapted(load(pruned), lora_dropout=0.5)
    student.gradient_checkpointing_enable()
    student.get_input_embeddings().register_forward_hook(lambda _module, _args, output: output + 1.0)
    modes = [module.training for module in student.modules()]
    teacher = teacher_of(student, pruned)
    assert torch.equal(logits(teacher), logits(load(tmp_path / "seed").eval()))
    assert [module.training for module in student.modules()] == modes


def test_layers_are_read_in_the_precision_that_the_students_have_by_now(tmp_path: Path):
    pruned = prune(tmp_path)
    student = load(pruned).to(torch.bfloat16)
    for name, weight in student.named_parameters():
        if "norm" in name:  # as trainers do for quantized models
            weight.data = weight.data.float()
    student.config.dtype = torch.bfloat16
    assert changed_reason(student, find_origin(pruned)) is None
    teacher = teacher_of(adapted(student), pruned)
    kinds = {name: weight.dtype for name, weight in teacher.model.layers[2].named_parameters()}
    assert kinds["input_layernorm.weight"] == torch.float32
    assert kinds["mlp.down_proj.weight"] == torch.bfloat16


def test_a_quantized_student_has_a_teacher_quantized_alike(tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    pruned = prune(tmp_path, **sizes)
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    student = adapted(load(pruned, quantization_config=four_bits))
    assert changed_reason(student, find_origin(pruned)) is None
    teacher = teacher_of(student, pruned)
    for layer in (1, 2):
        assert type(teacher.model.layers[layer].mlp.up_proj).__name__ == "Linear4bit"
    seed = load(tmp_path / "seed", quantization_config=four_bits).train()  # eval mode repacks the weights on some CPUs
    assert torch.equal(logits(teacher), logits(seed))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bias": "all", "target_modules": ["c_attn"]}, "own weights are trained, transformer.h.0.ln_1.bias among"),
        ({"init_lora_weights": "pissa", "target_modules": ["c_attn"]}, "init_lora_weights 'pissa'.* has taken a part"),
    ],
)
def test_an_adapter_that_changes_the_base_weights_is_refused(settings: dict[str, Any], message: str, tmp_path: Path):
    pruned = prune(tmp_path, "gpt2")
    with pytest.raises(ConfigError, match=rf"teacher is shared, but .*{message}.*; set it to own"):
        teacher_of(adapted(load(pruned), fan_in_fan_out=True, **settings), pruned)


def test_a_student_whose_own_weights_are_trained_is_refused(tmp_path: Path):
    pruned = prune(tmp_path)
    with pytest.raises(
        ConfigError, match=r"own weights are trained, model.embed_tokens.weight among them; set it to own"
    ):
        teacher_of(load(pruned), pruned)


def test_another_vocabulary_is_refused(tmp_path: Path):
    pruned = prune(tmp_path)
    student = load(pruned)
    student.resize_token_embeddings(72)
    with pytest.raises(ConfigError, match="resized from 67 to 72 tokens, and the seed model knows nothing of the new"):
        teacher_of(adapted(student), pruned)


def test_a_setting_of_this_run_counts_for_both(tmp_path: Path):
    pruned = prune(tmp_path)
    student = load(pruned, rms_norm_eps=0.5)
    teacher = teacher_of(adapted(student), pruned)
    assert torch.equal(logits(teacher), logits(load(tmp_path / "seed", rms_norm_eps=0.5).eval()))
    assert not torch.equal(logits(teacher), logits(load(tmp_path / "seed").eval()))
