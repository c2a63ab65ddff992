"""The built-in row formats: which kind of rows each of Axolotl's dataset types has, and in which columns."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.distillation.interfaces import RowFormat
from axolotl_sdft.distillation.rows.chat import ChatRows, PromptCompletionRows
from axolotl_sdft.distillation.rows.plain import CompletionRows, InstructionRows, SegmentRows
from axolotl_sdft.distillation.rows.wordings import BUILT_IN, LLAMA2_SYSTEM, STYLES, user_defined_wording
from axolotl_sdft.plugins.registry import ROW_FORMATS, registry
from axolotl_sdft.plugins.specifications import hookimpl

_INPUT = InstructionRows(input="input")
_WITH_SYSTEM = InstructionRows(input="input", system="system", required=("system",))
_QUESTIONS = InstructionRows("question", "answer")
_ORCA = InstructionRows("question", "response", system="system_prompt", required=("system_prompt",))
_ARTICLE = InstructionRows("article", "answer", input="question", required=("question",))
_CONTEXT = InstructionRows("context", "answer", input="question", required=("question",))
_DIALOGUE = InstructionRows("prompt", "generation", is_raw=True)

# The columns of each type, and the name of its wording.
_INSTRUCTION_TYPES: dict[str, tuple[InstructionRows, str]] = {
    **dict.fromkeys(("alpaca_chat", "alpaca_chat.load"), (_INPUT, "chat")),
    "alpaca_chat.load_concise": (_INPUT, "chat_concise"),
    "alpaca_chat.load_no_prompt": (_INPUT, "chat_alone"),
    **dict.fromkeys(("alpaca_instruct", "alpaca_instruct.load"), (_INPUT, "instruct")),
    "alpaca_instruct.load_no_prompt": (_INPUT, "instruct_alone"),
    "alpaca_chat.load_qa": (_QUESTIONS, "chat_concise"),
    "alpaca_chat.load_camel_ai": (InstructionRows("message_1", "message_2"), "chat_concise"),
    **dict.fromkeys(
        ("alpaca_w_system", "alpaca_w_system.load", "alpaca_w_system.load_chat"), (_WITH_SYSTEM, "chat_alone")
    ),
    "alpaca_w_system.load_instruct": (_WITH_SYSTEM, "instruct_alone"),
    "alpaca_w_system.load_open_orca": (_ORCA, "orca"),
    "alpaca_w_system.load_open_orca_chatml": (_ORCA, "orca_chatml"),
    **dict.fromkeys(("orcamini", "orcamini.load"), (_ORCA, "orcamini")),
    **dict.fromkeys(("metharme", "metharme.load"), (_DIALOGUE, "bare")),
    **dict.fromkeys(("context_qa", "context_qa.load"), (_ARTICLE, "context")),
    "context_qa.load_v2": (_CONTEXT, "context_and_question"),
    "creative_acr.load_answer": (InstructionRows(output="revision"), "creative"),
}
_STYLED_TYPES: dict[str, InstructionRows] = {  # may end in :chat, :instruct, ...
    "alpaca": _INPUT,
    "gpteacher": InstructionRows(input="input", output="response"),
    "oasst": InstructionRows("INSTRUCTION", "RESPONSE"),
}
_TLDR = "summarizetldr"  # may end in a style as well, which changes nothing

_CHAT_ROLES = {"human": "user", "gpt": "assistant"}
_OLD_CHATS = ChatRows("conversations", content="value", system=None, tools=None)
_CHAT_TYPES: dict[str, ChatRows] = {
    **dict.fromkeys(
        ("llama2_chat", "llama2_chat.load"),
        replace(_OLD_CHATS, role="from", roles=_CHAT_ROLES, default_system=LLAMA2_SYSTEM),
    ),
    **dict.fromkeys(
        ("pygmalion", "pygmalion.load"),
        replace(_OLD_CHATS, roles={"human": "user", "bot": "assistant"}, system_lead="Persona: "),
    ),
}

PROMPT_COMPLETION = "trl.prompt_completion"
"""Type of rows with a column of messages for the prompt and one for the answer. Axolotl does not know it."""

PROMPT_FIELD = "prompt_field"
"""Key of an entry of type ``completion``: the column that holds the beginning of the text. Axolotl does not know it."""

KD_TYPE = "axolotl.integrations.kd.chat_template"
"""Type of conversations with a teacher's predictions for each of their tokens, which Axolotl's own plugin trains."""

_NO_PROMPT = "its rows are running text, without a prompt and an answer"
_PREFERENCE = "its rows compare answers, and rewriting one would undo the comparison"
_CHOICE = "its answer is one of the given choices"
_REFUSED: dict[str, str] = {
    **dict.fromkeys(("pretrain", "_synthetic", "ebft"), _NO_PROMPT),
    **dict.fromkeys(("bradley_terry", "chatml", "llama3", "zephyr", "passthrough", "dpo", "orpo", "kto"), _PREFERENCE),
    KD_TYPE: "its rows hold predictions for the very tokens of each answer",
    "stepwise_supervised": "its rows judge the steps of an answer",
    "reflection": "what it trains is spread over three columns",
    "jeopardy": "it puts words in front of each answer, which a rewritten one would not fit",
    **dict.fromkeys(("explainchoice", "concisechoice"), _CHOICE),
    "context_qa.load_404": "it gives every row the same answer",
    "creative_acr.load_critique": "its answer is put together from scores and critiques in two columns",
    "creative_acr.load_revise": "its prompt is put together from scores and critiques in two columns",
    "sharegpt": (
        "Axolotl has removed this type; write the same rows as type: chat_template, field_messages: conversations, "
        "message_property_mappings: {role: from, content: value}"
    ),
}


@hookimpl
def sdft_register_row_formats(register: Callable[[str, Callable[[Mapping[str, Any]], RowFormat]], None]) -> None:
    """Register the dataset types whose rows hold prompts and answers, and ``user_defined`` for mappings."""
    for name, (instruction_rows, wording) in _INSTRUCTION_TYPES.items():
        register(name, partial(_fixed, replace(instruction_rows, wording=BUILT_IN[wording])))
    for name, instruction_rows in _STYLED_TYPES.items():
        register(name, partial(_styled_rows, instruction_rows))
    register(_TLDR, partial(_fixed, InstructionRows("article", "summary", wording=BUILT_IN["tldr"])))
    for name, chat_rows in _CHAT_TYPES.items():
        register(name, partial(_fixed, chat_rows))
    register("chat_template", _chat_template_rows)
    register("chat_template.load", _chat_template_rows)
    register(PROMPT_COMPLETION, partial(_fixed, PromptCompletionRows(roles=_CHAT_ROLES)))
    register("input_output", partial(_fixed, SegmentRows()))
    register("completion", _completion_rows)
    register("user_defined", _user_defined_rows)


def _fixed(rows: RowFormat, dataset_config: Mapping[str, Any]) -> RowFormat:
    """Return a format whose columns no setting can change."""
    return rows


def _styled_rows(rows: InstructionRows, dataset_config: Mapping[str, Any]) -> RowFormat:
    """Return a format in the style that follows the colon of its type."""
    style = str(dataset_config.get("type")).partition(":")[2] or "instruct"
    if style not in STYLES:
        raise DatasetError(
            f"type is {dataset_config.get('type')!r}, but Axolotl knows the styles {', '.join(STYLES)}; write one of "
            "them after the colon, or leave the colon out"
        )
    return replace(rows, wording=STYLES[style])


def _completion_rows(dataset_config: Mapping[str, Any]) -> RowFormat:
    prompt = dataset_config.get(PROMPT_FIELD)
    if not prompt:
        raise DatasetError(
            f"type is 'completion', which can't be self-distilled as it is: {_NO_PROMPT}. Where another column holds "
            f"the beginning of each text, name it in self_distillation: {{{PROMPT_FIELD}: prompt}} of this dataset; "
            "where prompt and answer are columns of their own, use type: {field_instruction: prompt, field_output: "
            "answer}"
        )
    return CompletionRows(str(dataset_config.get("field") or "text"), str(prompt))


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
        wording=user_defined_wording(fields),
    )


def _chat_template_rows(dataset_config: Mapping[str, Any]) -> RowFormat:
    keys = dataset_config.get("message_property_mappings") or {}
    more = [key for name, key in keys.items() if name not in ("role", "content")]
    sources = dataset_config.get("roles")
    roles = {source: role for role, names in sources.items() for source in names} if sources else _CHAT_ROLES
    trained = dataset_config.get("roles_to_train")
    return ChatRows(
        messages=dataset_config.get("field_messages") or "messages",
        role=keys.get("role") or dataset_config.get("message_field_role") or "role",
        content=keys.get("content") or dataset_config.get("message_field_content") or "content",
        tool_calls=keys.get("tool_calls") or "tool_calls",
        properties=(*more, *filter(None, (dataset_config.get("field_thinking"),))),
        roles=roles,
        trained_roles=frozenset({"assistant"} if trained is None else (roles.get(role, role) for role in trained)),
        training=dataset_config.get("message_field_training"),
        training_detail=dataset_config.get("message_field_training_detail"),
        drops_system=bool(dataset_config.get("drop_system_message")),
        tools=dataset_config.get("field_tools") or "tools",
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
        name = base if base in (*_STYLED_TYPES, _TLDR) else kind
    else:
        raise DatasetError(f"{where}.type is missing; set the type of its rows, such as alpaca or chat_template")
    reason = _REFUSED.get(name) or _REFUSED.get(re.split(r"[.:]", name)[0])
    if reason and name not in registry().names(ROW_FORMATS):
        raise DatasetError(
            f"{where}.type is {kind!r}, which can't be self-distilled: {reason}; choose another type, leave this "
            "dataset alone with self_distillation: {enabled: false}, or remove the self_distillation block"
        )
    factory = registry().resolve(ROW_FORMATS, name, f"{where}.type")
    try:
        return factory(dataset_config)
    except DatasetError as err:
        raise DatasetError(f"{where}.{err}") from err
