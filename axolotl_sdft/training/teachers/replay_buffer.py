"""What the model saw and predicted one iteration ago, and how that is saved beside a checkpoint.

An iteration is an optimizer step. Its micro-batches share the same weights, so within one accumulation window nothing
can be distilled from one to the next: micro-batch k learns from micro-batch k of the window before.

Shapes: N label tokens of a micro-batch, in row-major order.

Each rank has a file of its own. Without one that fits, the first step after resuming repeats nothing.
"""

import logging
import pickle
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """The inputs of one micro-batch and what was kept of the prediction at their label positions."""

    inputs: dict[str, Any]

    kept: dict[str, Tensor]
    """By name, [N, ...] each, constants."""

    @property
    def num_tokens(self) -> int:
        """How many label tokens it has."""
        return len(next(iter(self.kept.values())))


class PreviousMiniBatch:
    """The micro-batches of the window before, by their place in it, and those of the current window so far.

    Two windows with two places each: ``begin_window(2)`` returns nothing, and both ``take()`` give None; after two
    ``remember(...)`` the next ``begin_window(2)`` returns both, and ``take()`` gives them in the same order.
    """

    def __init__(self) -> None:
        self._previous: deque[MicroBatch] = deque()
        self._current: deque[MicroBatch] = deque()
        self._is_open = False

    @property
    def is_open(self) -> bool:
        """Whether a window has begun: outside a training loop there is no iteration before."""
        return self._is_open

    @property
    def window(self) -> list[MicroBatch]:
        """The current window so far; once it is complete, all that the next one depends on."""
        return list(self._current)

    def begin_window(self, num_micro_batches: int) -> list[MicroBatch]:
        """Turn the current window into the previous one, and return the micro-batches that will be repeated.

        The last window of an epoch can be shorter: previous micro-batches without a counterpart are forgotten. A window
        without any micro-batch is none, and changes nothing.
        """
        if num_micro_batches == 0:
            return []
        self._previous = deque(list(self._current)[:num_micro_batches])
        self._current = deque()
        self._is_open = True
        return list(self._previous)

    def take(self) -> MicroBatch | None:
        """Return the previous micro-batch at the next place of the window, and forget it; None when there is none."""
        return self._previous.popleft() if self._previous else None

    def remember(self, inputs: dict[str, Any], kept: dict[str, Tensor], *, cpu_offload: bool = False) -> None:
        """Add a micro-batch to the current window: its inputs, and what is kept of its prediction, as constants.

        With ``cpu_offload`` what is kept moves to the CPU, while the device goes on working.
        """
        constants = {name: value.detach() if torch.is_tensor(value) else value for name, value in inputs.items()}
        kept = {name: value.detach() for name, value in kept.items()}
        self._current.append(
            MicroBatch(constants, {name: _on_cpu(kept[name]) for name in kept} if cpu_offload else kept)
        )

    def restore(self, window: Sequence[MicroBatch]) -> None:
        """Take these micro-batches for the current window, as if they had been remembered one by one."""
        self._current = deque(window)

    def clear(self) -> None:
        """Forget everything; a window has to begin anew."""
        self._previous.clear()
        self._current.clear()
        self._is_open = False


def _on_cpu(value: Tensor) -> Tensor:
    """Return a copy in memory that a CUDA device reads and writes without waiting; on the CPU, the tensor itself."""
    if value.device.type == "cpu":
        return value
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.device.type == "cuda")
    return copy.copy_(value, non_blocking=value.device.type == "cuda")


log = logging.getLogger(__name__)

_FORMAT = 1


def memory_path(checkpoint_dir: Path, rank: int, world_size: int) -> Path:
    """Return where the memory of a rank belongs."""
    return checkpoint_dir / (f"dynsdpb_memory_{rank}.pt" if world_size > 1 else "dynsdpb_memory.pt")


def save_memory(window: Sequence[MicroBatch], checkpoint_dir: Path, rank: int, world_size: int) -> None:
    """Write the last window of this rank into a checkpoint folder, which is made where it is missing."""
    if any(value.is_pinned() for micro_batch in window for value in micro_batch.kept.values()):
        torch.accelerator.synchronize()  # copies to the CPU may still be under way
    micro_batches = [{"inputs": micro_batch.inputs, "kept": micro_batch.kept} for micro_batch in window]
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    content = {"format": _FORMAT, "world_size": world_size, "micro_batches": micro_batches}
    torch.save(content, memory_path(checkpoint_dir, rank, world_size))


def load_memory(
    checkpoint_dir: Path, rank: int, world_size: int, device: torch.device, *, cpu_offload: bool = False
) -> list[MicroBatch]:
    """Return the window that :func:`save_memory` wrote; none, with a warning, where no file fits.

    Args:
        checkpoint_dir: The checkpoint that training is resumed from.
        rank: That of this process.
        world_size: How many processes there are; what others than these many have saved does not fit.
        device: Where inputs, and what is kept, are put.
        cpu_offload: What is kept stays on the CPU instead.
    """
    path = memory_path(checkpoint_dir, rank, world_size)
    reason = "is missing (it is only saved along with the optimizer, and for the same number of processes)"
    if path.is_file():
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, EOFError, RuntimeError) as err:
            content, reason = {}, f"can't be read ({err})"
        if content.get("format") == _FORMAT and content.get("world_size") == world_size:
            return [_placed(micro_batch, device, cpu_offload) for micro_batch in content["micro_batches"]]
        if content:
            reason = f"was saved by {content.get('world_size')} processes, not {world_size}, or in another format"
    log.warning("dynsdpb: %s %s; the first step repeats nothing", path, reason)
    return []


def _placed(saved: dict[str, dict[str, torch.Tensor]], device: torch.device, cpu_offload: bool) -> MicroBatch:
    inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in saved["inputs"].items()}
    kept = saved["kept"] if cpu_offload else {name: value.to(device) for name, value in saved["kept"].items()}
    return MicroBatch(inputs, kept)
