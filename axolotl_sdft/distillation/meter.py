"""What the progress of the rewriting shows beside the count: tokens per second, and how many answers pass."""

import time
from collections.abc import Iterable, Sequence

from axolotl_sdft.distillation.interfaces import Answer, Prompt, Target
from axolotl_sdft.distillation.verdicts import Policy, rejection_of

_ALL_JUDGED, _JUDGED_EVERY = 256, 16  # checks cost time; a sample shows as much


class Meter:
    """Measures one round. Its share of passing answers is that of a sample; the summary has the exact one."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._targets: dict[tuple[int, int], Target] = {}
        self._started = time.monotonic()
        self.has_likelihoods = False
        self._tokens = self._answers = self._judged = self._passed = self._skipped = 0

    @property
    def num_expected(self) -> int:
        """How many answers are still to come."""
        return len(self._targets)

    def expect(self, targets: Iterable[tuple[tuple[int, int], Target]]) -> None:
        """Remember what the next answers belong to."""
        self._targets.update(targets)

    def skip(self) -> None:
        """Count an answer that needs no further attempt."""
        self._skipped += 1

    def newly_settled(self) -> int:
        """Return how many answers were skipped since the last call."""
        skipped, self._skipped = self._skipped, 0
        return skipped

    def figures(self, batch: Sequence[Prompt], answers: Sequence[Answer]) -> dict[str, str]:
        """Take in a batch and return what is shown now."""
        for prompt, answer in zip(batch, answers, strict=True):
            target = self._targets.pop(prompt.key)
            self._tokens += answer.num_tokens
            self.has_likelihoods |= answer.mean_logprob is not None
            if self._answers < _ALL_JUDGED or self._answers % _JUDGED_EVERY == 0:
                self._judged += 1
                self._passed += rejection_of(answer, target, self._policy.checks) is None
            self._answers += 1
        elapsed = max(time.monotonic() - self._started, 1e-9)
        return {"tokens/s": f"{self._tokens / elapsed:.0f}", "pass": f"{100 * self._passed / self._judged:.0f} %"}
