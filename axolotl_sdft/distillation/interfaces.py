"""What the parts of the self-distilled dataset hand to each other, and what plugins implement. No torch here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from axolotl_sdft.inference.interfaces import Answer, Message, Target


class RowFormat(Protocol):
    """Knows where the conversations and the trained answers of a kind of row are. Rows are never changed in place."""

    def missing_columns(self, column_names: Sequence[str]) -> list[str]:
        """Return the columns that this format needs and a dataset lacks."""
        ...

    def num_targets(self, row: dict[str, Any]) -> int:
        """Return how many answers of a row are trained and can be rewritten; 0 leaves the row as it is.

        A format may also have a method ``left_alone(row)``, which returns a
        :class:`~axolotl_sdft.distillation.rows.left_alone.LeftAlone` for each trained answer that can't be rewritten.
        The log, the summary and the report count them.
        """
        ...

    def target(self, row: dict[str, Any], index: int) -> Target:
        """Return a trained answer with the conversation before it."""
        ...

    def with_answer(self, row: dict[str, Any], index: int, text: str) -> dict[str, Any]:
        """Return a copy of a row in which one trained answer is replaced."""
        ...


@dataclass(frozen=True)
class RowLimit:
    """How long a row may be to be trained."""

    max_tokens: int
    """``sequence_len`` of the training."""

    count_tokens: Callable[[dict[str, Any]], int]
    """Returns the tokens of a row in training; of a longer one at least one token more than the most.

    It raises whatever the training would raise for that row.
    """

    num_processes: int = 1
    """How many processes may count at the same time."""

    chat_template: str | None = None
    """The chat template that rows become tokens by, where it is not the tokenizer's own."""


Template: TypeAlias = Callable[[Target], Sequence[Message]]
"""Turns a target into the chat that asks the seed model to rewrite it."""

AnswerCheck: TypeAlias = Callable[[Answer, Target], str | None]
"""Returns why an answer is rejected, in a few words, or None when it passes."""
