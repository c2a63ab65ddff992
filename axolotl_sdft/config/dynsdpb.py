"""The settings of DynSDPB training."""

from typing import Literal

from pydantic import Field, model_validator

from axolotl_sdft.config.block import Block


class DynSDPBConfig(Block):
    """How each mini-batch is distilled from the model's own logits of the iteration before."""

    alpha: float = Field(1.0, ge=0.0, le=100.0)
    """Influence of the distillation term. 0 trains on the same tokens with cross-entropy alone."""

    temperature: float = Field(2.0, ge=0.1, le=100.0)
    """Distillation temperature; with ``dynamic_temperature``, the highest one."""

    temperature_min: float = Field(1.0, ge=0.1, le=100.0)
    """Lowest temperature, used where the former prediction is certain. Only with ``dynamic_temperature``."""

    dynamic_alpha: bool = True
    """Let the influence of each token fall with the uncertainty of the former prediction."""

    dynamic_temperature: bool = True
    """Let the temperature of each token fall as the former prediction gets more certain."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """How the present prediction is held against the former one: ``forward_kl`` covers all that the former held likely,
    ``reverse_kl`` avoids what it held unlikely, ``jsd`` (Jensen-Shannon, weight 0.5) lies between and is bounded."""

    teacher_correct_only: bool = False
    """Distil only tokens whose label was the former prediction's likeliest one; a wrong teacher has no influence."""

    teacher_storage: Literal["auto", "hidden_states", "logits", "top_k"] = "auto"
    """What is kept of the former prediction. ``hidden_states`` (exact, small) needs a frozen output head, as with LoRA;
    ``logits`` (exact) works always; ``top_k`` approximates. ``auto``: hidden states where they are exact, else
    logits."""

    top_k: int = Field(64, ge=1)
    """Tokens kept for each position; all others share one bucket. Only with ``teacher_storage: top_k``."""

    cpu_offload: bool = False
    """Keep the former prediction in the memory of the CPU, and bring it back chunk by chunk."""

    chunk_tokens: int = Field(64, ge=1)
    """Tokens whose distributions are held in float32 at a time. Only speed and memory depend on it."""

    @model_validator(mode="after")
    def _temperature_min_is_at_most_temperature(self) -> "DynSDPBConfig":
        if self.dynamic_temperature and self.temperature_min > self.temperature:
            raise ValueError(
                f"temperature_min is {self.temperature_min}, above temperature {self.temperature}; "
                "lower temperature_min, raise temperature, or set dynamic_temperature: false"
            )
        return self
