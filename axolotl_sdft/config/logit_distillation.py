"""The settings of logit distillation."""

from typing import Literal

from pydantic import Field, model_validator

from axolotl_sdft.config.block import Block


class LogitDistillationConfig(Block):
    """How the unpruned seed model teaches the student, token by token."""

    alpha: float = Field(0.5, ge=0.0, le=1.0)
    """Share of the distillation in the loss, ``(1 - alpha) * cross-entropy + alpha * temperature^2 * divergence``. 0
    trains with cross-entropy alone and loads no teacher; 1 with the teacher alone."""

    temperature: float = Field(1.0, ge=0.1, le=100.0)
    """Both distributions are softened by it."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """How the student's prediction is held against the teacher's: ``forward_kl`` is mode-covering, ``reverse_kl``
    mode-seeking, ``jsd`` (Jensen-Shannon, weight 0.5) lies between and is bounded."""

    tokens: Literal["answers", "all"] = "answers"
    """Which predictions are distilled: those of the trained tokens, or those of all tokens of a row, its prompt
    included."""

    teacher: Literal["auto", "shared", "own"] = "auto"
    """``shared`` takes the student's own frozen layers and loads only those that were removed; it needs LoRA or another
    adapter. ``own`` loads the whole seed model beside the student. ``auto``: shared where the student's layers are
    frozen and ``load_in_4bit`` and ``load_in_8bit`` are unset, else own; the log says which."""

    load_in_4bit: bool = False
    """Quantize a teacher of its own to 4 bits (bitsandbytes, nf4). A shared one is as the student is."""

    load_in_8bit: bool = False
    """Quantize a teacher of its own to 8 bits (bitsandbytes)."""

    chunk_tokens: int = Field(64, ge=1)
    """Tokens whose distributions are held in float32 at a time. Only speed and memory depend on it."""

    @property
    def bits(self) -> int | None:
        """To how many bits a teacher of its own is quantized; None for not at all."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None

    @model_validator(mode="after")
    def _quantization_is_of_a_teacher_of_its_own(self) -> "LogitDistillationConfig":
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit are both true; set one of them to false")
        if self.bits is not None and self.teacher == "shared":
            raise ValueError(
                f"load_in_{self.bits}bit is true, but teacher is 'shared', which is quantized as the student is; set "
                f"teacher: own, or remove load_in_{self.bits}bit"
            )
        return self
