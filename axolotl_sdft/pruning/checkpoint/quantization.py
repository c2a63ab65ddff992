"""Renames the layers that a quantized checkpoint's settings name by number. No torch is imported here.

Such names stand in ``quantization_config`` of ``config.json`` and in files beside it: modules left unquantized, or
settings of single modules, as plain names (``model.layers.3.mlp``) or as patterns (``re:.*layers\\.[0-3]\\..*``). What
says how a tensor was quantized must say the same of it under its new name, or loading would give other weights without
a word.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.pruning.checkpoint.architecture import first_number_prefix, is_text_path, renamed

QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Where GPTQ, AWQ and ModelOpt checkpoints keep the same settings once more."""

_BLOCKS = ("quantization_config", "compression_config")
_PATTERN_KEYS = ("dynamic",)
"""Keys under which GPTQ names modules by regular expressions."""
_PATTERN_MARKS = re.compile(r"^(re:|[+-]:)|[\\(|+^$]")
# Up to where a pattern still speaks of the layer's number: to the next dot, however it is written.
_NUMBER_PART = re.compile(r"(?:\((?:\?:)?[^()]*\)|\[[^]]*\]|\\[dD]|[0-9*+?{},])*")
# What sets the number apart from what follows: a dot, the end of a word, text, group or alternative.
_CLOSED = re.compile(r"\\?\.(?![*+?{])|\\b|\$|\((\?:)?\\\.\|\$\)|\)|\|")
_NO_MATCH = "(?!)"
_FIRST_EXPERT = re.compile(r"(^|\.)0\.")


@dataclass(frozen=True)
class LayerNames:
    """How a checkpoint names its decoder layers, and which of them stay."""

    prefix: str
    """What comes before the number in tensor names, such as ``model.layers.``."""
    num_layers: int
    kept: tuple[int, ...]
    other_numbers: Mapping[str, set[int]] = field(default_factory=dict)
    """Numbers of other groups whose prefix ends in the same word, such as ``vision_tower.layers.``, by prefix."""
    has_inner_numbers: bool = False
    """Whether names hold a second number, such as that of an expert."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Old and new name of each module that stays; of experts, the first."""

    def renumbered(self, layers: set[int]) -> set[int]:
        """Return the new numbers of those of ``layers`` that stay."""
        return {number for number, layer in enumerate(self.kept) if layer in layers}

    @classmethod
    def of(cls, names: Iterable[str], prefix: str, num_layers: int, kept: Sequence[int]) -> "LayerNames":
        """Return them as found in the names of a checkpoint's tensors."""
        word = _last_word(prefix)
        others: dict[str, set[int]] = {}
        has_inner_numbers = False
        modules: dict[str, str] = {}
        for name in names:
            other = first_number_prefix(name)
            inner = name[len(prefix) :].partition(".")[2] if other == prefix else ""
            if first_number_prefix(inner) is not None:
                has_inner_numbers = True
                if not _FIRST_EXPERT.search(inner):
                    continue
            if other is not None and other != prefix and _last_word(other) == word:
                others.setdefault(other, set()).add(int(name[len(other) :].partition(".")[0]))
            new_name = renamed(name, prefix, kept)
            if new_name is not None:
                modules[name.rpartition(".")[0]] = new_name.rpartition(".")[0]
        return cls(prefix, num_layers, tuple(kept), others, has_inner_numbers, modules)


def prune_quantization(config: dict[str, Any], layers: LayerNames) -> dict[str, Any]:
    """Return a ``config.json`` in whose quantization settings, at any depth, layers bear their new numbers.

    Entries that only speak of dropped layers are left out.

    Raises:
        CheckpointError: A pattern can't be rewritten; the message names it, where it stands, and the reason.
    """
    return {
        key: renumbered(value, layers, key)
        if key in _BLOCKS
        else (prune_quantization(value, layers) if isinstance(value, dict) else value)
        for key, value in config.items()
    }


def renumbered(value: Any, layers: LayerNames, path: str) -> Any:
    """Return quantization settings in which layers bear their new numbers; ``path`` names them in errors.

    Raises:
        CheckpointError: A pattern can't be rewritten; the message names it, where it stands, and the reason.
    """
    if isinstance(value, dict):
        is_pattern = path.rpartition(".")[2] in _PATTERN_KEYS
        keys = {key: _renumbered_text(key, layers, path, is_pattern) for key in value}
        pairs = [
            (keys[key], renumbered(item, layers, f"{path}.{key}"), item)
            for key, item in value.items()
            if keys[key] is not None
        ]
        return {key: item for key, item, before in pairs if item is not None or before is None}
    if isinstance(value, list):
        items = [renumbered(item, layers, path) for item in value]
        return [item for item, before in zip(items, value, strict=True) if item is not None or before is None]
    return _renumbered_text(value, layers, path, False) if isinstance(value, str) else value


def _renumbered_text(text: str, layers: LayerNames, path: str, is_pattern: bool) -> str | None:
    """Return a name or pattern under the new numbers, or None when it only spoke of dropped layers."""
    is_pattern = is_pattern or bool(_PATTERN_MARKS.search(text))
    try:
        new = _with_new_numbers(text, layers, is_pattern)
        if is_pattern:
            _require_same_modules(text, new, layers)
    except ValueError as err:
        raise CheckpointError(
            f"{path} of the checkpoint holds {text!r}, which can't be rewritten for the layers that stay: {err}; write "
            "it in another way, such as one entry for each module"
        ) from err
    return new


def _with_new_numbers(text: str, layers: LayerNames, is_pattern: bool) -> str | None:
    word = _last_word(layers.prefix)
    starts = [match.end() for match in re.finditer(rf"(?<![A-Za-z0-9_]){re.escape(word)}\\?\.", text) if word]
    if not starts and is_pattern:
        starts = [match.end() for match in re.finditer(r"\\\.(?=\d+\\\.)", text)]
    written, end = "", 0
    for start in starts:
        part = _NumberPart.at(text, start, is_pattern)
        new = part.renumbered(layers)
        if new == _NO_MATCH and "|" not in text[:start] + text[part.end :] and "(?!" not in text:
            return None
        written += text[end:start] + new
        end = part.end
    return written + text[end:]


def _require_same_modules(old: str, new: str | None, layers: LayerNames) -> None:
    """Raise ``ValueError`` unless the new pattern fits the same modules, under their new names, as the old one did."""
    try:
        before = re.compile(_without_mark(old))
        after = re.compile(_without_mark(new) if new is not None else _NO_MATCH)
    except re.error as err:
        if old == new:  # a text that only looks like a pattern
            return
        raise ValueError(f"it is not a regular expression: {err}") from err
    for old_name, new_name in layers.modules.items():
        is_same = bool(before.match(old_name)) == bool(after.match(new_name))
        if not is_same or bool(before.search(old_name)) != bool(after.search(new_name)):
            raise ValueError(f"it would no longer speak of {old_name} in the same way")


def _without_mark(pattern: str) -> str:
    return re.sub(r"^(re:|[+-]:)", "", pattern)


@dataclass(frozen=True)
class _NumberPart:
    """The part of a name or pattern that stands for the layer's number, such as ``3`` or ``(?:3|4)``."""

    head: str
    text: str
    tail: str
    is_pattern: bool
    end: int

    @classmethod
    def at(cls, text: str, start: int, is_pattern: bool) -> "_NumberPart":
        found = _NUMBER_PART.match(text, start)
        part = found[0] if found else ""
        end = start + len(part)
        return cls(_without_mark(text[:start]), part, text[end:], is_pattern, end)

    def renumbered(self, layers: LayerNames) -> str:
        """Return what stands for the same layers under their new numbers.

        Raises:
            ValueError: It can't be written, with the reason.
        """
        head = self.head.replace("\\.", ".").lstrip("^")
        if head in layers.other_numbers or not is_text_path(head):
            return self.text
        if self.text.isdigit() and int(self.text) >= layers.num_layers:  # such as a layer that predicts further tokens
            return str(int(self.text) - layers.num_layers + len(layers.kept))
        named = self._named(layers.num_layers) if self._is_number() else set()
        longer = _with_longer(named, layers.num_layers) if self._is_open else named
        new = layers.renumbered(longer)
        still_fits = all(layers.renumbered(old) == old & set(range(len(layers.kept))) for old in (named, longer))
        if not named or (new and still_fits):
            return self.text
        if not self.is_pattern and longer != named:
            raise ValueError(f"it can mean layer {min(named)} alone or layer {min(longer - named)} too")
        self._require_one_meaning(head, longer | new, layers)
        return self._written(new, len(layers.kept))

    @property
    def _is_open(self) -> bool:
        """Whether more digits may follow: ``layers.1`` at the end of a pattern also fits ``layers.12``."""
        return not self.tail or bool(re.match(r"\.[*+?{]", self.tail)) or self._is_open_glob

    @property
    def _is_open_glob(self) -> bool:
        return not self.is_pattern and self.text.endswith("*")

    def _is_number(self) -> bool:
        """Tell whether it stands for numbers, and not for anything between two dots."""
        is_apart = bool(_CLOSED.match(self.tail)) or self._is_open
        starts_well = self.text and "." not in self.text and not (self.is_pattern and self.text[0] in "*+?{")
        if is_apart and starts_well:
            return True
        if re.search(r"\d", self.text if is_apart else re.split(r"\\?\.", self.text + self.tail)[0]):
            raise ValueError("the layer's number is not set apart by dots")
        return False

    def _named(self, num_layers: int) -> set[int]:
        """Return the layers whose whole number it fits."""
        literal = self.text.rstrip("*") if self._is_open_glob else self.text
        try:
            fits = re.compile(literal if self.is_pattern else fnmatch.translate(literal)).fullmatch
        except re.error as err:
            raise ValueError(f"the layer's number is not a regular expression: {err}") from err
        return {layer for layer in range(num_layers) if fits(str(layer))}

    def _require_one_meaning(self, head: str, numbers: set[int], layers: LayerNames) -> None:
        word = f"{_last_word(layers.prefix)}."
        if not head.endswith(word) and layers.has_inner_numbers:
            raise ValueError("its number can mean a layer or an expert")
        others = [prefix for prefix, theirs in layers.other_numbers.items() if theirs & numbers]
        # What a pattern means is tried out on the names themselves.
        if others and not self.is_pattern and ("*" in head or head == word):
            raise ValueError(f"it can mean {layers.prefix} or {others[0]}")

    def _written(self, new: set[int], num_layers: int) -> str:
        if not new:
            return _NO_MATCH
        numbers = [str(number) for number in sorted(new)]
        text = numbers[0] if len(numbers) == 1 else f"[{''.join(numbers)}]"
        if len(numbers) > 1 and max(new) > 9:
            if not self.is_pattern:
                raise ValueError(f"layers {', '.join(numbers)} have no common name")
            text = f"(?:{'|'.join(numbers)})"
        if self._is_open and _with_longer(new, num_layers) != new:
            if not self.is_pattern:
                raise ValueError(f"as {text} it would name further layers too")
            text += "(?![0-9])"
        return text + "*" * self._is_open_glob


def _with_longer(layers: set[int], num_layers: int) -> set[int]:
    """Return these layers and all whose number begins with the same digits: 1 brings 10 to 19."""
    return {other for other in range(num_layers) if any(str(other).startswith(str(layer)) for layer in layers)}


def _last_word(prefix: str) -> str:
    return prefix.rstrip(".").rpartition(".")[2]
