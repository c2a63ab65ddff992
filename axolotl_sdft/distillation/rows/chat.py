"""Rows with a conversation, whose trained assistant turns are rewritten, each in its place.

What the seed model is shown of a conversation is plain text in the roles that every chat template knows: the functions
of a ``tools`` column join the system message, and calls with their results join the user's message that led to them.
The rows themselves keep their form.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.core.texts import well_formed
from axolotl_sdft.distillation.rows.left_alone import CALLS, CALLS_AS_TEXT, LeftAlone, left_alone_for
from axolotl_sdft.distillation.rows.message_texts import (
    described_calls,
    described_result,
    described_tools,
    is_replaceable,
    made_calls,
    parsed_tools,
    replaced,
    text_of,
)
from axolotl_sdft.inference.interfaces import Message, Target
from axolotl_sdft.inference.reasoning import framed

_RESULT_ROLES = ("tool", "function", "ipython")
_TRAINED_KEYS = ("name", "tool_call_id", "reasoning_content", "thinking")
"""Keys of a message that chat templates write out, beside its role, content and calls."""

_SHOWN_ROLES = ("system", "user", "assistant", *_RESULT_ROLES)
_CALLING_ROLES = ("function_call", "tool_call", "tool_calls")
"""Roles whose turns are nothing but a call, as JSON, in the datasets that have them."""

_MAP_ROLES = (
    "map it with `roles` of this dataset, such as "
    "roles: {system: [developer], user: [human], assistant: [gpt, function_call], tool: [observation]}"
)
_SPELT = "roles count as they are spelt, and Axolotl trains no turn of this one; map it with `roles` of this dataset"
_PICTURES = LeftAlone("the row has pictures, which the seed model is not shown")
_MARKED = LeftAlone("marks within it say what is trained of it")
_NOT_ASKED = LeftAlone("no user turn before it")
_OLD_KEY = LeftAlone(
    "calls a function under the old key function_call",
    "chat templates read tool_calls alone, so such a call is not trained; write it as tool_calls",
)
_GOES_ON = LeftAlone("follows neither a user turn nor the result of a call")


@dataclass(frozen=True)
class ChatRows:
    """Rows with a conversation, whose trained assistant turns are the targets.

    A turn is left as it is when it follows neither a user's turn nor the result of a function call, when it calls
    functions itself, when its content is not text or carries training marks of its own, and when something before it
    can't be shown as plain text, such as an image or a turn of an unknown role: :meth:`left_alone` tells. What a
    thinking part or a key of its own (``reasoning_content``) holds stays. Which end-of-turn tokens are trained
    (``train_on_eos``, ``train_on_eot``) plays no part.
    """

    messages: str = "messages"
    """Column of the conversation: a list of messages, or such a list as JSON text."""

    role: str = "role"
    content: str = "content"
    """Keys of a message."""

    roles: Mapping[str, str] = field(default_factory=dict)
    """What the roles in the rows mean; others mean themselves."""

    trained_roles: frozenset[str] = frozenset({"assistant"})
    """Roles, after ``roles``, whose turns are trained where they do not say so themselves."""

    training: str | None = None
    """Key of a message that says whether it is trained. It has the last word."""

    training_detail: str | None = None
    """Key of a message that says which of its characters are trained."""

    system: str | None = "system"
    """Column of the system message of conversations that start without one."""

    default_system: str | None = None
    """System message that the type gives conversations without one."""

    system_lead: str = ""
    """What the type puts before a system message."""

    drops_system: bool = False

    tools: str | None = "tools"
    """Column of the functions that can be called: a list, or such a list as JSON text."""

    tool_calls: str = "tool_calls"
    """Key of the calls that a message makes; the older key ``function_call`` counts as well."""

    properties: tuple[str, ...] = ()
    """Further keys of a message that its settings hand to the chat template."""

    leaves_calls: bool = False
    """Whether turns that call functions in the markup of a text are left as they are, as those with ``tool_calls``."""

    def missing_columns(self, column_names: Sequence[str]) -> list[str]:
        """Return the column of the conversation if a dataset lacks it."""
        return [] if self.messages in column_names else [self.messages]

    def num_targets(self, row: dict[str, Any]) -> int:
        """Return how many assistant turns are trained and can be rewritten.

        Raises:
            DatasetError: The conversation is a text that is not a JSON list of messages.
        """
        return len(self._places(row, self._conversation(row)))

    def count_targets(self, row: dict[str, Any]) -> tuple[int, list[LeftAlone]]:
        """Return what :meth:`num_targets` and :meth:`left_alone` do, in half the time; they raise the same."""
        fates = [why for _, why in self._fates(row, self._conversation(row))]
        return fates.count(None), [why for why in fates if why is not None]

    def left_alone(self, row: dict[str, Any]) -> list[LeftAlone]:
        """Return why each trained turn that can't be rewritten is left as it is; also of assistant turns not trained.

        Raises:
            DatasetError: The conversation is a text that is not a JSON list of messages.
        """
        return [why for _, why in self._fates(row, self._conversation(row)) if why is not None]

    def target(self, row: dict[str, Any], index: int) -> Target:
        """Return a trained assistant turn, with all turns before it as they stand in the row."""
        conversation = self._conversation(row)
        place = self._places(row, conversation)[index]
        context = self._system_messages(row, conversation)
        for message in conversation[1 if self._role(conversation[0]) == "system" else 0 : place]:
            self._add(context, message)
        reference = text_of(conversation[place][self.content]) or ""
        return Target(tuple(context), well_formed(framed(reference).text))

    def trained(self, row: dict[str, Any]) -> Any:
        """Return what is trained of a row: other columns, and keys of messages that no template reads, play no part.

        Where no conversation can be read, it is the whole row.
        """
        conversation = self._conversation(row)
        if not conversation:
            return row
        keys = (*_TRAINED_KEYS, *self.properties, self.tool_calls, self.training, self.training_detail)
        said = []
        for message in conversation:
            content = message.get(self.content)
            text = text_of(content) if is_replaceable(content) else content  # parts may say whether they are trained
            said.append([self._role(message), text, {key: message.get(key) for key in keys if key}])
        tools = parsed_tools(row.get(self.tools), self.tools) if self.tools else []
        return [said, row.get(self.system) if self.system else None, tools, row.get("images")]

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
        return [place for place, why in self._fates(row, conversation) if why is None]

    def _fates(self, row: dict[str, Any], conversation: list[dict[str, Any]]) -> Iterator[tuple[int, LeftAlone | None]]:
        """Yield each trained or assistant turn, with why it is left alone; None where it is a target."""
        has_asked, may_answer = False, False
        unknown: dict[str, None] = {}
        obstacle = _PICTURES if row.get("images") else None
        for place, message in enumerate(conversation):
            role = self._role(message)
            if self._is_trained(message) or role == "assistant" or _lower(role) == "assistant":
                why = self._own_reason(message) or _of_roles(unknown) or obstacle
                why = why or (None if may_answer and has_asked else _GOES_ON if has_asked else _NOT_ASKED)
                yield place, why
            if role not in _SHOWN_ROLES:
                unknown[str(role)] = None
            obstacle = obstacle or self._obstacle(message)
            has_asked = has_asked or role == "user"
            may_answer = role == "user" or role in _RESULT_ROLES

    def _own_reason(self, message: Mapping[str, Any]) -> LeftAlone | None:
        """Return why a turn is left alone for what it is, whatever stands before it."""
        role, content = self._role(message), message.get(self.content)
        if role != "assistant":
            way_out = _SPELT if _lower(role) == "assistant" else _MAP_ROLES
            way_out = "only turns of the assistant are rewritten" if role in _SHOWN_ROLES else way_out
            return LeftAlone(f"role {role!r}", way_out)
        if not self._is_trained(message):
            return self._untrained(message)
        if self._calls(message):
            return CALLS if made_calls(message.get(self.tool_calls), None) else _OLD_KEY
        if self.leaves_calls and _lower(message.get(self.role)) in _CALLING_ROLES:
            return CALLS_AS_TEXT
        text = text_of(content)
        if content is None or text is None:
            return _no_text("assistant", content)
        has_marks = self.training_detail and message.get(self.training_detail) is not None
        return _MARKED if has_marks or not is_replaceable(content) else left_alone_for(text, self.leaves_calls)

    def _is_trained(self, message: Mapping[str, Any]) -> bool:
        says = message.get(self.training) if self.training else None
        role = self._role(message)
        return isinstance(role, str) and role in self.trained_roles if says is None else bool(says)

    def _untrained(self, message: Mapping[str, Any]) -> LeftAlone:
        says_so = self.training and message.get(self.training) is not None
        why = f"its {self.training!r} is false" if says_so else "roles_to_train lacks the assistant"
        return LeftAlone(f"not trained: {why}", is_trained=False)

    def _role(self, message: Mapping[str, Any]) -> Any:
        said = message.get(self.role)
        return self.roles.get(said, said) if self.roles and isinstance(said, str) else said

    def _calls(self, message: Mapping[str, Any]) -> list[Any]:
        """Return the calls that a turn makes under a key of their own."""
        return made_calls(message.get(self.tool_calls), message.get("function_call"))

    def _obstacle(self, message: Mapping[str, Any]) -> LeftAlone | None:
        """Return why turns after this one can't be rewritten: it can't be shown as plain text."""
        role, content = self._role(message), message.get(self.content)
        if content is None and (role in _RESULT_ROLES or self._calls(message)):
            return None
        return _no_text(str(role), content) if text_of(content) is None else None

    def _system_messages(self, row: dict[str, Any], conversation: list[dict[str, Any]]) -> list[Message]:
        """Return the system message, with the functions of the row; none when there is nothing to say."""
        own = self._role(conversation[0]) == "system"
        said = text_of(conversation[0][self.content]) if own else row.get(self.system) if self.system else None
        said = f"{self.system_lead}{said}" if isinstance(said, str) else self.default_system
        tools = parsed_tools(row.get(self.tools), self.tools) if self.tools else []
        parts = [said] if said is not None and not self.drops_system else []
        parts += [described_tools(tools)] if tools else []
        return [{"role": "system", "content": well_formed("\n\n".join(parts))}] if parts else []

    def _add(self, context: list[Message], message: Mapping[str, Any]) -> None:
        """Add a message to what is shown; calls and results to the user's message before them."""
        role, text = self._role(message), well_formed(text_of(message.get(self.content)) or "")
        calls = self._calls(message) if role == "assistant" else []
        if calls:
            shown = well_formed(described_calls(calls, text))
        elif role in _RESULT_ROLES:
            shown = well_formed(described_result(message, text))
        else:
            context.append({"role": role, "content": text})
            return
        if context and context[-1]["role"] == "user":
            context[-1] = {"role": "user", "content": f"{context[-1]['content']}\n\n{shown}"}
        else:
            context.append({"role": "user", "content": shown})


_IN_COMPLETION = "sdft_in_completion"


@dataclass(frozen=True)
class PromptCompletionRows(ChatRows):
    """Rows whose conversation is split as TRL does: messages of the prompt, and those that are trained after them."""

    training: str | None = _IN_COMPLETION
    """Set on the messages while they are looked at; no row holds it."""

    prompt: str = "prompt"
    completion: str = "completion"
    """Columns of the two parts."""

    def missing_columns(self, column_names: Sequence[str]) -> list[str]:
        """Return which of the two columns a dataset lacks."""
        return [name for name in (self.prompt, self.completion) if name not in column_names]

    def with_answer(self, row: dict[str, Any], index: int, text: str) -> dict[str, Any]:
        """Return a copy of the row in which one turn of the completion says something else."""
        whole = super().with_answer({**row, self.messages: None}, index, text)[self.messages]
        said = [{key: value for key, value in message.items() if key != _IN_COMPLETION} for message in whole]
        return {**row, self.completion: said[len(row[self.prompt] or ()) :]}

    def _conversation(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        parts = ((self.prompt, False), (self.completion, True))
        return [
            {**message, _IN_COMPLETION: is_trained and self._role(message) in self.trained_roles}
            for name, is_trained in parts
            for message in row.get(name) or ()
        ]

    def _untrained(self, message: Mapping[str, Any]) -> LeftAlone:
        return LeftAlone(f"not trained: a turn of column {self.prompt!r}", is_trained=False)


def _lower(role: Any) -> Any:
    return role.lower() if isinstance(role, str) else role


def _of_roles(unknown: Mapping[str, None]) -> LeftAlone | None:
    """Return why a turn is left alone after turns of unknown roles."""
    if not unknown:
        return None
    is_spelt_otherwise = all(role.lower() in _SHOWN_ROLES for role in unknown)
    named = ", ".join(map(repr, unknown))
    return LeftAlone(f"role {named} before it", _SPELT if is_spelt_otherwise else _MAP_ROLES)


def _no_text(role: str, content: Any) -> LeftAlone:
    """Return why a turn is left alone that is, or follows, one without text."""
    if content is None:
        return LeftAlone(f"a turn of the role {role!r} without content")
    return LeftAlone(f"a turn of the role {role!r} whose content is not text alone")
