"""Saves the memory of the previous mini-batch beside a checkpoint, so that a resumed run goes on as if never stopped.

Each rank has a file of its own. Without one that fits, the first step after resuming repeats nothing.
"""

import logging
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch

from axolotl_sdft.training.teachers.replay_buffer import MicroBatch

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
