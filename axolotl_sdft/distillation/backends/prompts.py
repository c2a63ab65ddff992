"""Chats and answers as token ids: the same ids for every backend that has the seed model's own tokenizer at hand."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from axolotl_sdft.distillation.interfaces import FinishReason, Message
from axolotl_sdft.errors import ConfigError


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


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the ids of a chat up to where the assistant begins to write."""
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
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
    """Return the text, how it ended, and the number of tokens before the one that ended it."""
    end = next((place for place, token in enumerate(new_ids) if token in ends), None)
    kept = list(new_ids if end is None else new_ids[:end])
    text = tokenizer.decode(kept, skip_special_tokens=True).strip()
    return text, "length" if end is None else "stop", len(kept)
