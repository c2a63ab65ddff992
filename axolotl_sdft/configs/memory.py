"""How much memory each stage needs at its peak, in bytes, worked out from the shape of the model and the settings.

What is exact: weights, gradients, optimizer state, the key-value cache. What is counted as autograd saves it:
activations. What is left out is named in ``LEFT_OUT``.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from axolotl_sdft.pruning.planning.model_shape import Matrix, ModelShape

LEFT_OUT = (
    "the driver's own context (0.5 to 1 GB on a GPU)",
    "gaps between blocks of memory that the allocator can't use",
    "the short-lived memory of single operations, such as a layer's weights while they are unpacked from 4 bits",
    "buffers of communication between GPUs",
)
"""What no figure here holds. Leave a tenth of a GPU's memory for it."""

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOAT32 = 4
_NF4_BLOCK = 64  # numbers that share a scale
_SCALES_BLOCK = 256  # scales that share one, where they are quantized too
_OPTIMIZER_BLOCK = 256
_EIGHT_BITS = 1 + _FLOAT32 / _OPTIMIZER_BLOCK
_FOUR_BITS = 0.5 + _FLOAT32 / 128
_BYTES_OF_STATE = {
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "ao_adamw_8bit"), 2 * _EIGHT_BITS),
    **dict.fromkeys(("adamw_torch_8bit", "ademamix_8bit"), 2 * _EIGHT_BITS),
    **dict.fromkeys(("adamw_torch_4bit", "ao_adamw_4bit"), 2 * _FOUR_BITS),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit"), _EIGHT_BITS),
    **dict.fromkeys(("sgd", "adafactor"), 0.0),  # adafactor keeps a row and a column of each matrix
}
_STATES = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "paged_adamw_32bit"), 2),
    **dict.fromkeys(("lion_pytorch", "lion_32bit", "paged_lion_32bit", "muon", "rmsprop", "adagrad"), 1),
}


@dataclass(frozen=True)
class Quantized:
    """How linear layers are packed by bitsandbytes; all else keeps its dtype."""

    bits: int
    """4 (nf4) or 8."""
    double: bool = False
    """Whether the scales of 4 bits are quantized too, as Axolotl does it."""

    def num_bytes(self, matrix: Matrix) -> float:
        """Return what a matrix takes, its scales included."""
        if self.bits == 8:
            return matrix.parameters + _FLOAT32 * matrix.outputs
        scale = 1 + _FLOAT32 / _SCALES_BLOCK if self.double else _FLOAT32
        return matrix.parameters * (0.5 + scale / _NF4_BLOCK)


@dataclass(frozen=True)
class MemoryNeed:
    """What a stage needs at its peak on each GPU, or in the memory of the CPU where it runs there."""

    stage: str
    parts: Mapping[str, int]
    """Bytes by what takes them."""
    notes: tuple[str, ...] = ()
    """What was assumed, and what could not be told."""

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


def without_layers(shape: ModelShape, drop_layers: Collection[int]) -> ModelShape:
    """Return the shape of the model once these layers are removed."""
    share = 1 - len(drop_layers) / shape.num_layers
    cache = shape.costs.cache_bytes
    return replace(
        shape,
        layer_parameters=tuple(size for layer, size in enumerate(shape.layer_parameters) if layer not in drop_layers),
        matrices=tuple(matrix for matrix in shape.matrices if matrix.layer not in drop_layers),
        costs=replace(shape.costs, cache_bytes=None if cache is None else round(cache * share)),
    )


def weight_bytes(shape: ModelShape, dtype: str, quantized: Quantized | None = None) -> int:
    """Return what the weights take: all in one dtype, or the matrices packed and the rest in it."""
    size = DTYPE_BYTES[dtype]
    if quantized is None:
        return shape.parameters * size
    packed = sum(matrix.parameters for matrix in shape.matrices)
    return round((shape.parameters - packed) * size + sum(map(quantized.num_bytes, shape.matrices)))


def lora_parameters(shape: ModelShape, rank: int, targets: Collection[str] | None) -> int:
    """Return how many numbers LoRA trains.

    Args:
        shape: The model that is adapted.
        rank: ``lora_r``.
        targets: Full names of the adapted matrices; None for all of them.
    """
    chosen = [matrix for matrix in shape.matrices if targets is None or matrix.name in targets]
    return sum(rank * (matrix.inputs + matrix.outputs) for matrix in chosen)


def optimizer_bytes(optimizer: str, num_trained: int, dtype: str) -> tuple[int, str | None]:
    """Return what an optimizer keeps for the trained numbers, and what was assumed where it is not known here."""
    if optimizer in _BYTES_OF_STATE:
        return round(num_trained * _BYTES_OF_STATE[optimizer]), None
    states = _STATES.get(optimizer, 2)
    note = None if optimizer in _STATES else f"optimizer {optimizer} is not known here and counted like AdamW"
    return num_trained * states * DTYPE_BYTES[dtype], note


def lora_input_bytes(shape: ModelShape, targets: Collection[str] | None, number_bytes: int) -> int:
    """Return what LoRA keeps of one token for the backward pass: a copy of the input of each adapted matrix.

    Args:
        shape: The model that is adapted.
        targets: Full names of the adapted matrices; None for all of them.
        number_bytes: Bytes of a number of such a copy.
    """
    return number_bytes * sum(matrix.inputs for matrix in shape.matrices if targets is None or matrix.name in targets)


def activation_bytes(
    shape: ModelShape, num_tokens: int, checkpointed: bool, lora_inputs: int | None = None
) -> int | None:
    """Return what the layers keep for the backward pass; None where it can't be told.

    With gradient checkpointing that is the input of each layer. What one of them computes again comes on top, after
    the logits are gone: ``recomputed_bytes``, which also tells what ``lora_inputs`` is.
    """
    if checkpointed:
        return num_tokens * shape.num_layers * shape.hidden_size * DTYPE_BYTES[shape.dtype]
    layer = recomputed_bytes(shape, num_tokens, lora_inputs)
    return None if layer is None else shape.num_layers * layer


def recomputed_bytes(shape: ModelShape, num_tokens: int, lora_inputs: int | None = None) -> int | None:
    """Return what one layer keeps for its backward pass; None where it can't be told.

    Args:
        shape: The model that is trained.
        num_tokens: Tokens of the pass.
        lora_inputs: What ``lora_input_bytes`` gives; None where every weight is trained.
    """
    if lora_inputs is None or shape.frozen_activation_bytes is None:
        return None if shape.activation_bytes is None else num_tokens * shape.activation_bytes
    return num_tokens * (shape.frozen_activation_bytes + lora_inputs // shape.num_layers)


def logit_bytes(shape: ModelShape, num_tokens: int) -> int:
    """Return what the logits of a training step take while their loss is differentiated.

    Those of the model's dtype are gone then. There are log-probabilities in float32, their gradient, and that of the
    logits.
    """
    return num_tokens * shape.vocab_size * 3 * _FLOAT32


def chunk_bytes(shape: ModelShape, chunk_tokens: int) -> int:
    """Return what a divergence takes that is computed chunk by chunk: three arrays of a chunk in float32."""
    return 3 * chunk_tokens * shape.vocab_size * _FLOAT32


def cache_bytes(shape: ModelShape, num_tokens: int, num_rows: int) -> int | None:
    """Return the key-value cache of so many tokens, and the states of so many rows; None where it can't be told."""
    costs = shape.costs
    if costs.cache_bytes is None:
        return None
    return num_tokens * costs.cache_bytes + num_rows * (costs.state_bytes or 0)


def unknown_parts(shape: ModelShape) -> Iterator[str]:
    """Yield what no need can hold because the model could not be run without weights, and why."""
    if shape.activation_bytes is None:
        yield f"activations are left out, they can't be counted without weights ({shape.fault})"
    if shape.costs.cache_bytes is None and shape.costs.fault is not None:
        yield f"the KV cache is left out, it can't be told without weights ({shape.costs.fault})"
