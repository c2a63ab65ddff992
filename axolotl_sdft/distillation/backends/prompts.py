"""Chats and answers as token ids: the same ids for every backend that has the seed model's own tokenizer at hand."""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from axolotl_sdft.distillation.framing import THINKING_TOKENS
from axolotl_sdft.distillation.interfaces import FinishReason, Message
from axolotl_sdft.errors import ConfigError, first_line

LOG = logging.getLogger(__name__)

_TRIAL = ({"role": "user", "content": "Name a river."},)


def load_tokenizer(model_dir: Path, *, trust_remote_code: bool = False) -> Any:
    """Return the seed model's tokenizer, with a padding token, padding on the left."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=trust_remote_code)
    tokenizer.padding_side = "left"  # so that every row's first new token stands in the same column
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def require_chat_template(tokenizer: Any, model_dir: Path) -> None:
    """Raise :class:`ConfigError` when the seed model has no chat template."""
    if not tokenizer.chat_template:
        raise ConfigError(
            f"self_distillation: the seed model {model_dir} has no chat template, so it can't be asked to "
            "rewrite; name an instruction-tuned base_model, or add a chat_template to its tokenizer"
        )


def require_template_arguments(tokenizer: Any, model_dir: Path, arguments: Mapping[str, Any]) -> None:
    """Return when the seed model's chat template takes ``chat_template_kwargs``; a key that it never reads is logged.

    Raises:
        ConfigError: The template fails with them.
    """
    if not arguments:
        return
    where = "self_distillation.generation.chat_template_kwargs"
    try:
        prompt_ids(tokenizer, _TRIAL, arguments)
    except Exception as err:  # a template raises what it likes
        raise ConfigError(
            f"{where} is {dict(arguments)}, with which the chat template of {model_dir} fails "
            f"({type(err).__name__}: {first_line(err)}); give values that it knows, or remove the key"
        ) from err
    template = tokenizer.get_chat_template()
    for name in arguments:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            LOG.warning("%s sets %s, which the chat template of %s never reads", where, name, model_dir)


def prompt_ids(
    tokenizer: Any, messages: Sequence[Message], template_arguments: Mapping[str, Any] | None = None
) -> list[int]:
    """Return the ids of a chat up to where the assistant begins to write.

    Args:
        tokenizer: The seed model's.
        messages: The chat.
        template_arguments: What the chat template is given besides, such as ``{"enable_thinking": False}``.
    """
    text = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True, **(template_arguments or {})
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answer_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of an answer, with the token that ends the turn."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def end_ids(configured: int | Iterable[int] | None, tokenizer: Any) -> list[int]:
    """Return every id that ends an answer: those of the model's generation settings and the tokenizer's own."""
    ids = [configured] if configured is None or isinstance(configured, int) else list(configured)
    return sorted({token for token in (*ids, tokenizer.eos_token_id) if token is not None})


def saved_generation_settings(model_dir: Path) -> dict[str, Any]:
    """Return what a checkpoint's ``generation_config.json`` says; without one, what its ``config.json`` does."""
    for name in ("generation_config.json", "config.json"):
        path = model_dir / name
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    return {}


def read_answer(tokenizer: Any, new_ids: Sequence[int], ends: Sequence[int]) -> tuple[str, FinishReason, int]:
    """Return the text, how it ended, and the number of tokens before the one that ended it.

    Special tokens are left out, but for those that tell a thinking part from the answer.
    """
    end = next((place for place, token in enumerate(new_ids) if token in ends), None)
    kept = list(new_ids if end is None else new_ids[:end])
    return _text(tokenizer, kept).strip(), "length" if end is None else "stop", len(kept)


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    known = zip(THINKING_TOKENS, tokenizer.convert_tokens_to_ids(list(THINKING_TOKENS)), strict=True)
    marks = {token: text for text, token in known if token not in (None, tokenizer.unk_token_id)}
    return "".join(
        "".join(map(marks.__getitem__, run)) if is_mark else tokenizer.decode(list(run), skip_special_tokens=True)
        for is_mark, run in groupby(ids, marks.__contains__)
    )
