"""What a training step of a configuration needs, by the keys of Axolotl and of the two distillation blocks."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from axolotl_sdft.configs.memory import (
    DTYPE_BYTES,
    MemoryNeed,
    Quantized,
    activation_bytes,
    chunk_bytes,
    logit_bytes,
    lora_input_bytes,
    lora_parameters,
    optimizer_bytes,
    recomputed_bytes,
    unknown_parts,
    weight_bytes,
)
from axolotl_sdft.integrations.axolotl.compat import fsdp_name
from axolotl_sdft.pruning.planning.model_shape import ModelShape

if TYPE_CHECKING:
    from axolotl_sdft.integrations.axolotl.blocks import Blocks

_WITHOUT_LOGITS = ("cut_cross_entropy", "liger_fused_linear_cross_entropy", "chunked_cross_entropy")


class TrainingNeed:
    """What a training step needs."""

    def __init__(
        self, raw: Mapping[str, Any], blocks: "Blocks", seed: ModelShape, student: ModelShape, num_gpus: int
    ) -> None:
        self.raw, self.blocks, self.seed, self.student = raw, blocks, seed, student
        bits = 4 if raw.get("load_in_4bit") else 8 if raw.get("load_in_8bit") else None
        self.quantized = Quantized(bits, double=True) if bits else None
        self.adapter = raw.get("adapter")
        self.fsdp = bool(raw.get("fsdp") or raw.get("fsdp_config"))
        zero = re.search(r"zero(\d)", str(raw.get("deepspeed") or ""))
        self.zero = 3 if self.fsdp else int(zero[1]) if zero else 0
        self.num_gpus = num_gpus
        self.step_tokens = int(raw.get("micro_batch_size") or 1) * int(raw.get("sequence_len") or 512)
        # Each step of DynSDPB trains on the mini-batch before it as well.
        self.num_tokens = self.step_tokens * (2 if blocks.dynsdpb is not None else 1)
        self.notes: list[str] = list(unknown_parts(seed))

    def need(self) -> MemoryNeed:
        """Return the parts of the peak: when the backward pass begins, after earlier ones filled the gradients."""
        # Sharded training keeps what it trains in float32 and computes in the dtype; so do LoRA's own weights.
        trained_dtype = "float32" if self.adapter or self.zero == 3 else self.student.dtype
        held = "float32" if self.zero == 3 and self.quantized is None else self.student.dtype
        parts = {"weights": self._sharded(weight_bytes(self.student, held, self.quantized), 3)}
        trained = self._num_trained()
        if self.adapter:
            parts["LoRA"] = trained * DTYPE_BYTES[trained_dtype]
        parts["gradients"] = self._sharded(trained * DTYPE_BYTES[trained_dtype], 2)
        state, note = optimizer_bytes(str(self.raw.get("optimizer") or "adamw_torch_fused"), trained, trained_dtype)
        parts["optimizer"] = self._sharded(state, 1)
        self.notes += [note] if note else []
        if self.zero == 3:
            layer = 2 * max(self.student.layer_parameters) + self.student.other_parameters
            parts["layers gathered for the pass"] = layer * DTYPE_BYTES[self.student.dtype]
        kept = activation_bytes(self.student, self.num_tokens, self._is_checkpointed(), self._lora_inputs())
        parts["activations"] = kept or 0
        parts |= self._largest_of_the_moment()
        parts |= self._teacher() | self._previous_predictions()
        return MemoryNeed("training", {name: size for name, size in parts.items() if size}, tuple(self.notes))

    def _sharded(self, num_bytes: int, from_stage: int) -> int:
        return num_bytes // self.num_gpus if self.zero >= from_stage else num_bytes

    def _num_trained(self) -> int:
        if not self.adapter:
            return self.student.parameters
        count = lora_parameters(self.student, int(self.raw.get("lora_r") or 8), self._targets())
        whole = [name for name in self.raw.get("lora_modules_to_save") or () if name in ("embed_tokens", "lm_head")]
        return count + len(whole) * self.student.vocab_size * self.student.hidden_size

    def _lora_inputs(self) -> int | None:
        """Return what LoRA keeps of one token; Axolotl's own kernels for it keep less."""
        if not self.adapter:
            return None
        # LoRA's float32 weights turn their input to float32, and autocast turns that back.
        is_autocast = self.raw.get("bf16") != "full"
        number = DTYPE_BYTES[self.student.dtype if is_autocast else "float32"]
        return lora_input_bytes(self.student, self._targets(), number + bool(self.raw.get("lora_dropout")))

    def _targets(self) -> set[str] | None:
        """Return the full names of what LoRA adapts, by PEFT's rules; None for all."""
        targets = self.raw.get("lora_target_modules")
        is_word = isinstance(targets, str) and targets.lower() == "all-linear"  # which PEFT takes for all layers
        if self.raw.get("lora_target_linear") or not targets or is_word:
            return None
        names = [matrix.name for matrix in self.student.matrices]
        if isinstance(targets, str):
            return {name for name in names if re.fullmatch(targets, name)}
        return {name for name in names if any(f".{name}".endswith(f".{target}") for target in targets)}

    def _is_checkpointed(self) -> bool:
        fsdp = {fsdp_name(str(name)): value for name, value in (self.raw.get("fsdp_config") or {}).items()}
        return bool(self.raw.get("gradient_checkpointing") or fsdp.get("activation_checkpointing"))

    def _largest_of_the_moment(self) -> dict[str, int]:
        """Return the logits, or with gradient checkpointing the layer computed again if that is larger: never both."""
        logits = 0 if self._without_logits() else logit_bytes(self.student, self.num_tokens)
        again = recomputed_bytes(self.student, self.num_tokens, self._lora_inputs()) if self._is_checkpointed() else 0
        layer = again or 0
        return {"logits": logits} if logits >= layer else {"one layer computed again": layer}

    def _without_logits(self) -> bool:
        plugins = " ".join(map(str, self.raw.get("plugins") or ()))
        by_plugin = "CutCrossEntropy" in plugins and self.raw.get("cut_cross_entropy") is not False
        return by_plugin or any(self.raw.get(key) for key in _WITHOUT_LOGITS)

    def _teacher(self) -> dict[str, int]:
        block = self.blocks.logit_distillation
        if block is None or block.alpha == 0:
            return {}
        parts = {"divergence": chunk_bytes(self.seed, block.chunk_tokens) + self._term_gradient()}
        parts["teacher's activations"] = self.num_tokens * (self.seed.activation_bytes or 0)
        if self.adapter and block.teacher != "own" and block.bits is None:
            dtype = self.student.dtype
            whole, kept = (weight_bytes(model, dtype, self.quantized) for model in (self.seed, self.student))
            return {"teacher's removed layers": whole - kept} | parts
        quantized = Quantized(block.bits) if block.bits else self.quantized
        return {"teacher": weight_bytes(self.seed, self.student.dtype, quantized)} | parts

    def _previous_predictions(self) -> dict[str, int]:
        """Return what DynSDPB keeps of the predictions of each mini-batch of the step before."""
        block = self.blocks.dynsdpb
        if block is None or block.alpha == 0:
            return {}
        size = DTYPE_BYTES[self.student.dtype]
        head_is_frozen = self.adapter and "lm_head" not in (self.raw.get("lora_modules_to_save") or ())
        storage = block.teacher_storage
        if storage == "auto":
            storage = "hidden_states" if head_is_frozen else "logits"
        hidden, vocab = self.student.hidden_size, self.student.vocab_size
        per_token = {"hidden_states": hidden * size, "logits": vocab * size, "top_k": block.top_k * (4 + size)}[storage]
        slots = 0 if block.cpu_offload else int(self.raw.get("gradient_accumulation_steps") or 1)
        return {
            "previous predictions": slots * self.step_tokens * per_token,
            "divergence": chunk_bytes(self.student, block.chunk_tokens) + self._term_gradient(),
        }

    def _term_gradient(self) -> int:
        """Return the gradient of a distillation term at the step's own tokens, kept until the backward pass."""
        width = self.student.hidden_size if self._without_logits() else self.student.vocab_size
        return self.step_tokens * width * DTYPE_BYTES[self.student.dtype]
