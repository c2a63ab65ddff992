"""Rows with one instruction and one answer, each in a column of its own.

Here as in all row formats, replacing an answer leaves the places of the others as they were: which answers of a row are
targets depends on its structure, and on nothing that a rewritten answer may lose or gain (see
:func:`~axolotl_sdft.distillation.rows.left_alone.left_alone_for`). Where an answer starts with a thinking part
(``<think>...</think>``), only what follows is rewritten, and the thinking part stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from axolotl_sdft.distillation.rows.left_alone import LeftAlone, left_alone_for
from axolotl_sdft.distillation.rows.wordings import Wording
from axolotl_sdft.inference.interfaces import Message, Target
from axolotl_sdft.inference.reasoning import framed, plain

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
        why = left_alone_for(row[self.output], self.leaves_calls)
        return [] if why is None else [why]

    def target(self, row: dict[str, Any], index: int) -> Target:
        """Return the answer; its context is the system message, if any, and the instruction with its input.

        Both stand in the words of the type, without its control tokens.
        """
        system, instruction = self._question(row, self.wording.shown)
        context: list[Message] = [{"role": "system", "content": system}] if system else []
        asked = plain(instruction) if self.is_raw else instruction
        return Target((*context, {"role": "user", "content": asked}), framed(row[self.output]).text)

    def trained(self, row: dict[str, Any]) -> Any:
        """Return what is trained of a row: the whole text before the answer, and the answer."""
        return ["".join(self._question(row, self.wording)), row.get(self.output)]

    def _question(self, row: dict[str, Any], wording: Wording) -> tuple[str, str]:
        extra = row.get(self.input) if self.input else None
        system = row.get(self.system, self.system_prompt) if self.system else self.system_prompt
        return wording.system_text(system, extra), wording.asked(row.get(self.instruction), extra)

    def with_answer(self, row: dict[str, Any], index: int, text: str) -> dict[str, Any]:
        """Return a copy of the row with another answer."""
        return {**row, self.output: framed(row[self.output]).with_text(text)}
