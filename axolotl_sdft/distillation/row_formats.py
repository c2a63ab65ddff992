"""Built-in row formats: where Axolotl's dataset types keep the instruction and the answer that is trained.

Which answers of a row are targets depends on its structure alone, never on what an answer says, so replacing one leaves
the places of the others as they were. Where an answer starts with a thinking part (``<think>...</think>``), only what
follows is rewritten, and the thinking part stays.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from axolotl_sdft.distillation.interfaces import Message, RowFormat, Target
from axolotl_sdft.errors import DatasetError
from axolotl_sdft.hookspecs import hookimpl
from axolotl_sdft.plugins import ROW_FORMATS, registry

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


# --- Axolotl's dataset types ---

_INPUT = InstructionRows(input="input")
_WITH_SYSTEM = InstructionRows(input="input", system="system", required=("system",))
_QUESTIONS = InstructionRows("question", "answer")
_ORCA = InstructionRows("question", "response", system="system_prompt", required=("system_prompt",))
_ARTICLE = InstructionRows("article", "answer", input="question", required=("question",))
_CONTEXT = InstructionRows("context", "answer", input="question", required=("question",))

_INSTRUCTION_TYPES: dict[str, InstructionRows] = {
    "alpaca": _INPUT,
    **dict.fromkeys(("alpaca_chat", "alpaca_chat.load", "alpaca_chat.load_concise"), _INPUT),
    **dict.fromkeys(("alpaca_chat.load_no_prompt", "alpaca_instruct", "alpaca_instruct.load"), _INPUT),
    "alpaca_instruct.load_no_prompt": _INPUT,
    "alpaca_chat.load_qa": _QUESTIONS,
    "alpaca_chat.load_camel_ai": InstructionRows("message_1", "message_2"),
    **dict.fromkeys(("alpaca_w_system", "alpaca_w_system.load"), _WITH_SYSTEM),
    **dict.fromkeys(("alpaca_w_system.load_instruct", "alpaca_w_system.load_chat"), _WITH_SYSTEM),
    **dict.fromkeys(("alpaca_w_system.load_open_orca", "alpaca_w_system.load_open_orca_chatml"), _ORCA),
    **dict.fromkeys(("orcamini", "orcamini.load"), _ORCA),
    "gpteacher": InstructionRows(input="input", output="response"),
    "oasst": InstructionRows("INSTRUCTION", "RESPONSE"),
    "summarizetldr": InstructionRows("article", "summary"),
    **dict.fromkeys(("metharme", "metharme.load"), InstructionRows("prompt", "generation")),
    **dict.fromkeys(("context_qa", "context_qa.load"), _ARTICLE),
    "context_qa.load_v2": _CONTEXT,
    "creative_acr.load_answer": InstructionRows(output="revision"),
}
_STYLED_TYPES = ("alpaca", "gpteacher", "oasst", "summarizetldr")  # may end in :chat, :instruct, ...

_CHAT_ROLES = {"human": "user", "gpt": "assistant"}
_CHAT_TYPES: dict[str, ChatRows] = {
    name: ChatRows("conversations", key, "value", {"human": "user", assistant: "assistant"}, system=None)
    for module, key, assistant in (("llama2_chat", "from", "gpt"), ("pygmalion", "role", "bot"))
    for name in (module, f"{module}.load")
}

_NO_PROMPT = "its rows are running text, without a prompt and an answer"
_PREFERENCE = "its rows compare answers, and rewriting one would undo the comparison"
_CHOICE = "its answer is one of the given choices"
_REFUSED: dict[str, str] = {
    **dict.fromkeys(("completion", "pretrain", "_synthetic", "ebft"), _NO_PROMPT),
    "input_output": "its segments do not say which text is the prompt",
    **dict.fromkeys(("bradley_terry", "chatml", "llama3", "zephyr", "passthrough", "dpo", "orpo", "kto"), _PREFERENCE),
    "stepwise_supervised": "its rows judge the steps of an answer",
    "reflection": "what it trains is spread over three columns",
    "jeopardy": "it puts words in front of each answer, which a rewritten one would not fit",
    **dict.fromkeys(("explainchoice", "concisechoice"), _CHOICE),
    "context_qa.load_404": "it gives every row the same answer",
}


@hookimpl
def sdft_register_row_formats(register: Callable[[str, Callable[[Mapping[str, Any]], RowFormat]], None]) -> None:
    """Register the dataset types whose rows hold prompts and answers, and ``user_defined`` for mappings."""
    for name, instruction_rows in _INSTRUCTION_TYPES.items():
        register(name, partial(_fixed, instruction_rows))
    for name, chat_rows in _CHAT_TYPES.items():
        register(name, partial(_fixed, chat_rows))
    register("chat_template", _chat_template_rows)
    register("chat_template.load", _chat_template_rows)
    register("user_defined", _user_defined_rows)


def _fixed(rows: RowFormat, dataset_config: Mapping[str, Any]) -> RowFormat:
    """Return a format whose columns no setting can change."""
    return rows


def _user_defined_rows(dataset_config: Mapping[str, Any]) -> RowFormat:
    fields = dataset_config.get("type")
    if not isinstance(fields, Mapping):
        raise DatasetError(
            f"type is {fields!r}; write the field names under it instead, such as "
            "type: {field_instruction: question, field_output: answer}"
        )
    return InstructionRows(
        instruction=fields.get("field_instruction") or "instruction",
        output=fields.get("field_output") or "output",
        input=fields.get("field_input") or "input",
        system=fields.get("field_system") or "system",
        system_prompt=fields.get("system_prompt") or "",
    )


def _chat_template_rows(dataset_config: Mapping[str, Any]) -> RowFormat:
    keys = dataset_config.get("message_property_mappings") or {}
    sources = dataset_config.get("roles")
    roles = {source: role for role, names in sources.items() for source in names} if sources else _CHAT_ROLES
    trained = dataset_config.get("roles_to_train")
    return ChatRows(
        messages=dataset_config.get("field_messages") or "messages",
        role=keys.get("role") or dataset_config.get("message_field_role") or "role",
        content=keys.get("content") or dataset_config.get("message_field_content") or "content",
        roles=roles,
        trains_assistant=trained is None or "assistant" in [roles.get(role, role) for role in trained],
        training=dataset_config.get("message_field_training"),
        training_detail=dataset_config.get("message_field_training_detail"),
        drops_system=bool(dataset_config.get("drop_system_message")),
    )


def resolve_row_format(dataset_config: Mapping[str, Any], where: str = "dataset") -> RowFormat:
    """Return the row format that an entry of ``datasets`` asks for with its ``type``.

    Args:
        dataset_config: The entry: ``type``, and the field names that go with it.
        where: What messages call the entry, such as ``datasets[0]``.

    Raises:
        DatasetError: ``type`` is missing, or its rows hold nothing that can be rewritten; the message says why.
        UnknownNameError: No row format is registered for ``type``; the message lists those that are.
    """
    kind = dataset_config.get("type")
    if isinstance(kind, Mapping):
        name = "user_defined"
    elif isinstance(kind, str) and kind:
        base = kind.split(":")[0]
        name = base if base in _STYLED_TYPES else kind
    else:
        raise DatasetError(f"{where}.type is missing; set the type of its rows, such as alpaca or chat_template")
    reason = _REFUSED.get(name) or _REFUSED.get(re.split(r"[.:]", name)[0])
    if reason and name not in registry().names(ROW_FORMATS):
        raise DatasetError(
            f"{where}.type is {kind!r}, which can't be self-distilled: {reason}; "
            "choose another type, or remove the self_distillation block"
        )
    factory = registry().resolve(ROW_FORMATS, name, f"{where}.type")
    return factory(dataset_config)
