"""What dataset types put around the columns of a row: the task in words, the marks of a chat template, headings.

Axolotl trains on the whole of it. The seed model gets its own chat template, so it is shown the words alone: control
tokens are taken out, and of the built-in types the headings too that say whose turn it is (``### Response:``,
``USER:``). Formats are those of Axolotl, filled in by ``str.format`` as there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from string import Formatter
from typing import Any

from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.inference.reasoning import plain

_HEADING = re.compile(
    r"^### (?:Instruction|Input|Additional Context|Response|System|User|Human|Assistant):\n?|"
    r"^(?:SYSTEM|USER|ASSISTANT): ?",
    re.MULTILINE,
)
_OPENS = r"<\|(?:im_start|start_header_id|header_start|start_of_role|start)\|>\s*"
_ASSISTANT = re.compile(
    rf"{_OPENS}assistant|(?:<start_of_turn>|<\|turn>)[ \t]*model|<\|(?:im_)?(?:assistant|model)\|>|\[\|assistant\|\]|"
    r"\[/INST\]"
)
_USER = re.compile(rf"{_OPENS}user|(?:<start_of_turn>|<\|turn>)[ \t]*user|<\|(?:im_)?user\|>|\[\|user\|\]|\[INST\]")
_UNKNOWN_TOKEN = re.compile(r"<\||\|>|\[\||\|\]|\[/?INST\b|<</?SYS")


@dataclass(frozen=True)
class Wording:
    """The formats of a dataset type: what stands around an instruction, its input and a system message."""

    turn: str
    """Of rows with an input. Holds ``{instruction}`` and ``{input}``."""

    turn_without_input: str
    system: str = "{system}"
    """Of the system message. Empty: there is none."""

    preamble: str = ""
    """System message of all rows with an input."""

    preamble_without_input: str = ""
    """System message of all rows without one."""

    has_headings: bool = True
    """Whether lines such as ``### Response:`` only say whose turn it is."""

    @cached_property
    def shown(self) -> "Wording":
        """The same in words alone, as a person would write it to somebody."""
        cleaned: dict[str, Any] = {
            name: self._cleaned(getattr(self, name)) for name in ("turn", "turn_without_input", "system")
        }
        preambles: dict[str, Any] = {
            name: getattr(self, name).strip() for name in ("preamble", "preamble_without_input")
        }
        return replace(self, **cleaned, **preambles)

    def _cleaned(self, text: str) -> str:
        return plain(_HEADING.sub("", text) if self.has_headings else text)

    def asked(self, instruction: Any, extra: Any) -> str:
        """Return an instruction in its format; ``extra`` is its input, where there is one."""
        if extra:
            return self.turn.format(instruction=instruction, input=extra)
        return self.turn_without_input.format(instruction=instruction)

    def system_text(self, system: Any, extra: Any) -> str:
        """Return the system message of a row: its own, else the preamble; empty where there is neither."""
        said = system or (self.preamble if extra else self.preamble_without_input)
        return self.system.format(system=said) if said else ""


def user_defined_wording(fields: Mapping[str, Any]) -> Wording:
    """Return the wording of a user-defined ``type``: its ``format``, ``no_input_format`` and ``system_format``.

    Raises:
        DatasetError: One of them can't be filled in, or can't be told in words; the message begins with its key.
    """
    texts = {
        "format": ("{instruction} {input} ", ("instruction", "input")),
        "no_input_format": ("{instruction} ", ("instruction",)),
        "system_format": ("{system}", ("system",)),
    }
    given = {key: default if fields.get(key) is None else fields[key] for key, (default, _) in texts.items()}
    for key, (_, names) in texts.items():
        _require_fillable(key, given[key], names)
    for key in ("format", "no_input_format"):
        _require_one_turn(key, given[key])
    return Wording(given["format"], given["no_input_format"], given["system_format"], has_headings=False)


def _require_fillable(key: str, text: Any, names: tuple[str, ...]) -> None:
    known = " and ".join(f"{{{name}}}" for name in names)
    if not isinstance(text, str):
        raise DatasetError(f"type.{key} is {text!r}, which is not a text; write one with {known}")
    try:
        used = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
        text.format(**dict.fromkeys(names, ""))
    except (ValueError, LookupError, AttributeError) as err:
        raise DatasetError(
            f"type.{key} is {text!r}, which can't be filled in ({type(err).__name__}: {err}); it may hold {known}, and "
            "a brace of its own is written twice: {{ and }}"
        ) from err
    if any(name not in names for name in used):
        raise DatasetError(f"type.{key} is {text!r}, which uses more than the plain names {known}; write these alone")
    words = plain(text)
    if key != "system_format" and not (words or used):
        raise DatasetError(f"type.{key} is {text!r}, which holds neither words nor {known}; write it with {known}")
    left = _UNKNOWN_TOKEN.search(words)
    if left or any(f"{{{name}}}" not in words for name in used):
        raise DatasetError(
            f"type.{key} is {text!r}, whose words can't be told from its control tokens; write whole tokens such as "
            f"<|im_end|> beside {known}, or use type: chat_template with a chat_template"
        )


def _require_one_turn(key: str, text: str) -> None:
    """Refuse a format that holds a whole exchange before the question: its answer would seem to be the user's words."""
    answer = _ASSISTANT.search(text)
    again = _USER.search(text, answer.end()) if answer else None
    if answer and again and plain(text[answer.start() : again.start()]):
        raise DatasetError(
            f"type.{key} holds a turn of the assistant before the last question, which can't be told in one message of "
            "the user; use type: chat_template with the turns as messages"
        )


_TASK = "Below is an instruction that describes a task"
_USER_TASK = "Below is an instruction from a USER that describes a task"
_CONTEXT = ", paired with an input that provides further context."
_ALPACA = Wording(
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    "### Instruction:\n{instruction}\n\n### Response:\n",
    "{system}\n\n",
    f"{_TASK}{_CONTEXT} Write a response that appropriately completes the request.",
    f"{_TASK}. Write a response that appropriately completes the request.",
)
_CHAT_FORMATS: dict[str, Any] = {
    "turn": "USER: {instruction}\n{input}\nASSISTANT:",
    "turn_without_input": "USER: {instruction}\nASSISTANT:",
    "system": "SYSTEM: {system}\n",
}
_CHATML_FORMATS: dict[str, Any] = {
    "turn": "<|im_start|>user\n{instruction}\n{input}<|im_end|>\n<|im_start|>assistant\n",
    "turn_without_input": "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
    "system": "<|im_start|>system\n{system}<|im_end|>\n",
}
_PHI_FORMATS: dict[str, Any] = {
    "turn": "<|user|>\n{instruction}<|end|>{input}<|assistant|>",
    "turn_without_input": "<|user|>\n{instruction}<|end|>\n<|assistant|>\n",
    "system": "<|system|>\n{system}<|end|>\n",
}
_ORCA_FORMATS: dict[str, Any] = {
    "turn": "### Human:\n{instruction}\n### Additional Context:\n{input}\n### Assistant:\n",
    "turn_without_input": "### Human:\n{instruction}\n### Assistant:\n",
    "system": "### System:\n{system}\n",
}
_NO_PREAMBLE: dict[str, Any] = {"preamble": "", "preamble_without_input": ""}
_CONCISELY: dict[str, Any] = {
    "preamble": f"{_USER_TASK}{_CONTEXT} The ASSISTANT writes a response that concisely and appropriately completes "
    "the request.\n\n",
    "preamble_without_input": f"{_USER_TASK}. The ASSISTANT writes a response that appropriately and concisely "
    "completes the request.\n\n",
}
_FROM_CONTEXT = "Use the following contextual information to concisely answer the question.\n"
_CREATIVELY = (
    "Answer the following question in a comprehensive, in-depth, and creative way. Additionally your response should "
    "be relevant, accurate, and free of any ambiguity."
)
_TLDR = "USER: Summarize the following article as a TL;DR.\n{instruction}\n"

STYLES: Mapping[str, Wording] = {
    "instruct": _ALPACA,
    "chat": replace(_ALPACA, **_CHAT_FORMATS),
    "chatml": replace(_ALPACA, **_CHATML_FORMATS),
    "phi": replace(_ALPACA, **_PHI_FORMATS),
}
"""What may follow the colon of a type such as ``alpaca:chat``; without one it is ``instruct``."""

_CHAT = STYLES["chat"]
BUILT_IN: Mapping[str, Wording] = {
    "chat": _CHAT,
    "instruct": _ALPACA,
    "chat_concise": replace(_CHAT, **_CONCISELY),
    "chat_alone": replace(_CHAT, **_NO_PREAMBLE),
    "instruct_alone": replace(_ALPACA, **_NO_PREAMBLE),
    "orca": replace(_ALPACA, **_ORCA_FORMATS, **_NO_PREAMBLE),
    "orca_chatml": replace(_ALPACA, **_CHATML_FORMATS, **_NO_PREAMBLE),
    "orcamini": Wording(
        "### User:\n{instruction}\n\n### Response:\n",
        "### User:\n{instruction}\n\n### Response:\n",
        "### System:\n{system}\n\n",
    ),
    "tldr": Wording(_TLDR + "{input}\nASSISTANT:", _TLDR + "ASSISTANT:"),
    "context": Wording(
        "USER: {instruction}\n===\n{input}\nASSISTANT:",
        "USER: {instruction}\n===\n\nASSISTANT:",
        _CHAT.system,
        _FROM_CONTEXT,
        _FROM_CONTEXT,
    ),
    "context_and_question": Wording(
        "Context: {instruction}\nQuestion: {input}\n", "Context: {instruction}\nQuestion: \n"
    ),
    "creative": Wording(
        "USER: {instruction}\n{input}\nASSISTANT:",
        "USER: {instruction}\nASSISTANT:",
        "{system}\n",
        _CREATIVELY,
        _CREATIVELY,
    ),
    "bare": Wording("{instruction}", "{instruction}"),
}
"""The wordings of Axolotl's own types; which type has which stands with the columns of each."""

LLAMA2_SYSTEM = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe. "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
"""System message of ``llama2_chat`` for conversations without one."""
