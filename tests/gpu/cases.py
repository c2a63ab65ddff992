"""The combinations that need a GPU, as settings over a small configuration, and what each needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
_QLORA = _LORA | {"adapter": "qlora", "load_in_4bit": True}
_LORA_KERNELS = {f"lora_{part}_kernel": True for part in ("mlp", "qkv", "o")}
_LIGER = {
    "plugins": ["axolotl_sdft.SDFTPlugin", "axolotl.integrations.liger.LigerPlugin"],
    "liger_rope": True,
    "liger_rms_norm": True,
    "liger_glu_activation": True,
}
_PACKED = {"sample_packing": True, "pad_to_sequence_len": True}
_FLEX_PACKED = _PACKED | {"attn_implementation": "flex_attention"}
_CUT_CROSS_ENTROPY = {
    "plugins": ["axolotl_sdft.SDFTPlugin", "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"]
}
_FSDP2 = {
    "fsdp_version": 2,
    "fsdp_config": {
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
        "state_dict_type": "FULL_STATE_DICT",
        "reshard_after_forward": True,
    },
}


def _zero(stage: int) -> dict[str, Any]:
    automatic = {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"}
    settings = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": True}, "gradient_clipping": "auto"}
    return {"deepspeed": {**automatic, "gradient_accumulation_steps": "auto", **settings}}


@dataclass(frozen=True)
class Case:
    """A combination, and what it needs."""

    settings: Mapping[str, Any]
    """Laid over the small configuration."""

    gpus: int = 1
    packages: Sequence[str] = ()
    refusal: str | None = None
    """What the error must say; None where training must work."""

    same_start: bool = True
    """Whether the first step's cross-entropy is that of the plain case: not with noise or four bits."""

    trainer: str = "dynsdpb"
    """The block that brings the trainer."""

    block: Mapping[str, Any] = field(default_factory=dict)
    """What stands in it."""


def _taught(settings: Mapping[str, Any], block: Mapping[str, Any] | None = None, **needs: Any) -> Case:
    """A combination with the seed model as teacher of a model that lacks two layers."""
    removed = {"layer_pruning": {"drop_layers": [3, 4], "patch": "none"}}
    return Case({**removed, **settings}, trainer="logit_distillation", block=block or {}, **needs)


CASES: dict[str, Case] = {
    "lora": Case(_LORA),
    "full": Case({}),
    "dora": Case(_LORA | {"peft_use_dora": True}),
    "qlora": Case(_QLORA, packages=["bitsandbytes"], same_start=False),
    "lora_kernels": Case(_LORA | _LORA_KERNELS),
    "neftune": Case(_LORA | {"neftune_noise_alpha": 5}, same_start=False),
    "gradient_checkpointing": Case(_LORA | {"gradient_checkpointing": True}),
    "activation_offload": Case(_LORA | {"gradient_checkpointing": True, "activation_offloading": True}),
    "flash_attention": Case(_LORA | {"flash_attention": True}, packages=["flash_attn"]),
    "flash_attention_packed": Case(
        _LORA | {"flash_attention": True} | _PACKED,
        packages=["flash_attn"],
        same_start=False,
    ),
    "flex_attention_packed": Case(_LORA | _FLEX_PACKED, same_start=False),
    "liger_kernels": Case(_LORA | _LIGER | {"liger_cross_entropy": True}, packages=["liger_kernel"]),
    "liger_without_logits": Case(
        _LORA | _LIGER | {"liger_fused_linear_cross_entropy": True}, packages=["liger_kernel"]
    ),
    "liger_without_logits_full": Case(
        _LIGER | {"liger_fused_linear_cross_entropy": True},
        packages=["liger_kernel"],
        block={"teacher_storage": "top_k"},
    ),
    "cut_cross_entropy": Case(_LORA | _CUT_CROSS_ENTROPY, packages=["cut_cross_entropy.transformers"]),
    "cut_cross_entropy_full": Case(_CUT_CROSS_ENTROPY, packages=["cut_cross_entropy.transformers"]),
    "cut_cross_entropy_fsdp2": Case(
        _LORA | _CUT_CROSS_ENTROPY | _FSDP2, gpus=2, refusal="no process has the whole head to run"
    ),
    "torch_compile": Case(_LORA | {"torch_compile": True}),
    "memory_on_the_cpu": Case(_LORA, block={"cpu_offload": True}),
    "memory_of_logits": Case(_LORA, block={"teacher_storage": "logits", "cpu_offload": True}),
    "memory_of_top_k": Case(_LORA, block={"teacher_storage": "top_k"}),
    "ddp": Case(_LORA, gpus=2),
    "fsdp2": Case(_FSDP2, gpus=2),
    "fsdp2_lora": Case(_LORA | _FSDP2, gpus=2),
    "deepspeed_zero2_alone": Case(_zero(2), packages=["deepspeed"]),
    "deepspeed_zero3_alone": Case(_zero(3), packages=["deepspeed"]),
    "deepspeed_zero2": Case(_zero(2), gpus=2, packages=["deepspeed"]),
    "deepspeed_zero3": Case(_zero(3), gpus=2, packages=["deepspeed"]),
    "taught_lora": _taught(_LORA),
    "taught_full": _taught({}),
    "taught_qlora": _taught(_QLORA, packages=["bitsandbytes"], same_start=False),
    "taught_own_4bit": _taught(_LORA, {"teacher": "own", "load_in_4bit": True}, packages=["bitsandbytes"]),
    "taught_lora_kernels": _taught(_LORA | _LORA_KERNELS),
    "taught_gradient_checkpointing": _taught(_LORA | {"gradient_checkpointing": True}),
    "taught_flex_attention_packed": _taught(_LORA | _FLEX_PACKED, same_start=False),
    "taught_liger_kernels": _taught(_LORA | _LIGER | {"liger_cross_entropy": True}, packages=["liger_kernel"]),
    "taught_liger_without_logits": _taught(
        _LORA | _LIGER | {"liger_fused_linear_cross_entropy": True}, packages=["liger_kernel"]
    ),
    "taught_cut_cross_entropy": _taught(_LORA | _CUT_CROSS_ENTROPY, packages=["cut_cross_entropy.transformers"]),
    "taught_torch_compile": _taught(_LORA | {"torch_compile": True}),
    "taught_deepspeed_zero2_alone": _taught(_zero(2), packages=["deepspeed"]),
    "taught_ddp": _taught(_LORA, gpus=2),
    "taught_deepspeed_zero2": _taught(_zero(2), gpus=2, packages=["deepspeed"]),
}
"""In order of worth for each trainer, its plain case first."""

PLAIN = {"dynsdpb": "lora", "logit_distillation": "taught_lora"}
"""The case of each trainer that the others start like."""
