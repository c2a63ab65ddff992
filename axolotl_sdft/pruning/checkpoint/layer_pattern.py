"""Tells whether kinds of layers still alternate by position after a cut, as some programs take for granted.

transformers and vLLM read the list of kinds in ``config.json``, which follows a cut. llama.cpp counts for some
architectures, such as every sixth layer of Gemma 3, and its files hold no list of them.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from axolotl_sdft.pruning.checkpoint.derived_config import TEXT_CONFIGS
from axolotl_sdft.pruning.checkpoint.layer_settings import LAYER_KINDS

_LISTS = {**dict.fromkeys(LAYER_KINDS, "sliding_window_pattern"), "no_rope_layers": "no_rope_layer_interval"}
"""Each list with one entry per layer, and the setting that holds its period where there is no list."""
_MAX_SHOWN = 8


def pattern_warning(seed_config: dict[str, Any], pruned_config: dict[str, Any]) -> str | None:
    """Return what to say of kinds of layers that went by position in the seed model and don't any more; else None.

    Args:
        seed_config: The seed model's ``config.json``.
        pruned_config: That of the cut.
    """
    before, after = _decoder(seed_config), _decoder(pruned_config)
    for key, period_key in _LISTS.items():
        kept = after.get(key)
        if not isinstance(kept, list):
            continue
        pattern = _pattern(before[key]) if isinstance(before.get(key), list) else _named(before.get(period_key), kept)
        period = len(pattern)
        moved = [layer for layer, kind in enumerate(kept) if period > 1 and kind != pattern[layer % period]]
        if moved:
            shown = ", ".join(map(str, moved[:_MAX_SHOWN])) + (", ..." if moved[_MAX_SHOWN:] else "")
            return (
                f"{key}: kinds of layers alternate every {period} layers in the seed model, and no longer do in the "
                f"pruned one (layers {shown}, counted anew). transformers and vLLM read the list in config.json. "
                "llama.cpp, and what is built on it, goes by position for some architectures, such as Gemma 3 and "
                f"SmolLM3, and would run these layers as the wrong kind without a word: if you need GGUF files, remove "
                f"whole periods, {period} neighbouring layers or a multiple"
            )
    return None


def _decoder(config: dict[str, Any]) -> dict[str, Any]:
    nested = (config.get(name) for name in TEXT_CONFIGS)
    return next((level for level in nested if isinstance(level, dict)), config)


def _pattern(kinds: Sequence[Any]) -> list[Any]:
    """Return the kinds that repeat, at least twice; none where they follow no period."""
    lengths = range(1, len(kinds) // 2 + 1)
    return next((list(kinds[:length]) for length in lengths if kinds[length:] == kinds[:-length]), [])


def _named(period: Any, kinds: Sequence[Any]) -> list[Any]:
    """Return the kinds that repeat where a setting holds the period: the last of each is of the rarer kind."""
    counts = Counter(kinds).most_common()
    if not isinstance(period, int) or len(counts) != 2:
        return []
    return [counts[0][0]] * (period - 1) + [counts[1][0]]
