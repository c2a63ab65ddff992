"""Rows with one instruction and one answer, each in a column of its own.

Here as in all row formats, which answers of a row are targets depends on its structure alone, never on what an answer
says, so replacing one leaves the places of the others as they were. Where an answer starts with a thinking part
(``<think>...</think>``), only what follows is rewritten, and the thinking part stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from axolotl_sdft.distillation.framing import framed
from axolotl_sdft.distillation.interfaces import Message, Target


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

    def missing_columns(self, column_names: Sequence[str]) -> list[str]:
        """Return the required columns that a dataset lacks."""
        return [name for name in (self.instruction, self.output, *self.required) if name not in column_names]

    def num_targets(self, row: dict[str, Any]) -> int:
        """Return 1, or 0 when the instruction or the answer is no text."""
        return int(isinstance(row.get(self.instruction), str) and isinstance(row.get(self.output), str))

    def target(self, row: dict[str, Any], index: int) -> Target:
        """Return the answer; its context is the system message, if any, and the instruction with its input."""
        system = row.get(self.system, self.system_prompt) if self.system else self.system_prompt
        extra = row.get(self.input) if self.input else None
        instruction = f"{row[self.instruction]}\n\n{extra}" if extra else row[self.instruction]
        context: list[Message] = [{"role": "system", "content": system}] if system else []
        return Target((*context, {"role": "user", "content": instruction}), framed(row[self.output]).text)

    def with_answer(self, row: dict[str, Any], index: int, text: str) -> dict[str, Any]:
        """Return a copy of the row with another answer."""
        return {**row, self.output: framed(row[self.output]).with_text(text)}
