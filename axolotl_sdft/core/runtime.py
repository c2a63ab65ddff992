"""Where this process stands among others, and what it computes with."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def rank() -> int:
    """Return the rank of this process, as the launcher set it; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def is_launched() -> bool:
    """Return whether a launcher started this process and told it its rank, as Ray tells its workers."""
    return "RANK" in os.environ


def world_size() -> int:
    """Return how many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return how many processes the launcher started on this machine, as far as it says so; else on all of them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def is_multi_node() -> bool:
    """Return whether the launcher started processes on other machines too."""
    return world_size() > local_world_size()


def local_device() -> "torch.device":
    """Return this process's own accelerator, or the CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))


def compute_dtype(name: str, device: "torch.device") -> "torch.dtype":
    """Return the dtype of a name such as ``bfloat16``; ``auto`` is the one that the device computes fast in."""
    import torch

    if name != "auto":
        return getattr(torch, name)
    if device.type == "cpu":
        # Without such instructions a CPU emulates bfloat16, many times slower than float32. Builds without oneDNN lack
        # even the question.
        is_fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if is_fast else torch.float32
    has_bfloat16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else torch.float16
