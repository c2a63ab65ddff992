"""Tells when memory ran out, and gives it back."""

import gc

import torch

# Builds of torch differ in what they raise where a CPU's or Apple's memory ends.
_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory")


def is_out_of_memory(err: Exception) -> bool:
    """Say whether an error means that a tensor did not fit."""
    if isinstance(err, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(err, RuntimeError) and any(message in str(err).lower() for message in _MESSAGES)


def free_memory() -> None:
    """Give back what deleted tensors held."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.get_device_module().empty_cache()
