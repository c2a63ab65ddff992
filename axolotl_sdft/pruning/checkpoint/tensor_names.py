"""Finds the layers of the text decoder in tensor names, and renames those that stay."""

import re
from collections.abc import Iterable, Sequence

from axolotl_sdft.core.errors import CheckpointError

_OTHER_MODALITIES = re.compile(r"(^|[._])(vision|visual|image|vit|audio|speech|video)")


def first_number_prefix(name: str) -> str | None:
    """Return what comes before the first number in a dotted name: ``model.layers.`` of ``model.layers.3.mlp.up``."""
    match = re.match(r"(.*?)(?<![^.])\d+\.", name)
    return match[1] if match else None


def is_text_path(name: str) -> bool:
    """Tell whether a dotted name belongs to no other modality, such as ``vision_tower``."""
    return not _OTHER_MODALITIES.search(name)


def find_layer_prefix(names: Iterable[str], num_layers: int, num_extra: int = 0) -> str:
    """Return what comes before the layer number in the tensor names of the text decoder.

    It is the one prefix that comes with exactly the numbers 0 to ``num_layers`` - 1, and perhaps ``num_extra`` more:
    layers that predict further tokens are stored after the last one (DeepSeek-V3, GLM-4.5).

    Raises:
        CheckpointError: There is none, or more than one.
    """
    numbers: dict[str, set[int]] = {}
    for name in names:
        prefix = first_number_prefix(name)
        if prefix is not None:
            numbers.setdefault(prefix, set()).add(int(name[len(prefix) :].split(".", 1)[0]))
    counts = (set(range(num_layers)), set(range(num_layers + num_extra)))
    found = [prefix for prefix in numbers if numbers[prefix] in counts]
    if len(found) > 1:
        found = [prefix for prefix in found if is_text_path(prefix)]
    if len(found) == 1:
        return found[0]
    seen = ", ".join(f"{prefix}0 to {prefix}{max(numbers[prefix])}" for prefix in sorted(numbers)) or "no numbers"
    raise CheckpointError(
        f"config.json says {num_layers} layers, but {'several groups' if found else 'no group'} of tensor names "
        f"counts 0 to {num_layers - 1}; the names hold: {seen}"
    )


def renamed(name: str, prefix: str, kept: Sequence[int]) -> str | None:
    """Return a tensor's name after the cut, or None when its layer goes. ``kept`` are the layers that stay."""
    if not name.startswith(prefix) or first_number_prefix(name) != prefix:
        return name
    number, _, rest = name[len(prefix) :].partition(".")
    return f"{prefix}{kept.index(int(number))}.{rest}" if int(number) in kept else None
