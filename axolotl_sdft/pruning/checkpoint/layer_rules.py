"""Settings that go by layer number in ways of their own: thresholds, periods, scales, and layers that need each other.

Everything goes by key, whatever the model type. What no setting can say is refused.
"""

import math
from collections.abc import Callable, Sequence

from axolotl_sdft.pruning.checkpoint.layer_settings import (
    LAYER_KINDS,
    LayerCut,
    Settings,
    UnsoundCutError,
    cut_counts_and_lists,
)

_PERIODS = (("attn_layer_period", "attn_layer_offset"), ("expert_layer_period", "expert_layer_offset"))
_WITHOUT_ATTENTION = {"linear_attention", "mamba", "mamba2", "conv", "recurrent", "moe", "mlp"}


def cut_settings(settings: Settings, cut: LayerCut) -> Settings:
    """Return the settings of one level of a ``config.json`` that change, with their new values.

    Raises:
        UnsoundCutError: What is left can't be described.
    """
    changes = cut_counts_and_lists(settings, cut)
    for rule in _RULES:
        changes |= rule(settings, cut)
    return {key: value for key, value in changes.items() if settings.get(key) != value}


def _counts_of_caches(settings: Settings, cut: LayerCut) -> Settings:
    """Where a layer has several attentions, the count of caches is a multiple of the layers'."""
    num_layers, num_caches = settings.get("num_layers"), settings.get("num_hidden_layers")
    if num_layers != cut.num_layers or not num_caches or num_caches % num_layers:
        return {}
    return {"num_hidden_layers": num_caches // num_layers * len(cut.kept)}


def _attention_left(settings: Settings, cut: LayerCut) -> Settings:
    """A cache counts tokens in a layer with attention, so a model that had one can't generate without."""
    for key in LAYER_KINDS:
        _check_attention_left([kind not in _WITHOUT_ATTENTION for kind in settings.get(key) or []], cut)
    for key in ("attn_layer_indices", "full_attn_idxs"):
        _check_attention_left([layer in (settings.get(key) or []) for layer in range(cut.num_layers)], cut)
    return {}


def _check_attention_left(has_attention: Sequence[bool], cut: LayerCut) -> None:
    is_told = len(has_attention) == cut.num_layers and any(has_attention)
    if is_told and not any(has_attention[layer] for layer in cut.kept):
        layers = [layer for layer, is_there in enumerate(has_attention) if is_there]
        raise UnsoundCutError(f"no layer with attention would be left; keep one of {_names(layers)}")


def _sliding_windows(settings: Settings, cut: LayerCut) -> Settings:
    if not settings.get("use_sliding_window") or settings.get("layer_types"):
        return {}
    first = settings.get("max_window_layers")
    return {"max_window_layers": cut.num_kept_below(first)} if isinstance(first, int) else {}


def _experts_by_step(settings: Settings, cut: LayerCut) -> Settings:
    """Layers at a multiple of the step have experts, unless they are named as those without."""
    step, without = settings.get("decoder_sparse_step") or 1, settings.get("mlp_only_layers") or []
    if step == 1:
        return {}
    dense = [new for new, old in enumerate(cut.kept) if (old + 1) % step or old in without]
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


def _experts_in_a_range(settings: Settings, cut: LayerCut) -> Settings:
    first, last = settings.get("moe_layer_start_index"), settings.get("moe_layer_end_index")
    interval = settings.get("moe_layer_interval") or 1
    if not isinstance(first, int):
        return {}
    last = last if isinstance(last, int) and last != -1 else cut.num_layers - 1
    wanted = [first <= old <= last and (old + 1) % interval == 0 for old in cut.kept]
    new_first, new_last = cut.num_kept_below(first), cut.num_kept_below(last + 1) - 1
    if not any(wanted):
        new_first, new_last = len(cut.kept), len(cut.kept) - 1
    given = [new_first <= new <= new_last and (new + 1) % interval == 0 for new in range(len(cut.kept))]
    if given != wanted:
        raise UnsoundCutError(f"experts come every few layers (moe_layer_interval is {interval}); {_groups(interval)}")
    return {"moe_layer_start_index": new_first, "moe_layer_end_index": new_last}


def _groups(size: int) -> str:
    return f"drop runs of {size} layers, or of a multiple of {size}"


def _experts_alternate(settings: Settings, cut: LayerCut) -> Settings:
    step = settings.get("interleave_moe_layer_step") or 1
    if step == 1 or settings.get("moe_layers") is not None:
        return {}
    return {"moe_layers": cut.renumbered(range(step - 1, cut.num_layers, step))}


def _kinds_by_period(settings: Settings, cut: LayerCut) -> Settings:
    """Find a period and an offset that give the layers that stay their kind."""
    changes: Settings = {}
    for period_key, offset_key in _PERIODS:
        period, offset = settings.get(period_key), settings.get(offset_key)
        is_listed = "attn" in period_key and any(settings.get(key) for key in LAYER_KINDS)
        if not isinstance(period, int) or not isinstance(offset, int) or is_listed:
            continue
        wanted = [old % period == offset for old in cut.kept]
        if "attn" in period_key:
            _check_attention_left([layer % period == offset for layer in range(cut.num_layers)], cut)
        fitting = [
            (new_period, new_offset)
            for new_period in (period, *range(1, len(cut.kept) + 2))
            for new_offset in (offset, *range(new_period))
            if new_offset < new_period and wanted == [new % new_period == new_offset for new in range(len(cut.kept))]
        ]
        if not fitting:
            raise UnsoundCutError(
                f"the kind of a layer comes from its number ({period_key} is {period}, {offset_key} {offset}) and no "
                f"other period fits the layers left; {_groups(period)}"
            )
        changes |= {period_key: fitting[0][0], offset_key: fitting[0][1]}
    return changes


def _kinds_in_a_cycle(settings: Settings, cut: LayerCut) -> Settings:
    cycle = settings.get("block_types")
    return {"block_types": [cycle[old % len(cycle)] for old in cut.kept]} if cycle else {}


def _kinds_in_runs(settings: Settings, cut: LayerCut) -> Settings:
    """Write a list of (kinds, repeats) as one run without repeats."""
    runs = settings.get("attention_types")
    if not runs or not all(isinstance(run, list | tuple) and len(run) == 2 for run in runs):
        return {}
    kinds = [kind for names, repeats in runs for _ in range(repeats) for kind in names]
    return {"attention_types": [[[kinds[old] for old in cut.kept], 1]]}


def _depth_scale(settings: Settings, cut: LayerCut) -> Settings:
    """Keep ``scale_depth / sqrt(number of layers)``, by which each residual branch is multiplied."""
    scale = settings.get("scale_depth")
    if not isinstance(scale, int | float):
        return {}
    return {"scale_depth": scale * math.sqrt(len(cut.kept) / cut.num_layers)}


def _scaled_by_number(settings: Settings, cut: LayerCut) -> Settings:
    if settings.get("scale_attn_by_inverse_layer_idx") and not cut.only_last_go:
        raise UnsoundCutError(
            "attention is scaled by the layer's number (scale_attn_by_inverse_layer_idx); drop the last layers only"
        )
    return {}


def _halved_by_number(settings: Settings, cut: LayerCut) -> Settings:
    """RWKV halves what flows through the model after every so many layers, and multiplies the weights to match.

    Only the small constant in its norms tells the scales apart, which is enough for other logits.
    """
    every = settings.get("rescale_every")
    if not isinstance(every, int) or every < 1:
        return {}
    # The last pair is the final norm, which receives what all layers have left.
    if any(old // every != new // every for new, old in enumerate((*cut.kept, cut.num_layers))):
        raise UnsoundCutError(
            f"hidden states are halved after every {every} layers by number (rescale_every), which only float16 needs; "
            "set rescale_every to 0 in the seed model's config.json"
        )
    return {}


def _shared_keys(settings: Settings, cut: LayerCut) -> Settings:
    """The last layers use the keys and values of the last layer of their own kind before them."""
    num_shared = settings.get("num_kv_shared_layers")
    if not num_shared:
        return {}
    first_shared = cut.num_layers - num_shared
    kinds = settings.get("layer_types") or []
    if first_shared < 1 or len(kinds) != cut.num_layers:
        raise UnsoundCutError("layers use keys and values of others (num_kv_shared_layers)")
    sources = {
        max(layer for layer in range(first_shared) if kinds[layer] == kind) for kind in set(kinds[:first_shared])
    }
    gone = sorted(sources.intersection(cut.dropped))
    if gone:
        raise UnsoundCutError(
            f"the last {num_shared} layers use the keys and values of layers {_names(sources)} (num_kv_shared_layers); "
            f"keep {_names(gone)}"
        )
    return {"num_kv_shared_layers": len(cut.kept) - cut.num_kept_below(first_shared)}


def _shared_choices(settings: Settings, cut: LayerCut) -> Settings:
    """A layer whose indexer is shared uses the tokens that the last full one before it chose."""
    kinds = settings.get("indexer_types") or []
    sources = {
        max((source for source in range(layer) if kinds[source] == "full"), default=0)
        for layer in cut.kept
        if layer < len(kinds) and kinds[layer] == "shared"
    }
    gone = sorted(sources.intersection(cut.dropped))
    if gone:
        raise UnsoundCutError(
            f"layers use the tokens that layer {_names(gone)} chooses (indexer_types); keep it or drop them too"
        )
    return {}


def _numbered_embeddings(settings: Settings, cut: LayerCut) -> Settings:
    # These count from 1, and the hash of each such layer comes from its number.
    moved = [layer for layer in settings.get("ple_layer_ids") or [] if layer > cut.num_kept_below(layer)]
    if moved:
        raise UnsoundCutError(
            f"the hashed embeddings of layer {moved[0] - 1} come from its number (ple_layer_ids); drop none up to it"
        )
    return {"ple_layer_ids": settings["ple_layer_ids"]} if "ple_layer_ids" in settings else {}


def _names(layers: Sequence[int] | set[int]) -> str:
    return ", ".join(map(str, sorted(layers)))


_RULES: tuple[Callable[[Settings, LayerCut], Settings], ...] = (
    *(_counts_of_caches, _attention_left, _sliding_windows, _experts_by_step, _experts_in_a_range, _experts_alternate),
    *(_kinds_by_period, _kinds_in_a_cycle, _kinds_in_runs, _depth_scale, _scaled_by_number),
    _halved_by_number,
    *(_shared_keys, _shared_choices, _numbered_embeddings),
)
