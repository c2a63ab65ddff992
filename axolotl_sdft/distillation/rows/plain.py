"""Rows that are not chats: an instruction and its answer in columns, and raw text with a template written out.

Here as in all row formats, replacing an answer leaves the places of the others as they were: which answers of a row are
targets depends on its structure, and on nothing that a rewritten answer may lose or gain (see
:func:`~axolotl_sdft.distillation.rows.left_alone.left_alone_for`). Where an answer starts with a thinking part
(``<think>...</think>``), only what follows is rewritten, and the thinking part stays.

The model that rewrites gets its own chat template. So the control tokens of the raw text (``<|im_start|>user``,
``[INST]``, ``</s>`` and their like) are taken out of what it sees, and stay where they are in the row: a new answer is
put between the same tokens, and the same space, as the old one. Everything before an answer becomes one user message.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from axolotl_sdft.distillation.rows.left_alone import NO_TEXT, LeftAlone, left_alone_for
from axolotl_sdft.distillation.rows.wordings import Wording
from axolotl_sdft.inference.interfaces import Message, Target
from axolotl_sdft.inference.reasoning import framed_raw, plain

_ASKED = (str, int, float)
_BESIDE = Wording("{instruction}\n\n{input}", "{instruction}")


@dataclass(frozen=True)
class InstructionRows:
    """Rows with one instruction and one answer, each in a column of its own."""

    instruction: str = "instruction"
    output: str = "output"

    input: str | None = None
    """Column that continues the instruction."""

    system: str | None = None
    """Column of the system message."""

    system_prompt: str = ""
    """System message of rows without that column."""

    required: tuple[str, ...] = ()
    """Which of ``input`` and ``system`` a dataset can't do without."""

    wording: Wording = _BESIDE
    """What the type puts around the columns."""

    is_raw: bool = False
    """Whether the instruction holds control tokens of a chat, which are not shown."""

    leaves_calls: bool = False
    """Whether answers that call functions in the markup of a text are left as they are."""

    @property
    def question_columns(self) -> tuple[str, ...]:
        """Columns that the question is made of. Numbers in them become text, as in Axolotl."""
        return tuple(name for name in (self.instruction, self.input, self.system) if name)

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """Columns that must hold text."""
        return (self.output,)

    def missing_columns(self, column_names: Sequence[str]) -> list[str]:
        """Return the required columns that a dataset lacks."""
        return [name for name in (self.instruction, self.output, *self.required) if name not in column_names]

    def num_targets(self, row: dict[str, Any]) -> int:
        """Return 1, or 0 when :meth:`left_alone` tells why not."""
        return int(not self.left_alone(row))

    def count_targets(self, row: dict[str, Any]) -> tuple[int, list[LeftAlone]]:
        """Return what :meth:`num_targets` and :meth:`left_alone` do, in half the time."""
        told = self.left_alone(row)
        return int(not told), told

    def left_alone(self, row: dict[str, Any]) -> list[LeftAlone]:
        """Return why the answer is left as it is, such as that it is not text; nothing where it is a target."""
        for column, kinds in ((self.instruction, _ASKED), (self.output, str)):
            if not isinstance(value := row.get(column), kinds):
                kind = "null" if value is None else type(value).__name__
                return [LeftAlone(f"column {column!r} holds no text ({kind})")]
        why = left_alone_for(framed_raw(row[self.output]).text, self.leaves_calls)
        return [] if why is None else [why]

    def target(self, row: dict[str, Any], index: int) -> Target:
        """Return the answer; its context is the system message, if any, and the instruction with its input.

        Both stand in the words of the type, without its control tokens.
        """
        system, instruction = self._question(row, self.wording.shown)
        context: list[Message] = [{"role": "system", "content": system}] if system else []
        asked = plain(instruction) if self.is_raw else instruction
        return Target((*context, {"role": "user", "content": asked}), framed_raw(row[self.output]).text)

    def trained(self, row: dict[str, Any]) -> Any:
        """Return what is trained of a row: the whole text before the answer, and the answer."""
        return ["".join(self._question(row, self.wording)), row.get(self.output)]

    def _question(self, row: dict[str, Any], wording: Wording) -> tuple[str, str]:
        extra = row.get(self.input) if self.input else None
        system = row.get(self.system, self.system_prompt) if self.system else self.system_prompt
        return wording.system_text(system, extra), wording.asked(row.get(self.instruction), extra)

    def with_answer(self, row: dict[str, Any], index: int, text: str) -> dict[str, Any]:
        """Return a copy of the row with another answer between the same space and control tokens."""
        return {**row, self.output: framed_raw(row[self.output]).with_text(text)}


_NOT_SEGMENTS = LeftAlone("its segments are not a list of mappings with label and text")
_NO_PROMPT = LeftAlone("no untrained text before it")
_OTHER_BEGINNING = LeftAlone(
    "its text does not begin with its prompt",
    "name the column that the text begins with as `prompt_field`",
)
_NO_ANSWER = LeftAlone("nothing follows its prompt")
_EMPTY_PROMPT = LeftAlone("its prompt is empty")


@dataclass(frozen=True)
class SegmentRows:
    """Rows of segments, some of them trained (Axolotl's ``input_output``).

    Trained segments that follow each other are one answer, which then stands in the first of them; the others become
    empty. Before an answer there must be untrained text, or there is nothing that it answers.
    """

    segments: str = "segments"
    """Column of the segments: a list of mappings with ``label`` (whether it is trained) and ``text``."""

    leaves_calls: bool = False
    """Whether answers that call functions in the markup of a text are left as they are."""

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

    def trained(self, row: dict[str, Any]) -> Any:
        """Return what is trained of a row: its segments, which may hold keys of no part in it; else the whole row."""
        segments: Any = row.get(self.segments)
        if not _are_segments(segments):
            return row
        return [[bool(part.get("label")), part["text"]] for part in segments]

    def with_answer(self, row: dict[str, Any], index: int, text: str) -> dict[str, Any]:
        """Return a copy of the row with another answer between the same control tokens."""
        segments, places = list(row[self.segments]), self._answers(row)[index]
        answer = framed_raw("".join(segments[place]["text"] for place in places)).with_text(text)
        for place in places:
            segments[place] = {**segments[place], "text": answer if place == places[0] else ""}
        return {**row, self.segments: segments}

    def left_alone(self, row: dict[str, Any]) -> list[LeftAlone]:
        """Return why each trained answer that is not a target is left as it is."""
        if not _are_segments(row.get(self.segments)):
            return [_NOT_SEGMENTS]
        return [why for _, why in self._fates(row) if why is not None]

    def _answers(self, row: dict[str, Any]) -> list[list[int]]:
        """Return the places of the segments of each answer."""
        return [places for places, why in self._fates(row) if why is None]

    def _fates(self, row: dict[str, Any]) -> Iterator[tuple[list[int], LeftAlone | None]]:
        """Yield the places of each trained answer, with why it is left alone; None where it is a target."""
        segments: Any = row.get(self.segments)
        prompt = ""
        if not _are_segments(segments):
            return
        for is_trained, run in groupby(range(len(segments)), lambda place: bool(segments[place].get("label"))):
            places = list(run)
            text = "".join(segments[place]["text"] for place in places)
            if not is_trained:
                prompt += text
            elif plain(prompt):
                yield places, left_alone_for(framed_raw(text).text, self.leaves_calls)
            elif plain(text):  # control tokens alone are not an answer
                yield places, _NO_PROMPT


def _are_segments(segments: Any) -> bool:
    return isinstance(segments, list) and all(_is_segment(segment) for segment in segments)


def _is_segment(segment: Any) -> bool:
    return isinstance(segment, Mapping) and isinstance(segment.get("text"), str)


@dataclass(frozen=True)
class CompletionRows:
    """Rows of running text that begins with a prompt, where another column says which part that is."""

    text: str
    """Column of the whole text."""

    prompt: str
    """Column of its beginning. Rows whose text begins otherwise, or ends there, have no answer."""

    leaves_calls: bool = False
    """Whether answers that call functions in the markup of a text are left as they are."""

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """Columns that must hold text."""
        return self.text, self.prompt

    def missing_columns(self, column_names: Sequence[str]) -> list[str]:
        """Return those of the two columns that a dataset lacks."""
        return [name for name in (self.text, self.prompt) if name not in column_names]

    def num_targets(self, row: dict[str, Any]) -> int:
        """Return 1, or 0 when :meth:`left_alone` tells why not."""
        return int(not self.left_alone(row))

    def left_alone(self, row: dict[str, Any]) -> list[LeftAlone]:
        """Return why the text is left as it is, such as that it does not go on from the prompt."""
        text, prompt = row.get(self.text), row.get(self.prompt)
        if not isinstance(text, str) or not isinstance(prompt, str):
            return [NO_TEXT]
        if not text.startswith(prompt):
            return [_OTHER_BEGINNING]
        if not plain(prompt):
            return [_EMPTY_PROMPT]
        if not text[len(prompt) :].strip():
            return [_NO_ANSWER]
        why = left_alone_for(framed_raw(text[len(prompt) :]).text, self.leaves_calls)
        return [] if why is None else [why]

    def target(self, row: dict[str, Any], index: int) -> Target:
        """Return what follows the prompt; its context is the prompt as a user message."""
        prompt = row[self.prompt]
        answer = framed_raw(row[self.text][len(prompt) :]).text
        return Target(({"role": "user", "content": plain(prompt)},), answer)

    def trained(self, row: dict[str, Any]) -> Any:
        """Return what is trained of a row: the whole text."""
        return row.get(self.text)

    def with_answer(self, row: dict[str, Any], index: int, text: str) -> dict[str, Any]:
        """Return a copy of the row in which the prompt goes on otherwise."""
        prompt = row[self.prompt]
        return {**row, self.text: prompt + framed_raw(row[self.text][len(prompt) :]).with_text(text)}
