"""Turns a row of a dataset into the text that a model would see: plain text, an instruction, a chat with tools."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import CalibrationConfig
from axolotl_sdft.core.errors import DatasetError, UnknownNameError
from axolotl_sdft.core.model_folder import seed_dir_of_call
from axolotl_sdft.core.texts import evenly_spaced
from axolotl_sdft.distillation.interfaces import RowFormat
from axolotl_sdft.distillation.rows.chat import ChatRows
from axolotl_sdft.distillation.rows.formats import KD_TYPE, resolve_row_format
from axolotl_sdft.distillation.rows.preferences import chats_of_preferences, without_undesirable
from axolotl_sdft.distillation.rows.validation import (
    TOKENIZED,
    require_text,
    require_whole_dataset,
    shown_features,
    stored_rows,
)
from axolotl_sdft.inference.chat_templates import apply_template, shows_questions

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from torch import Tensor

LOG = logging.getLogger(__name__)

_PLAIN_TYPES = ("completion", "pretrain")
_SHAREGPT = {"field_messages": "conversations", "message_property_mappings": {"role": "from", "content": "value"}}
_BESIDE = {"format": "{instruction}\n\n{input}", "no_input_format": "{instruction}"}
# What rows without a type may be, told by their columns. The first that fits is taken.
_GUESSES: tuple[dict[str, Any], ...] = (
    {"type": "chat_template"},
    {"type": "chat_template", **_SHAREGPT},
    {"type": "chat_template", "field_messages": "conversations"},
    {"type": {"field_instruction": "instruction", "field_input": "input", "field_output": "output", **_BESIDE}},
    *(
        {"type": {"field_instruction": instruction, "field_input": "context", "field_output": answer, **_BESIDE}}
        for instruction in ("instruction", "prompt", "question", "query")
        for answer in ("response", "completion", "answer", "output")
    ),
)


def plain_column(entry: Mapping[str, Any]) -> str | None:
    """Return the column of running text that a dataset entry names by its type, or None when its rows are not such."""
    kind = entry.get("type")
    if isinstance(kind, Mapping):
        return str(kind["field"]) if set(kind) == {"field"} else None
    is_plain = isinstance(kind, str) and kind.split(".")[0] in _PLAIN_TYPES
    return str(entry.get("field") or "text") if is_plain else None


def texts_of(
    rows: Sequence[dict[str, Any]], entry: Mapping[str, Any], where: str, tokenizer: Any, features: Any = None
) -> list[str]:
    """Return rows as the model would see them: their text, or their whole conversation in the model's chat template.

    A row that holds no text, such as one whose column is null, is an empty text. Of preferences, as ``rl: dpo`` has
    them, that is the prompt and the chosen answer.

    Args:
        rows: Some rows of a dataset.
        entry: The dataset entry: ``type``, and the field names that go with it. Without a type, the columns tell.
        where: What messages call the entry, such as ``datasets[0]``.
        tokenizer: The seed model's. Without a chat template, messages are joined by blank lines.
        features: Types of the columns, where they are known.

    Raises:
        DatasetError: The columns fit no known kind of row or hold something else than text, or the chat template
            refuses a conversation.
    """
    if not rows:
        return []
    if _is_tokenized(rows[0], entry):
        return [_decoded(row, tokenizer) for row in rows]
    preferred = chats_of_preferences(rows, entry) if plain_column(entry) is None else None
    if preferred is not None:
        rows, entry = preferred
        features = None
    elif not entry.get("type") and _is_prompt_and_completion(rows):
        rows = [{"messages": [*(row["prompt"] or ()), *(row["completion"] or ())]} for row in rows]
        features = None
    known = known_entry(rows, entry, where)
    column = plain_column(known)
    if column is not None:
        return [_plain_text(row, column, where, features) for row in rows]
    row_format = _row_format(known, where)
    if isinstance(row_format, ChatRows):
        return [_rendered(_conversation(row, row_format, where), _tools(row, known), where, tokenizer) for row in rows]
    require_text(features or {}, row_format, known.get("type"), where)
    return [_rendered(_turns(row, row_format), None, where, tokenizer) for row in rows]


def desirable_rows(rows: Any, entry: Mapping[str, Any], where: str) -> Any:
    """Return rows without those whose completion is labelled undesirable; say how many those are."""
    kept = without_undesirable(rows, entry)
    if len(kept) < len(rows):
        LOG.info(
            "%s: the completions of %d of %d rows are labelled undesirable and are left out of the calibration",
            *(where, len(rows) - len(kept), len(rows)),
        )
    return kept


def known_entry(rows: Sequence[dict[str, Any]], entry: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return the entry, with a type that the columns of its rows tell where it has none.

    Conversations with predictions for Axolotl's own plugin are conversations.

    Raises:
        DatasetError: They fit no known kind of row.
    """
    if entry.get("type") == KD_TYPE:
        return {**entry, "type": "chat_template"}
    if entry.get("type"):
        return entry
    said = [row.get("text") for row in rows]
    if any(isinstance(value, str) for value in said):
        return {**entry, "type": "completion", "field": "text"}
    try:
        return {**entry, **guessed_entry(_first_filled(rows), where)}
    except DatasetError:
        if "text" in rows[0]:
            return {**entry, "type": "completion", "field": "text"}
        raise


def _first_filled(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the row with the fewest nulls, the first of such: what a null would be can't be told."""
    return min(rows, key=lambda row: sum(value is None for value in row.values()))


def _is_tokenized(row: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Whether rows are tokenized: as Axolotl tells, or because nothing else is known of them."""
    return set(row) >= TOKENIZED or (not entry.get("type") and "input_ids" in row)


def _decoded(row: Mapping[str, Any], tokenizer: Any) -> str:
    ids = row["input_ids"] or []
    mask = row.get("attention_mask") or [1] * len(ids)
    return str(tokenizer.decode([token for token, is_there in zip(ids, mask, strict=False) if is_there]))


def _is_prompt_and_completion(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a conversation is spread over two columns, as TRL has it."""
    values = [row.get(name) for row in rows for name in ("prompt", "completion")]
    lists = [value for value in values if value is not None]
    return bool(lists) and all(
        isinstance(value, list) and all(isinstance(message, Mapping) for message in value) for value in lists
    )


def _plain_text(row: dict[str, Any], column: str, where: str, features: Any) -> str:
    if column not in row:
        raise DatasetError(
            f"{where} is to be read as running text in the column {column!r}, but its columns are {', '.join(row)}; "
            "name the column, such as type: {field: body}"
        )
    value = row[column]
    if value is not None and not isinstance(value, str):
        dtype = getattr((features or {}).get(column), "dtype", None) or type(value).__name__
        raise DatasetError(
            f"{where}: column {column!r} is to be read as running text, but holds {dtype}, such as {value!r:.60}; name "
            "a column of text, such as type: {field: body}, or set layer_pruning.calibration.path to other text"
        )
    return value or ""


def _row_format(entry: Mapping[str, Any], where: str) -> RowFormat:
    try:
        return resolve_row_format(entry, where)
    except (DatasetError, UnknownNameError) as err:
        raise DatasetError(
            f"{where}.type is {entry.get('type')!r}, whose rows can't be read as calibration text; set "
            "layer_pruning.calibration.path to a dataset of texts, instructions or chats, or its type to one of those"
        ) from err


def guessed_entry(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the first kind of row whose columns, and keys of messages, are there."""
    for entry in _GUESSES:
        row_format = resolve_row_format(entry)
        if not row_format.missing_columns(list(row)) and _has_keys(row, row_format):
            return entry
    raise DatasetError(
        f"{where}.type is not set, and the columns {', '.join(row)} fit no known row format; set the type, such as "
        f"alpaca or chat_template, or type: {{field: {next(iter(row), 'text')}}} to read one column as plain text"
    )


def _has_keys(row: dict[str, Any], row_format: RowFormat) -> bool:
    """Whether the first message of a conversation has the keys that a format of chats reads."""
    if not isinstance(row_format, ChatRows):
        return True
    messages = row.get(row_format.messages)
    if isinstance(messages, str):
        return True
    return isinstance(messages, Sequence) and all(row_format.role in message for message in messages[:1])


def _turns(row: dict[str, Any], row_format: RowFormat) -> list[dict[str, Any]]:
    """Return the prompt and the answer of a row as messages; none when one of them is missing."""
    last = row_format.num_targets(row) - 1
    if last < 0:
        return []
    target = row_format.target(row, last)
    return [*target.context, {"role": "assistant", "content": target.reference}]


def _conversation(row: dict[str, Any], rows: ChatRows, where: str) -> list[dict[str, Any]]:
    """Return all messages, tool calls and results included, in the keys and roles of chat templates."""
    value = _from_json(row.get(rows.messages), f"{where}, column {rows.messages!r}")
    if not isinstance(value, Sequence) or not all(isinstance(message, Mapping) for message in value):
        return []
    messages = [_message(message, rows) for message in value]
    system = row.get(rows.system) if rows.system else None
    if isinstance(system, str) and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    if rows.drops_system and messages and messages[0]["role"] == "system":
        del messages[0]
    return messages


def _message(message: Mapping[str, Any], rows: ChatRows) -> dict[str, Any]:
    said = message.get(rows.role)
    rest = {key: value for key, value in message.items() if key not in (rows.role, rows.content) and value is not None}
    calls = [_with_parsed_arguments(call) for call in rest.get("tool_calls") or []]
    called = {"tool_calls": calls} if calls else {}
    role = rows.roles.get(said, said) if isinstance(said, str) else said
    return {**rest, **called, "role": role, "content": _joined(message.get(rows.content))}


def _with_parsed_arguments(call: Any) -> Any:
    """Return a tool call with its arguments as a mapping, which chat templates expect, where they are JSON text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    except ValueError:  # arguments that a model wrote may not be JSON; the template prints them as they are
        return call


def _joined(content: Any) -> str:
    """Return the text of a message; of parts, those that are text."""
    if isinstance(content, Sequence) and not isinstance(content, str):
        texts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _tools(row: dict[str, Any], entry: Mapping[str, Any]) -> list[Any] | None:
    column = entry.get("field_tools") or "tools"
    tools = _from_json(row.get(column), f"column {column!r}")
    return list(tools) if isinstance(tools, Sequence) and tools else None


def _from_json(value: Any, what: str) -> Any:
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return json.loads(value)
    except ValueError as err:
        raise DatasetError(f"{what} holds a text that is not JSON ({err}): {value[:80]!r}; make it a list") from err


def _rendered(messages: list[dict[str, Any]], tools: list[Any] | None, where: str, tokenizer: Any) -> str:
    import jinja2

    if not messages:
        return ""
    if not tokenizer.chat_template:
        return "\n\n".join(message["content"] for message in messages)
    if not shows_questions(tokenizer):
        raise DatasetError(
            f"{where}: the seed model's chat template shows nothing of what a conversation says; correct the template, "
            "or set layer_pruning.calibration.path to running text"
        )
    try:
        return apply_template(tokenizer, messages, tools=tools)
    except (jinja2.TemplateError, TypeError, ValueError) as err:
        roles = ", ".join(str(message["role"]) for message in messages[:8])
        raise DatasetError(
            f"{where}: the seed model's chat template refuses a conversation of {roles} ({err}); set "
            "layer_pruning.calibration.path to other text"
        ) from err


def calibration_batches(
    dataset: "Dataset | IterableDataset",
    seed_model: str | Path,
    config: CalibrationConfig | None = None,
    *,
    dataset_config: Mapping[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> "list[dict[str, Tensor]]":
    """Return rows of a dataset as calibration batches for :func:`~axolotl_sdft.score_layers`.

    Each batch holds ``input_ids`` and ``attention_mask``, [rows, tokens], padded on the right. Conversations are
    written in the model's chat template. Completions that are labelled undesirable, as KTO has them, are left out.

    Args:
        dataset: The rows; ``num_samples`` of them are taken, spread evenly. Of a streamed dataset, which may be
            endless, the first are taken.
        seed_model: Folder or Hub id of the model that is scored, for its tokenizer.
        config: How many rows, of how many tokens; the defaults when unset. What it says of where text comes from is
            not read, and warned of.
        dataset_config: The row format, as an entry of Axolotl's ``datasets``. Unset, the columns tell it.
        revision: Revision of the model on the Hub.
        trust_remote_code: Run code that comes with the model.

    Raises:
        CheckpointError: The model's tokenizer can't be loaded.
        DatasetError: The columns show no format, or no row holds text.

    Example:
        >>> batches = calibration_batches(rows, "Qwen/Qwen3-8B")
        >>> scores = score_layers(model, batches)
    """
    from axolotl_sdft.inference.prompts import load_tokenizer
    from axolotl_sdft.pruning.scoring.loading import encode_texts

    settings = config or CalibrationConfig()
    _warn_of_what_is_not_read(settings)
    picked, features = _picked(dataset, dataset_config or {}, settings.num_samples)
    seed_dir = seed_dir_of_call(seed_model, revision)
    tokenizer = load_tokenizer(seed_dir, trust_remote_code=trust_remote_code)
    texts = texts_of(picked, dataset_config or {}, "dataset", tokenizer, features)
    return encode_texts(texts, seed_dir, settings, trust_remote_code=trust_remote_code)


_ELSEWHERE = {
    **dict.fromkeys(("path", "name", "split", "parts"), "the rows are those of dataset"),
    "type": "pass it as dataset_config",
    "general_share": "add the texts that general_texts gives",
}


def _warn_of_what_is_not_read(settings: CalibrationConfig) -> None:
    for key, way_out in _ELSEWHERE.items():
        if key in settings.model_fields_set:
            LOG.warning("calibration_batches does not read %s of its configuration: %s", key, way_out)


def _picked(dataset: Any, entry: Mapping[str, Any], count: int) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return rows to calibrate on, and the types of their columns, which a stream does not tell."""
    from datasets import IterableDataset

    if isinstance(dataset, IterableDataset):
        return desirable_rows(list(dataset.with_format(None).take(count)), entry, "dataset"), None
    require_whole_dataset(dataset, "dataset")
    rows = desirable_rows(stored_rows(dataset, "dataset"), entry, "dataset")
    return [rows[place] for place in evenly_spaced(len(rows), count)], shown_features(rows)
