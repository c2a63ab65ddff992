"""What the progress of the rewriting shows beside the count: tokens per second, and how many answers pass."""

import time
from collections.abc import Sequence
from typing import Any

from axolotl_sdft.distillation.generation.selection import Rejection
from axolotl_sdft.inference.interfaces import Answer


class Meter:
    """Measures one round."""

    def __init__(self) -> None:
        self.expected: dict[tuple[int, int], Any] = {}
        """What is still to come, by the key of its prompt."""
        self._started = time.monotonic()
        self.has_likelihoods = False
        self._tokens = self._answers = self._passed = self._skipped = 0

    def skip(self) -> None:
        """Count an answer that need not be asked for."""
        self._skipped += 1

    def newly_settled(self) -> int:
        """Return how many answers were skipped since the last call."""
        skipped, self._skipped = self._skipped, 0
        return skipped

    def figures(self, answers: Sequence[Answer], rejections: Sequence[Rejection | None]) -> dict[str, str]:
        """Take in a batch and return what is shown now."""
        for answer, rejection in zip(answers, rejections, strict=True):
            self._tokens += answer.num_tokens
            self.has_likelihoods |= answer.mean_logprob is not None
            self._passed += rejection is None
            self._answers += 1
        elapsed = max(time.monotonic() - self._started, 1e-9)
        return {"tokens/s": f"{self._tokens / elapsed:.0f}", "pass": f"{100 * self._passed / self._answers:.0f} %"}
