"""Rows with a conversation, whose trained assistant turns are rewritten, each in its place.

What the seed model is shown of a conversation is plain text in the roles that every chat template knows: the functions
of a ``tools`` column join the system message, and calls with their results join the user's message that led to them.
The rows themselves keep their form.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from axolotl_sdft.distillation.framing import framed
from axolotl_sdft.distillation.interfaces import Message, Target
from axolotl_sdft.distillation.message_texts import is_replaceable, replaced, text_of
from axolotl_sdft.distillation.tool_texts import described_calls, described_result, described_tools, parsed_tools
from axolotl_sdft.errors import DatasetError

_RESULT_ROLES = ("tool", "function", "ipython")


@dataclass(frozen=True)
class ChatRows:
    """Rows with a conversation, whose trained assistant turns are the targets.

    A turn is left as it is when it follows neither a user's turn nor the result of a function call, when it calls
    functions itself, when its content is no text or carries training marks of its own, and when something before it
    can't be shown as plain text, such as an image. What a thinking part or a key of its own (``reasoning_content``)
    holds stays. Which end-of-turn tokens are trained (``train_on_eos``, ``train_on_eot``) plays no part.
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

    tools: str | None = "tools"
    """Column of the functions that can be called: a list, or such a list as JSON text."""

    tool_calls: str = "tool_calls"
    """Key of the calls that a message makes."""

    def missing_columns(self, column_names: Sequence[str]) -> list[str]:
        """Return the column of the conversation if a dataset lacks it."""
        return [] if self.messages in column_names else [self.messages]

    def num_targets(self, row: dict[str, Any]) -> int:
        """Return how many assistant turns are trained and can be rewritten.

        Raises:
            DatasetError: The conversation is a text that is no JSON list of messages.
        """
        return len(self._places(row, self._conversation(row)))

    def target(self, row: dict[str, Any], index: int) -> Target:
        """Return a trained assistant turn, with all turns before it as they stand in the row."""
        conversation = self._conversation(row)
        place = self._places(row, conversation)[index]
        context = self._system_messages(row, conversation)
        for message in conversation[1 if self._role(conversation[0]) == "system" else 0 : place]:
            self._add(context, message)
        reference = text_of(conversation[place][self.content]) or ""
        return Target(tuple(context), framed(reference).text)

    def with_answer(self, row: dict[str, Any], index: int, text: str) -> dict[str, Any]:
        """Return a copy of the row in which one trained turn says something else."""
        conversation = self._conversation(row)
        place = self._places(row, conversation)[index]
        message = conversation[place]
        content = message[self.content]
        answer = framed(text_of(content) or "").with_text(text)
        conversation[place] = {**message, self.content: replaced(content, answer)}
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

    def _places(self, row: dict[str, Any], conversation: list[dict[str, Any]]) -> list[int]:
        """Return where the targets stand in a conversation."""
        places: list[int] = []
        has_asked, may_answer = False, False
        for place, message in enumerate([] if row.get("images") else conversation):
            role = self._role(message)
            if has_asked and may_answer and role == "assistant" and self._is_rewritten(message):
                places.append(place)
            if not self._can_be_shown(message):
                break
            has_asked = has_asked or role == "user"
            may_answer = role == "user" or role in _RESULT_ROLES
        return places

    def _is_rewritten(self, message: Mapping[str, Any]) -> bool:
        if message.get(self.tool_calls) or not is_replaceable(message.get(self.content)):
            return False
        if self.training_detail and message.get(self.training_detail) is not None:
            return False
        says = message.get(self.training) if self.training else None
        return self.trains_assistant if says is None else bool(says)

    def _role(self, message: Mapping[str, Any]) -> Any:
        said = message.get(self.role)
        return self.roles.get(said, said) if isinstance(said, str) else said

    def _can_be_shown(self, message: Mapping[str, Any]) -> bool:
        has_content = message.get(self.content) is not None
        if has_content and text_of(message[self.content]) is None:
            return False
        role = self._role(message)
        if role == "assistant" and message.get(self.tool_calls):
            return True
        return role in _RESULT_ROLES or (has_content and role in ("system", "user", "assistant"))

    def _system_messages(self, row: dict[str, Any], conversation: list[dict[str, Any]]) -> list[Message]:
        """Return the system message, with the functions of the row; none when there is nothing to say."""
        own = self._role(conversation[0]) == "system"
        said = text_of(conversation[0][self.content]) if own else row.get(self.system) if self.system else None
        tools = parsed_tools(row.get(self.tools), self.tools) if self.tools else []
        parts = [said] if isinstance(said, str) and not self.drops_system else []
        parts += [described_tools(tools)] if tools else []
        return [{"role": "system", "content": "\n\n".join(parts)}] if parts else []

    def _add(self, context: list[Message], message: Mapping[str, Any]) -> None:
        """Add a message to what is shown; calls and results to the user's message before them."""
        role, text = self._role(message), text_of(message.get(self.content)) or ""
        if role == "assistant" and message.get(self.tool_calls):
            shown = described_calls(message[self.tool_calls], text)
        elif role in _RESULT_ROLES:
            shown = described_result(message, text)
        else:
            context.append({"role": role, "content": text})
            return
        if context and context[-1]["role"] == "user":
            context[-1] = {"role": "user", "content": f"{context[-1]['content']}\n\n{shown}"}
        else:
            context.append({"role": "user", "content": shown})
