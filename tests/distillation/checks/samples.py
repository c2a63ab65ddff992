"""Answers and targets for the tests of the checks."""

from axolotl_sdft.inference.interfaces import Answer, Target


def written(text: str) -> Answer:
    return Answer(text, "stop", len(text.split()))


def asked(instruction: str = "Tell me about tea.", reference: str = "Tea is a drink.") -> Target:
    return Target(({"role": "user", "content": instruction},), reference)
