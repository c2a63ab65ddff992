"""Where this process stands among others, and how it shows progress."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from axolotl_sdft.core.texts import one_line

if TYPE_CHECKING:
    import torch

_LOG_INTERVAL_S = 30.0


def rank() -> int:
    """Return the rank of this process, as the launcher set it; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_multi_node() -> bool:
    """Return whether the launcher started processes on other machines too."""
    return world_size() > int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


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


class Progress:
    """A progress bar with rate and time left on a terminal, plain log lines elsewhere, nothing on other ranks."""

    def __init__(self, description: str, total: int, unit: str, log: logging.Logger) -> None:
        self._description, self._total, self._unit, self._log = one_line(description), total, unit, log
        self._done = 0
        self._started = self._last_log = time.monotonic()
        self._is_main = rank() == 0
        self._bar = None
        if self._is_main and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=self._description, unit=f" {unit}", dynamic_ncols=True)

    def advance(self, count: int = 1, **figures: float | str) -> None:
        """Count work as done; ``figures`` are shown beside it."""
        self._done += count
        if self._bar is not None:
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update(count)
        elif self._is_main and time.monotonic() - self._last_log >= _LOG_INTERVAL_S:
            self._last_log = time.monotonic()
            self._log_line(figures)

    def _log_line(self, figures: dict[str, float | str]) -> None:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = self._done / elapsed
        left = (self._total - self._done) / rate if rate else float("inf")
        shown = "".join(f", {name} {value}" for name, value in figures.items())
        self._log.info(
            "%s: %d of %d %s, %.2f %s/s, %.0f s left%s",
            *(self._description, self._done, self._total, self._unit, rate, self._unit, left, shown),
        )

    def close(self) -> None:
        """Finish the bar, or log how long all of it took."""
        if self._bar is not None:
            self._bar.close()
        elif self._is_main and self._done:
            elapsed = time.monotonic() - self._started
            self._log.info("%s: %d %s in %.1f s", self._description, self._done, self._unit, elapsed)


@contextmanager
def progress(description: str, total: int, unit: str, log: logging.Logger) -> Iterator[Progress]:
    """Give a :class:`Progress` that is closed when the block ends."""
    shown = Progress(description, total, unit, log)
    try:
        yield shown
    finally:
        shown.close()
