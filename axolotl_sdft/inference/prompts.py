"""Chats and answers as token ids: the same ids for every backend that has the seed model's own tokenizer at hand."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from axolotl_sdft.core.errors import CheckpointError, ConfigError, DatasetError, error_context, failure, first_line
from axolotl_sdft.core.model_folder import read_json_file
from axolotl_sdft.core.safe_output import masked
from axolotl_sdft.core.texts import well_formed
from axolotl_sdft.inference.call_markup import is_call_token
from axolotl_sdft.inference.chat_templates import render_chat, shows_questions, turn_end_id
from axolotl_sdft.inference.interfaces import FinishReason, Message, answer_prefix
from axolotl_sdft.inference.reasoning import THINKING_STARTS, THINKING_TOKENS, is_control_token

LOG = logging.getLogger(__name__)

_TOKENIZER_WAY_OUT = (
    "put the tokenizer's files into that folder, also where Axolotl's tokenizer_config names others for training; if "
    "it comes with code of its own, set trust_remote_code: true"
)

_FEW_TOKENS = 64
_TRIAL = ({"role": "user", "content": "Name a river."},)


def load_tokenizer(model_dir: Path, *, trust_remote_code: bool = False, chat_template: str | None = None) -> Any:
    """Return the seed model's tokenizer, with a padding token, padding on the left.

    Args:
        model_dir: Folder of the model.
        trust_remote_code: Run code that comes with it.
        chat_template: Jinja text of the chat template of a model that has none of its own.

    Raises:
        CheckpointError: It can't be loaded, or the folder holds none.
    """
    what = f"the tokenizer of {model_dir} can't be loaded"
    with error_context(failure(what, _TOKENIZER_WAY_OUT)):
        tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=trust_remote_code)
    # transformers 5.0 makes one up, of special tokens alone, where later versions raise.
    if len(tokenizer) < _FEW_TOKENS and tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        raise CheckpointError(f"{what} (there is none); {_TOKENIZER_WAY_OUT}")
    use_chat_template(tokenizer, chat_template)
    tokenizer.padding_side = "left"  # so that every row's first new token stands in the same column
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def use_chat_template(tokenizer: Any, chat_template: str | None) -> None:
    """Give a tokenizer without a chat template this one; that of mistral-common reads no control tokens in a text."""
    if chat_template and not is_mistral_common(tokenizer) and not tokenizer.chat_template:
        tokenizer.chat_template = chat_template


def is_mistral_common(tokenizer: Any) -> bool:
    """Whether a tokenizer is that of the mistral-common package, which writes chats without a chat template."""
    return any(kind.__name__ == "MistralCommonBackend" for kind in type(tokenizer).__mro__)


def require_chat_template(tokenizer: Any, model_dir: Path, given: str | None = None) -> None:
    """Raise :class:`ConfigError` when the seed model has no chat template; say where the one given is not used.

    Args:
        tokenizer: The seed model's, loaded with the template that is given.
        model_dir: Folder of the seed model.
        given: Jinja text of ``generation.chat_template``.
    """
    if is_mistral_common(tokenizer):
        raise ConfigError(
            f"self_distillation: the tokenizer of the seed model {model_dir} is that of mistral-common (tekken.json), "
            "which writes chats by itself, without a chat template, and this backend needs one; serve the seed model "
            "and set generation.backend: openai, or name a checkpoint with tokenizer.json and chat_template.jinja"
        )
    if not tokenizer.chat_template:
        raise ConfigError(
            f"self_distillation: the seed model {model_dir} has no chat template, so it can't be asked to "
            "rewrite; name an instruction-tuned base_model, or a template with chat_template: chatml or the like"
        )
    if given and tokenizer.chat_template != given:
        LOG.warning(
            "self_distillation.generation.chat_template is for seed models without one and has no effect, since %s has "
            "a chat template of its own; change it there",
            model_dir,
        )


def require_template_arguments(tokenizer: Any, model_dir: Path, arguments: Mapping[str, Any]) -> None:
    """Return when the seed model's chat template takes ``chat_template_kwargs``; a key that it never reads is logged.

    Raises:
        ConfigError: The template fails with them, or with a plain question where there are none; or it shows nothing of
            a question.
    """
    if not shows_questions(tokenizer, arguments):
        raise ConfigError(
            f"self_distillation: the chat template of {model_dir} shows nothing of what is asked, so every prompt "
            "would be the same; correct it there, or name another base_model"
        )
    if not arguments:
        _require_a_plain_question(tokenizer, model_dir)
        return
    where = "self_distillation.generation.chat_template_kwargs"
    try:
        prompt_ids(tokenizer, _TRIAL, arguments)
    except Exception as err:  # a template raises what it likes
        raise ConfigError(
            f"{where} is {masked(arguments)}, with which the chat template of {model_dir} fails "
            f"({type(err).__name__}: {first_line(err)}); give values that it knows, or remove the key"
        ) from err
    template = tokenizer.get_chat_template()
    for name in arguments:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            LOG.warning("%s sets %s, which the chat template of %s never reads", where, name, model_dir)


def _require_a_plain_question(tokenizer: Any, model_dir: Path) -> None:
    try:
        prompt_ids(tokenizer, _TRIAL)
    except DatasetError as err:
        raise ConfigError(
            f"self_distillation: {err}, even where it is a single question; correct the chat template of {model_dir}, "
            "or give it what it asks for with generation.chat_template_kwargs"
        ) from err


def require_room_for_prefix(tokenizer: Any, prefix: str, arguments: Mapping[str, Any]) -> None:
    """Return when the model can go on behind the beginning of an answer.

    Raises:
        ConfigError: The chat template opens a thinking part there.
    """
    try:
        prompt_ids(tokenizer, [*_TRIAL, {"role": "assistant", "content": prefix}], arguments)
    except DatasetError as err:
        raise ConfigError(f"self_distillation.answer_prefix is {prefix!r}, but {err}") from err


def prompt_ids(
    tokenizer: Any, messages: Sequence[Message], template_arguments: Mapping[str, Any] | None = None
) -> list[int]:
    """Return the ids of a chat up to where the assistant begins to write, or goes on where it spoke last.

    Args:
        tokenizer: The seed model's.
        messages: The chat.
        template_arguments: What the chat template is given besides, such as ``{"enable_thinking": False}``.

    Raises:
        DatasetError: The chat template refuses the chat in any shape, or has the model think where it should go on.
    """
    prefix = answer_prefix(messages)
    _, text = render_chat(tokenizer, messages[:-1] if prefix else messages, template_arguments)
    if prefix and text.rstrip().endswith(THINKING_STARTS):
        raise DatasetError(
            "the chat template opens a thinking part, in which the answer would begin with answer_prefix; turn "
            "thinking off, such as by generation.chat_template_kwargs: {enable_thinking: false}, or remove "
            "answer_prefix"
        )
    return tokenizer(text + prefix, add_special_tokens=False)["input_ids"]


def answer_ids(tokenizer: Any, text: str, template_arguments: Mapping[str, Any] | None = None) -> list[int]:
    """Return the ids of an answer, with the token that ends the turn in the chat template."""
    ids = tokenizer(well_formed(text), add_special_tokens=False)["input_ids"]
    end = turn_end_id(tokenizer, template_arguments)
    return [*ids, *([] if end is None else [end])]


def token_without_embedding(tokenizer: Any, ids: Sequence[int], model_config: Any) -> str | None:
    """Return what is said of a token that the model has no embedding for; None where it has one for each."""
    num_rows = getattr(model_config.get_text_config(decoder=True), "vocab_size", None)
    highest = max(ids, default=0)
    if num_rows is None or highest < num_rows:
        return None
    return (
        f"the tokenizer writes {tokenizer.convert_ids_to_tokens(highest)!r} as token {highest}, but the model has "
        f"embeddings for tokens 0 to {num_rows - 1} alone"
    )


def end_ids(
    configured: int | Iterable[int] | None, tokenizer: Any, template_arguments: Mapping[str, Any] | None = None
) -> list[int]:
    """Return every id that ends an answer: those of the model's generation settings, the tokenizer and the template."""
    ids = [configured] if configured is None or isinstance(configured, int) else list(configured)
    own = (tokenizer.eos_token_id, turn_end_id(tokenizer, template_arguments))
    return sorted({token for token in (*ids, *own) if token is not None})


def control_tokens(tokenizer: Any, ends: Iterable[int]) -> frozenset[str]:
    """Return the texts of the tokens that no answer holds: those that end it, and special ones around turns.

    Other special tokens, such as the ``<filename>`` of models of code, may stand in an answer as plain text.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {*tokenizer.all_special_tokens, *(token.content for token in added.values() if token.special)}
    around_turns = {token for token in special if is_control_token(token) and not is_call_token(token)}
    ending = {*tokenizer.convert_ids_to_tokens(list(ends))} & {*special, *(token.content for token in added.values())}
    return frozenset(around_turns | ending)


def saved_generation_settings(model_dir: Path) -> dict[str, Any]:
    """Return what a checkpoint's ``generation_config.json`` says; without one, what its ``config.json`` does."""
    for name in ("generation_config.json", "config.json"):
        path = model_dir / name
        if path.is_file():
            settings: dict[str, Any] = read_json_file(path)
            return settings
    return {}


def read_answer(
    tokenizer: Any, new_ids: Sequence[int], ends: Sequence[int], prefix: str = ""
) -> tuple[str, FinishReason, int]:
    """Return the text, how it ended, and the number of new tokens before the one that ended it.

    Special tokens are left out, but for those that tell a thinking part from the answer or mark function calls. The
    text begins with ``prefix``; the two are read together, since some tokenizers drop the space that a text begins
    with.
    """
    end = next((place for place, token in enumerate(new_ids) if token in ends), None)
    kept = list(new_ids if end is None else new_ids[:end])
    begun = tokenizer(prefix, add_special_tokens=False)["input_ids"] if prefix else []
    return _text(tokenizer, [*begun, *kept]).strip(), "length" if end is None else "stop", len(kept)


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    marks = _marks(tokenizer)
    return "".join(
        "".join(map(marks.__getitem__, run)) if is_mark else tokenizer.decode(list(run), skip_special_tokens=True)
        for is_mark, run in groupby(ids, marks.__contains__)
    )


@lru_cache(maxsize=4)
def _marks(tokenizer: Any) -> dict[int, str]:
    """Return the tokens that are told apart from the special ones around them, with their texts."""
    names = [*THINKING_TOKENS, *filter(is_call_token, tokenizer.all_special_tokens)]
    known = zip(names, tokenizer.convert_tokens_to_ids(names), strict=True)
    return {token: name for name, token in known if token not in (None, tokenizer.unk_token_id)}
