"""Finds out from its columns which kind of rows a dataset has, so that Python needs none of Axolotl's words."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.distillation.rows.formats import PROMPT_COMPLETION
from axolotl_sdft.distillation.rows.validation import SAYS_TOKENIZED, is_messages

LOG = logging.getLogger(__name__)

_PREFERENCE = {"chosen", "rejected"}
_TEXT_PAIRS: Mapping[tuple[str, str], Any] = {
    ("prompt", "completion"): {
        "field_instruction": "prompt",
        "field_output": "completion",
        "format": "{instruction}",
        "no_input_format": "{instruction}",
    },
    ("instruction", "output"): "alpaca",
    ("question", "answer"): "alpaca_chat.load_qa",
}
_OLD_KEYS = {"role": "from", "content": "value"}

_WAY_OUT = (
    "pass dataset_config, such as {'type': 'chat_template', 'field_messages': 'dialogue'} for a column of messages, or "
    "{'type': {'field_instruction': 'question', 'field_output': 'reply'}} for two columns of text"
)


def recognised_config(features: Mapping[str, Any], where: str = "dataset") -> dict[str, Any]:
    """Return the row format that the columns show, as an entry of Axolotl's ``datasets``, and say which in the log.

    Known are TRL's ``messages`` and ``prompt`` with ``completion`` (texts or messages), ``conversations``, and the
    pairs ``instruction`` and ``output``, ``question`` and ``answer``.

    Args:
        features: Types of the columns.
        where: What messages call the dataset.

    Raises:
        DatasetError: The columns show no known format, or more than one; the message says what to pass.
    """
    found = {} if _are_judged(features) else dict(_candidates(features))
    columns = ", ".join(features)
    if not found:
        why = ""
        if set(features) >= _PREFERENCE:
            why = " (rows of chosen and rejected answers are compared in training, and rewriting one would undo that)"
        elif _are_judged(features):
            why = " (label says whether a completion is wanted, and rewriting one that is not would undo that)"
        elif set(features) >= SAYS_TOKENIZED:
            why = " (its rows are tokenized already, and rewriting needs their text)"
        elif "text" in features:
            why = " (text is running text, without a prompt and an answer)"
        raise DatasetError(f"{where}: its columns, {columns}, show no format that is known{why}; {_WAY_OUT}")
    if len(found) > 1:
        choices = "; ".join(f"dataset_config={config!r} for {name}" for name, config in found.items())
        raise DatasetError(f"{where}: its columns, {columns}, show more than one format; pass one of them: {choices}")
    [(name, config)] = found.items()
    LOG.info("%s: rows with %s are taken as %s; pass dataset_config for another format", where, name, config)
    return config


def _are_judged(features: Mapping[str, Any]) -> bool:
    """Whether rows are preferences without a pair, as KTO trains on: each completion is wanted, or is not."""
    return {"prompt", "completion"} <= set(features) and getattr(features.get("label"), "dtype", None) == "bool"


def _candidates(features: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each format that the columns show, with what a person calls it."""
    for name in ("messages", "conversations"):
        if is_messages(features.get(name)):
            yield name, {"type": "chat_template", "field_messages": name}
        elif is_messages(features.get(name), **_OLD_KEYS):
            yield name, {"type": "chat_template", "field_messages": name, "message_property_mappings": _OLD_KEYS}
    for (asked, answered), kind in _TEXT_PAIRS.items():
        columns = [features.get(asked), features.get(answered)]
        if None in columns:
            continue
        # What a column holds is looked at later, where the message can name it.
        are_messages = asked == "prompt" and all(map(is_messages, columns))
        yield f"{asked} and {answered}", {"type": PROMPT_COMPLETION if are_messages else kind}
