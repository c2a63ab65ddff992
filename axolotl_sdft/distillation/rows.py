"""The kinds of rows that can be rewritten: one instruction and one answer, or a conversation.

Which answers of a row are targets depends on its structure alone, never on what an answer says, so replacing one leaves
the places of the others as they were. Where an answer starts with a thinking part (``<think>...</think>``), only what
follows is rewritten, and the thinking part stays.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from axolotl_sdft.distillation.interfaces import Message, Target
from axolotl_sdft.errors import DatasetError

_THINKING = re.compile(r"\s*<(think|thinking|reasoning)>.*?</\1>\s*", re.DOTALL)


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
        return Target((*context, {"role": "user", "content": instruction}), _without_thinking(row[self.output]))

    def with_answer(self, row: dict[str, Any], index: int, text: str) -> dict[str, Any]:
        """Return a copy of the row with another answer."""
        return {**row, self.output: _thinking(row[self.output]) + text}


@dataclass(frozen=True)
class ChatRows:
    """Rows with a conversation, whose trained assistant turns are the targets.

    A turn is left as it is when it does not follow a user's turn, when its content is no text or carries per-character
    training marks, and when something before it can't be shown as plain text: images, tool calls, tool results.
    """

    messages: str = "messages"
    """Column of the conversation: a list of messages, or such a list as JSON text."""

    role: str = "role"
    content: str = "content"
    """Keys of a message."""

    roles: Mapping[str, str] = field(default_factory=dict)
    """What the roles in the rows mean; others mean themselves."""

    trains_assistant: bool = True
    """Whether assistant turns are trained that do not say so themselves."""

    training: str | None = None
    """Key of a message that says whether it is trained. It has the last word."""

    training_detail: str | None = None
    """Key of a message that says which of its characters are trained."""

    system: str | None = "system"
    """Column of the system message of conversations that start without one."""

    drops_system: bool = False

    def missing_columns(self, column_names: Sequence[str]) -> list[str]:
        """Return the column of the conversation if a dataset lacks it."""
        return [] if self.messages in column_names else [self.messages]

    def num_targets(self, row: dict[str, Any]) -> int:
        """Return how many assistant turns are trained and can be rewritten.

        Raises:
            DatasetError: The conversation is a text that is no JSON list of messages.
        """
        return len(self._places(self._conversation(row)))

    def target(self, row: dict[str, Any], index: int) -> Target:
        """Return a trained assistant turn, with all turns before it as they stand in the row."""
        conversation = self._conversation(row)
        place = self._places(conversation)[index]
        context = [self._plain(message) for message in conversation[:place]]
        system = row.get(self.system) if self.system else None
        if isinstance(system, str) and context[0]["role"] != "system":
            context.insert(0, {"role": "system", "content": system})
        if self.drops_system and context[0]["role"] == "system":
            del context[0]
        return Target(tuple(context), _without_thinking(conversation[place][self.content]))

    def with_answer(self, row: dict[str, Any], index: int, text: str) -> dict[str, Any]:
        """Return a copy of the row in which one trained turn says something else."""
        conversation = self._conversation(row)
        place = self._places(conversation)[index]
        message = conversation[place]
        conversation[place] = {**message, self.content: _thinking(message[self.content]) + text}
        is_json = isinstance(row[self.messages], str)
        return {**row, self.messages: json.dumps(conversation) if is_json else conversation}

    def _conversation(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the messages in a list of their own; empty when the column holds something else."""
        value = row.get(self.messages)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as err:
                raise DatasetError(
                    f"column {self.messages!r} holds a text that is not JSON ({err}): {row[self.messages][:80]!r}; "
                    "make it a list of messages, or set field_messages to the column that holds them"
                ) from err
        if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
            return []
        return list(value)

    def _places(self, conversation: list[dict[str, Any]]) -> list[int]:
        """Return where the targets stand in a conversation."""
        places = []
        for place, message in enumerate(conversation):
            follows_user = place > 0 and self._role(conversation[place - 1]) == "user"
            if follows_user and isinstance(message.get(self.content), str) and self._is_trained(message):
                places.append(place)
            if not self._is_plain(message):
                break
        return places

    def _is_trained(self, message: Mapping[str, Any]) -> bool:
        if self._role(message) != "assistant" or not self._is_plain(message):
            return False
        if self.training_detail and message.get(self.training_detail) is not None:
            return False
        says = message.get(self.training) if self.training else None
        return self.trains_assistant if says is None else bool(says)

    def _role(self, message: Mapping[str, Any]) -> Any:
        said = message.get(self.role)
        return self.roles.get(said, said) if isinstance(said, str) else said

    def _is_plain(self, message: Mapping[str, Any]) -> bool:
        is_spoken = self._role(message) in ("system", "user", "assistant")
        return is_spoken and not message.get("tool_calls") and _text(message.get(self.content)) is not None

    def _plain(self, message: Mapping[str, Any]) -> Message:
        return {"role": self._role(message), "content": _text(message.get(self.content)) or ""}


def _text(content: Any) -> str | None:
    """Return a message's content as text, parts joined as Axolotl joins them, or None when it is more than text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        return None
    texts = [part.get("text") or part.get("content") or part.get("value") for part in content]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else None


def _thinking(answer: str) -> str:
    found = _THINKING.match(answer)
    return found.group() if found else ""


def _without_thinking(answer: str) -> str:
    return answer[len(_thinking(answer)) :]
