"""The blocks of training: ``dynsdpb`` and ``logit_distillation``."""

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
    """Lowest temperature, used where the previous prediction is certain. Only with ``dynamic_temperature``."""

    dynamic_alpha: bool = True
    """Let the influence of each token fall with the uncertainty of the previous prediction."""

    dynamic_temperature: bool = True
    """Let the temperature of each token fall as the previous prediction gets more certain."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """How the prediction is compared with the previous one: ``forward_kl`` is mode-covering, ``reverse_kl``
    mode-seeking, ``jsd`` (Jensen-Shannon, weight 0.5) lies between and is bounded."""

    teacher_correct_only: bool = False
    """Distil only tokens whose label was most likely in the previous prediction; a wrong teacher has no influence."""

    teacher_storage: Literal["auto", "hidden_states", "logits", "top_k"] = "auto"
    """What is kept of the previous prediction. ``hidden_states`` (exact, small) needs a frozen head, as with LoRA;
    ``logits`` (exact) works always; ``top_k`` approximates. ``auto``: hidden states where they are exact, else
    logits."""

    top_k: int = Field(64, ge=1)
    """Tokens kept for each position; all others share one bucket. Only with ``teacher_storage: top_k``."""

    cpu_offload: bool = False
    """Keep the previous prediction in the memory of the CPU, and bring it back chunk by chunk."""

    chunk_tokens: int = Field(64, ge=1)
    """Tokens whose distributions are held in float32 at a time. Only speed and memory depend on it."""

    drift_steps: int = Field(50, ge=0)
    """Measure every so many steps how far the weights moved a prediction, and how far dropout did, in two more forward
    passes of at most 2,048 tokens; 0 never does. Only where dropout is active and weights are neither sharded nor
    compiled."""

    @model_validator(mode="after")
    def _temperature_min_is_at_most_temperature(self) -> "DynSDPBConfig":
        if self.dynamic_temperature and self.temperature_min > self.temperature:
            raise ValueError(
                f"temperature_min is {self.temperature_min}, above temperature {self.temperature}; "
                "lower temperature_min, raise temperature, or set dynamic_temperature: false"
            )
        return self


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

    seed_model: str | None = Field(None, min_length=1)
    """Folder or Hub id of the seed model. Unset, what is recorded with the pruned checkpoint, and without such a record
    the student as it is before training. A student without a record gets the named model as a teacher of its own."""

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
