"""What the seed model's chat template allows: chats in a shape that it takes, and the token that ends a turn.

Some templates know no system role, some want the turns of user and assistant one after the other, and some leave out
what they don't know, such as text that is not in parts. A chat that one of them refuses is put into another shape in
which all of it is said.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from axolotl_sdft.core.errors import DatasetError, first_line
from axolotl_sdft.core.texts import well_formed
from axolotl_sdft.inference.interfaces import Message

_TRIAL_QUESTION, _OTHER_QUESTION, _TRIAL_ANSWER = "Name a river.", "Is it wet?", "The Danube."


def render_chat(
    tokenizer: Any, messages: Sequence[Message], template_arguments: Mapping[str, Any] | None = None
) -> tuple[list[Message], str]:
    """Return a chat in the first shape that the chat template takes as a whole, and its text up to the answer.

    Tried in turn: as it is; with turns of one role in succession joined by a blank line; with system messages before
    the text of the user's turn that follows; and with what the assistant says before any user in the user's turn.
    Where none shows all that system and user say, the first that the template does not refuse is taken. Halves of
    surrogate pairs become U+FFFD.

    Args:
        tokenizer: The seed model's.
        messages: The chat; the last message is the user's.
        template_arguments: What the chat template is given besides, such as ``{"enable_thinking": False}``.

    Raises:
        DatasetError: The chat template refuses them all; the message says why.
    """
    taken: tuple[list[Message], str] | None = None
    refusal: Exception | None = None
    for shape in _shapes(well_formed_chat(messages)):
        try:
            text = apply_template(tokenizer, shape, template_arguments, add_generation_prompt=True)
        except Exception as err:  # a template raises what it likes
            refusal = refusal or err
            continue
        if all(message["content"].strip() in text for message in shape if message["role"] != "assistant"):
            return shape, text
        taken = taken or (shape, text)
    if taken is None:
        why = "" if refusal is None else f": {first_line(refusal)}"
        raise DatasetError(f"the seed model's chat template refuses the chat{why}") from refusal
    return taken


def apply_template(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    template_arguments: Mapping[str, Any] | None = None,
    **how: Any,
) -> str:
    """Return a chat as text in the chat template, which gets what is said in the form that it shows.

    The templates of some vision-language models show parts, ``[{"type": "text", "text": ...}]``, and leave out a
    string without a word.

    Args:
        tokenizer: The seed model's.
        messages: The chat; each ``content`` is a string.
        template_arguments: What the chat template is given besides, such as ``{"enable_thinking": False}``.
        **how: Arguments of ``apply_chat_template``, such as ``tools``.

    Raises:
        Exception: Whatever the template raises.
    """
    form = _content_form(*_template_key(tokenizer, template_arguments))
    chat = _in_parts(messages) if form == "parts" else list(messages)
    return str(tokenizer.apply_chat_template(chat, tokenize=False, **how, **(template_arguments or {})))


def shows_questions(tokenizer: Any, template_arguments: Mapping[str, Any] | None = None) -> bool:
    """Whether the chat template shows what is asked, in a string or in parts. One that refuses a question shows it."""
    return _content_form(*_template_key(tokenizer, template_arguments)) != "none"


def _template_key(tokenizer: Any, template_arguments: Mapping[str, Any] | None) -> tuple[Any, str, str]:
    """Return what a chat template's ways depend on; tokenizers can be given another, so it counts beside them."""
    return tokenizer, json.dumps(tokenizer.chat_template), json.dumps(dict(template_arguments or {}), default=str)


@lru_cache(maxsize=16)
def _content_form(tokenizer: Any, chat_template: str, arguments: str) -> Literal["string", "parts", "none"]:
    """Return the form in which two questions make two texts."""
    as_strings = _trial_texts(tokenizer, arguments, list)
    if as_strings is not None and as_strings[0] != as_strings[1]:
        return "string"
    as_parts = _trial_texts(tokenizer, arguments, _in_parts)
    if as_parts is not None and as_parts[0] != as_parts[1]:
        return "parts"
    return "string" if as_strings is None else "none"


def _trial_texts(tokenizer: Any, arguments: str, form: Callable[[list[Message]], list[Any]]) -> tuple[str, str] | None:
    """Return two questions in the chat template; None where it refuses them."""
    try:
        first, second = (
            tokenizer.apply_chat_template(
                form([{"role": "user", "content": question}]),
                tokenize=False,
                add_generation_prompt=True,
                **json.loads(arguments),
            )
            for question in (_TRIAL_QUESTION, _OTHER_QUESTION)
        )
    except Exception:  # a template raises what it likes
        return None
    return first, second


def _in_parts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages whose contents are parts, as those of a chat with pictures are."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def well_formed_chat(messages: Sequence[Message]) -> list[Message]:
    """Return a chat without halves of surrogate pairs."""
    return [{**message, "content": well_formed(message["content"])} for message in messages]


def _shapes(chat: list[Message]) -> Iterator[list[Message]]:
    """Yield a chat in several shapes, those nearest to it first, each once."""
    without_system, after_a_user = _folded(chat, "system"), _after_a_user(chat)
    seen: list[list[Message]] = []
    for shape in (
        chat,
        _joined(chat),
        without_system,
        _joined(without_system),
        _joined(after_a_user),
        _joined(_folded(after_a_user, "system")),
    ):
        if shape not in seen:
            seen.append(shape)
            yield shape


def _joined(chat: Sequence[Message]) -> list[Message]:
    """Return a chat in which turns of one role in succession are one turn."""
    joined: list[Message] = []
    for message in chat:
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1] = {**message, "content": f"{joined[-1]['content']}\n\n{message['content']}"}
        else:
            joined.append(message)
    return joined


def _folded(chat: Sequence[Message], role: str, label: str = "") -> list[Message]:
    """Return a chat in which what a role says opens the user's turn that follows, or ends the last one."""
    folded: list[Message] = []
    waiting: list[str] = []
    for message in chat:
        if message["role"] == role:
            waiting.append(label + message["content"])
        elif message["role"] == "user" and waiting:
            folded.append({**message, "content": "\n\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            folded.append(message)
    if waiting and folded:
        folded[-1] = {**folded[-1], "content": "\n\n".join([folded[-1]["content"], *waiting])}
    return folded


def _after_a_user(chat: Sequence[Message]) -> list[Message]:
    """Return a chat in which the assistant says nothing before the first user's turn, which quotes it instead."""
    first = next((place for place, message in enumerate(chat) if message["role"] == "user"), -1)
    return [*_folded(chat[: first + 1], "assistant", "Assistant: "), *chat[first + 1 :]]


def turn_end_id(tokenizer: Any, template_arguments: Mapping[str, Any] | None = None) -> int | None:
    """Return the token that ends the assistant's turn: the one that the chat template writes after an answer.

    It is another than ``tokenizer.eos_token_id`` in Gemma (``<end_of_turn>``) and Phi (``<|end|>``), for example.
    Where the template writes no such token, it is that one, or None where the tokenizer has none.
    """
    if not tokenizer.chat_template:
        return tokenizer.eos_token_id
    return _turn_end_id(*_template_key(tokenizer, template_arguments))


@lru_cache(maxsize=16)
def _turn_end_id(tokenizer: Any, chat_template: str, arguments: str) -> int | None:
    """Return what :func:`turn_end_id` does."""
    chat = [{"role": "user", "content": _TRIAL_QUESTION}, {"role": "assistant", "content": _TRIAL_ANSWER}]
    try:
        text = apply_template(tokenizer, chat, json.loads(arguments))
    except Exception:  # a template raises what it likes, and refuses whole chats where they are asked
        return tokenizer.eos_token_id
    _, answer, after = text.rpartition(_TRIAL_ANSWER)
    known = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", ())}
    for token in tokenizer(after, add_special_tokens=False)["input_ids"] if answer else ():
        if token in known:
            return int(token)
        if tokenizer.decode([token]).strip():
            break
    return tokenizer.eos_token_id
