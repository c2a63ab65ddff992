"""Counts accepted answers with another result than their original, where no check of the run compares results.

The default checks look at form alone: an answer that states another number, or makes another call, takes the place of a
right one. What a built-in check would have found is told here, and changes no answer.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from axolotl_sdft.distillation.checks.final_answer import announces_result, numeric_answer
from axolotl_sdft.distillation.checks.function_calls import function_call
from axolotl_sdft.distillation.checks.guarded import GuardedCheck
from axolotl_sdft.inference.function_calls import is_calls_alone
from axolotl_sdft.inference.interfaces import Answer, Target

_COMPARING = {
    numeric_answer: (announces_result, "state another result than their original"),
    function_call: (is_calls_alone, "make other calls than their original, or say more"),
}
"""Checks that compare results: what tells whether an original has such a result, and what answers do that fail."""

_WHAT_THEY_DO = {check.__name__: done for check, (_, done) in _COMPARING.items()}


class UncheckedResults:
    """Accepted answers, and how many of them a check would have rejected that is not among those of the run.

    Only an original whose result can't be mistaken is compared with: one that announces it ("The answer is 72",
    ``#### 72``, a box), or that is function calls and nothing else.

    Args:
        checks: Names of the checks of the run.
    """

    def __init__(self, checks: Collection[str]) -> None:
        self._comparing = [
            (has_result, GuardedCheck(check.__name__, check))
            for check, (has_result, _) in _COMPARING.items()
            if check.__name__ not in checks
        ]
        self._compared: Counter[str] = Counter()
        self._others: Counter[str] = Counter()

    def add(self, answer: Answer, target: Target) -> str:
        """Count an accepted answer; return what the check that is lacking says against it, or an empty text."""
        told = ""
        for has_result, check in self._comparing:
            if not has_result(target.reference):
                continue
            finding = check(answer, target)
            if finding.has_failed:
                continue
            self._compared[check.name] += 1
            if finding.reason is not None:
                self._others[check.name] += 1
                told = told or f"{check.name} would reject it: {finding.reason}"
        return told

    def to_json(self) -> dict[str, dict[str, int]]:
        """Return by the name of the check how many answers were ``compared``, and how many are ``others``."""
        return {name: {"compared": count, "others": self._others[name]} for name, count in self._compared.items()}


def unchecked_sentences(counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Yield a sentence for each check that would have rejected some of the answers.

    Args:
        counts: What :meth:`UncheckedResults.to_json` returns.
    """
    for name, count in counts.items():
        if count["others"]:
            yield (
                f"{count['others']} of {count['compared']} accepted answers that were compared {_WHAT_THEY_DO[name]}, "
                f"and no check looks at that: add {name} to self_distillation.checks"
            )
