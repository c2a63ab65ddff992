"""Rows of raw text, in which the template of the chat is written out: segments, and texts that begin with a prompt.

The model that rewrites gets its own chat template. So the control tokens of the raw text (``<|im_start|>user``,
``[INST]``, ``</s>`` and their like) are taken out of what it sees, and stay where they are in the row: a new answer is
put between the same tokens as the old one. Everything before an answer becomes one user message.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from axolotl_sdft.distillation.framing import framed_raw, plain
from axolotl_sdft.distillation.interfaces import Target


@dataclass(frozen=True)
class SegmentRows:
    """Rows of segments, some of them trained (Axolotl's ``input_output``).

    Trained segments that follow each other are one answer, which then stands in the first of them; the others become
    empty. Before an answer there must be untrained text, or there is nothing that it answers.
    """

    segments: str = "segments"
    """Column of the segments: a list of mappings with ``label`` (whether it is trained) and ``text``."""

    def missing_columns(self, column_names: Sequence[str]) -> list[str]:
        """Return the column of the segments if a dataset lacks it."""
        return [] if self.segments in column_names else [self.segments]

    def num_targets(self, row: dict[str, Any]) -> int:
        """Return how many answers are trained; 0 when the column holds something else than segments."""
        return len(self._answers(row))

    def target(self, row: dict[str, Any], index: int) -> Target:
        """Return a trained answer; its context is the text before it, as one user message."""
        segments, places = row[self.segments], self._answers(row)[index]
        before = "".join(segment["text"] for segment in segments[: places[0]])
        answer = "".join(segments[place]["text"] for place in places)
        return Target(({"role": "user", "content": plain(before)},), framed_raw(answer).text)

    def with_answer(self, row: dict[str, Any], index: int, text: str) -> dict[str, Any]:
        """Return a copy of the row with another answer between the same control tokens."""
        segments, places = list(row[self.segments]), self._answers(row)[index]
        answer = framed_raw("".join(segments[place]["text"] for place in places)).with_text(text)
        for place in places:
            segments[place] = {**segments[place], "text": answer if place == places[0] else ""}
        return {**row, self.segments: segments}

    def _answers(self, row: dict[str, Any]) -> list[list[int]]:
        """Return the places of the segments of each answer."""
        segments = row.get(self.segments)
        if not isinstance(segments, list) or not all(_is_segment(segment) for segment in segments):
            return []
        answers, prompt = [], ""
        for is_trained, run in groupby(range(len(segments)), lambda place: bool(segments[place].get("label"))):
            places = list(run)
            if not is_trained:
                prompt += "".join(segments[place]["text"] for place in places)
            elif plain(prompt):
                answers.append(places)
        return answers


def _is_segment(segment: Any) -> bool:
    return isinstance(segment, Mapping) and isinstance(segment.get("text"), str)


@dataclass(frozen=True)
class CompletionRows:
    """Rows of running text that begins with a prompt, where another column says which part that is."""

    text: str
    """Column of the whole text."""

    prompt: str
    """Column of its beginning. Rows whose text begins otherwise, or ends there, have no answer."""

    def missing_columns(self, column_names: Sequence[str]) -> list[str]:
        """Return those of the two columns that a dataset lacks."""
        return [name for name in (self.text, self.prompt) if name not in column_names]

    def num_targets(self, row: dict[str, Any]) -> int:
        """Return 1, or 0 when the text does not go on from the prompt."""
        text, prompt = row.get(self.text), row.get(self.prompt)
        if not isinstance(text, str) or not isinstance(prompt, str) or not text.startswith(prompt):
            return 0
        return int(bool(plain(prompt)) and bool(text[len(prompt) :].strip()))

    def target(self, row: dict[str, Any], index: int) -> Target:
        """Return what follows the prompt; its context is the prompt as a user message."""
        prompt = row[self.prompt]
        answer = framed_raw(row[self.text][len(prompt) :]).text
        return Target(({"role": "user", "content": plain(prompt)},), answer)

    def with_answer(self, row: dict[str, Any], index: int, text: str) -> dict[str, Any]:
        """Return a copy of the row in which the prompt goes on otherwise."""
        prompt = row[self.prompt]
        return {**row, self.text: prompt + framed_raw(row[self.text][len(prompt) :]).with_text(text)}
