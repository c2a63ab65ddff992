"""What each stage of a configuration needs: from its YAML and the model's ``config.json``, beside the GPU it names."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import LayerPruningConfig, TransformersGeneration, VLLMGeneration
from axolotl_sdft.configs.findings import Finding, advice
from axolotl_sdft.configs.memory import (
    DTYPE_BYTES,
    LEFT_OUT,
    MemoryNeed,
    Quantized,
    cache_bytes,
    unknown_parts,
    weight_bytes,
    without_layers,
)
from axolotl_sdft.configs.training_memory import TrainingNeed
from axolotl_sdft.core.model_folder import read_config
from axolotl_sdft.pruning.general_answers import LONGEST_TEXT, WANTED_PER_UNIT, surely_wanted
from axolotl_sdft.pruning.planning.model_shape import ModelShape, read_model_shape

if TYPE_CHECKING:
    from axolotl_sdft.integrations.axolotl.blocks import Blocks

GIGABYTE = 10**9
_STATED = re.compile(r"(?:(\d+) )?GPUs? of (\d+) GB")
_KEPT_FREE = 0.1  # of a GPU, for what no figure holds


@dataclass(frozen=True)
class MemoryPlan:
    """What a configuration needs in memory, beside what its description says there is."""

    needs: tuple[MemoryNeed, ...]
    gpus: "StatedGpus | None"

    def lines(self) -> Iterator[str]:
        """Yield the needs as a person reads them, and what they leave out."""
        where = f"on each GPU of {self.gpus.gigabytes} GB" if self.gpus else "on each GPU, or on the CPU"
        yield f"memory at the peak {where}, computed from config.json and the settings, not measured:"
        for need in self.needs:
            parts = ", ".join(f"{name} {_gigabytes(size)}" for name, size in need.parts.items())
            yield f"  {need.stage}: {_gigabytes(need.total)} GB{f' ({parts})' if parts else ''}"
            yield from (f"    {note}" for note in need.notes)
        yield f"  left out: {'; '.join(LEFT_OUT)}"

    def findings(self) -> Iterator[Finding]:
        """Yield the stages that do not fit the GPU that the description names."""
        for need in self.needs if self.gpus else ():
            assert self.gpus is not None
            if need.total > (1 - _KEPT_FREE) * self.gpus.num_bytes:
                yield advice(
                    need.stage,
                    f"needs {_gigabytes(need.total)} GB by calculation, but the description names GPUs of "
                    f"{self.gpus.gigabytes} GB, of which a tenth should stay free; quantize, lower the batch, or "
                    "name a larger GPU",
                )


def memory_plan(raw: Mapping[str, Any], blocks: "Blocks", needs: str) -> MemoryPlan | None:
    """Return what a configuration needs; None where its model is neither in a local folder nor in the Hub's cache.

    Args:
        raw: The YAML as it was read.
        blocks: Its blocks.
        needs: What its description says under ``needs``.

    Raises:
        CheckpointError: The model's ``config.json`` can't be read, or no model can be built from it.
    """
    config = local_model_config(str(raw.get("base_model") or ""))
    if config is None:
        return None
    gpus = stated_gpus(needs)
    shape = read_model_shape(config, compute_dtype(raw))
    return MemoryPlan(tuple(memory_needs(raw, blocks, shape, gpus.count if gpus else 1)), gpus)


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / GIGABYTE:.1f}" if num_bytes >= GIGABYTE / 20 else f"{num_bytes / GIGABYTE:.3f}"


@dataclass(frozen=True)
class StatedGpus:
    """The GPUs that the description of a configuration names."""

    count: int
    gigabytes: int
    """As they are sold: of 2**30 bytes each."""

    @property
    def num_bytes(self) -> int:
        """Bytes of each GPU."""
        return self.gigabytes * 2**30


def stated_gpus(needs: str) -> StatedGpus | None:
    """Return the GPUs that the ``needs`` of a description names first, such as ``8 GPUs of 80 GB``; None without."""
    found = _STATED.search(needs)
    return StatedGpus(int(found[1] or 1), int(found[2])) if found else None


def local_model_config(base_model: str) -> dict[str, Any] | None:
    """Return the ``config.json`` of a model in a local folder or in the Hub's cache; None where it is in neither."""
    folder = Path(base_model).expanduser()
    if not (folder / "config.json").is_file():
        from huggingface_hub import try_to_load_from_cache

        found = (
            None
            if folder.is_absolute() or base_model.count("/") != 1
            else try_to_load_from_cache(base_model, "config.json")
        )
        if not isinstance(found, str):
            return None
        folder = Path(found).parent
    return read_config(folder)


def compute_dtype(raw: Mapping[str, Any]) -> str:
    """Return the dtype that Axolotl trains in, on a GPU that computes in bfloat16: ``bf16`` is ``auto`` unless set."""
    bf16 = raw.get("bf16", "auto")
    if raw.get("bfloat16") or (bf16 and not (bf16 == "auto" and raw.get("fp16"))):
        return "bfloat16"
    return "float16" if raw.get("fp16") or raw.get("float16") or raw.get("load_in_8bit") else "float32"


def memory_needs(raw: Mapping[str, Any], blocks: "Blocks", shape: ModelShape, num_gpus: int = 1) -> list[MemoryNeed]:
    """Return what each stage of a configuration needs on each GPU, in the order in which they run.

    Args:
        raw: The YAML as it was read.
        blocks: Its blocks.
        shape: The seed model, read with :func:`compute_dtype`.
        num_gpus: Over how many GPUs sharded training spreads the weights.
    """
    needs = []
    removed = removed_layers(blocks.layer_pruning, shape.num_layers)
    if blocks.layer_pruning is not None:
        needs.append(_scoring(blocks.layer_pruning, shape, num_gpus))
    if blocks.self_distillation is not None:
        needs.append(_rewriting(blocks.self_distillation.generation, shape, num_gpus))
    student = without_layers(shape, removed)
    needs.append(TrainingNeed(raw, blocks, shape, student, num_gpus).need())
    if blocks.recovery_report is not None:
        needs.append(_report(blocks.recovery_report, shape, student, num_gpus))
    return needs


def removed_layers(block: LayerPruningConfig | None, num_layers: int) -> tuple[int, ...]:
    """Return layers that may stand for those that pruning will remove: the metric is not known, but layers are alike.

    A ``target`` counts as none: then the figures are those of the unpruned model, and too high.
    """
    if block is None or block.target is not None:
        return ()
    if block.drop_layers is not None:
        return block.drop_layers
    wanted = block.num_layers or 0
    count = wanted if isinstance(wanted, int) else max(1, int(wanted * num_layers + 0.5))
    return tuple(range(max(0, num_layers - 1 - count), num_layers - 1))


def _scoring(block: LayerPruningConfig, shape: ModelShape, num_gpus: int) -> MemoryNeed:
    dtype = shape.dtype if block.dtype == "auto" else block.dtype
    weights = weight_bytes(shape, dtype, Quantized(4) if block.load_in_4bit else None)
    tokens = block.calibration.batch_size * block.calibration.sequence_len
    parts = {"weights": _spread(weights, block.device_map, num_gpus)}
    parts["one layer's activations"] = tokens * (shape.activation_bytes or 0)
    if block.patch != "none":
        rows = min(surely_wanted(WANTED_PER_UNIT * shape.hidden_size), TransformersGeneration().max_batch_size)
        parts["logits of seed model and cut"] = 2 * tokens * shape.vocab_size * DTYPE_BYTES[dtype]
        parts["sums of the fit"] = 2 * shape.hidden_size**2 * 8
        parts["KV cache"] = cache_bytes(shape, rows * LONGEST_TEXT, rows) or 0
    return MemoryNeed("layer_pruning", parts, tuple(unknown_parts(shape)))


def _rewriting(generation: Any, shape: ModelShape, num_gpus: int) -> MemoryNeed:
    if isinstance(generation, VLLMGeneration):
        share = generation.vllm_args.get("gpu_memory_utilization", 0.9)
        size = int(generation.vllm_args.get("tensor_parallel_size", 1))
        note = f"vLLM fills the GPU to gpu_memory_utilization ({share}) with its cache, whatever the weights leave"
        return MemoryNeed("self_distillation", {"weights": weight_bytes(shape, shape.dtype) // size}, (note,))
    if not isinstance(generation, TransformersGeneration):
        return MemoryNeed("self_distillation", {}, (f"backend {generation.backend_name}: nothing is loaded here",))
    dtype = shape.dtype if generation.dtype == "auto" else generation.dtype
    cache = cache_bytes(shape, generation.max_batch_tokens, generation.max_batch_size)
    parts = {
        "weights": _spread(weight_bytes(shape, dtype), generation.device_map, num_gpus),
        "KV cache": _spread(cache or 0, generation.device_map, num_gpus),
        "logits": 2 * generation.max_batch_size * shape.vocab_size * 4,
    }
    note = f"KV cache of max_batch_tokens: {generation.max_batch_tokens:,}; lower it if memory is short"
    return MemoryNeed("self_distillation", parts, (note,) if cache is not None else tuple(unknown_parts(shape)))


def _report(block: Any, shape: ModelShape, student: ModelShape, num_gpus: int) -> MemoryNeed:
    dtype = shape.dtype if block.dtype == "auto" else block.dtype
    quantized = Quantized(4) if block.load_in_4bit else None
    both = weight_bytes(shape, dtype, quantized) + weight_bytes(student, dtype, quantized)
    parts = {"weights of seed model and one other": _spread(both, block.device_map, num_gpus)}
    if block.exact_match is not None:
        answering = TransformersGeneration()
        parts["KV cache"] = cache_bytes(shape, answering.max_batch_tokens, answering.max_batch_size) or 0
    return MemoryNeed("recovery_report", parts, tuple(unknown_parts(shape)))


def _spread(num_bytes: int, device_map: Any, num_gpus: int) -> int:
    return num_bytes if device_map is None else num_bytes // num_gpus
