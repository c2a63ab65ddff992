"""Finds out whether a model can be decoded row by row with this package's own cache.

Model types differ in what they keep of earlier tokens, and their code changes with each release. So besides what the
configuration tells, a few tokens are decoded both ways and compared.

Shapes: V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from axolotl_sdft.inference.forwarding import input_device
from axolotl_sdft.inference.interfaces import Prompt
from axolotl_sdft.inference.local.decoding import ContinuousDecoder
from axolotl_sdft.inference.local.sequences import ActiveSequence, Choice

_STEPS = 3
# Of the spread of the logits. In 16 bits, rounding alone makes a few hundredths.
_TOLERANCE, _TOLERANCE_IN_16_BITS = 1e-3, 0.1

# What generation_config.json may ask for beyond this package's own settings, and what stands for "nothing".
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "bad_words_ids": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None,),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1, 1.0),
    "stop_strings": (None,),
    "watermarking_config": (None,),
}


def unsupported_reason(model: Any, ids: Sequence[int]) -> str | None:
    """Return why a model has to be left to transformers' own ``generate``; None where it fits.

    Args:
        model: A causal language model.
        ids: Tokens of some text, at least 20.
    """
    return _unfit_by_settings(model) or _unfit_by_cache(model.config) or _unfit_by_trial(model, list(ids))


@torch.inference_mode()
def predicts_numbers(model: Any, ids: Sequence[int]) -> bool:
    """Tell whether a model predicts numbers behind some text; also where only decoding can tell."""
    ids_BT = torch.tensor([list(ids)], device=input_device(model))
    try:
        logits_V = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).logits[0, -1]
    except Exception:  # model code of any origin
        return True
    return bool(logits_V.max().isfinite())  # a token that is ruled out has a score of minus infinity


def _unfit_by_settings(model: Any) -> str | None:
    for name, nothing in _UNSUPPORTED.items():
        value = getattr(model.generation_config, name, None)
        if value not in nothing:
            return f"its generation settings hold {name}: {value}"
    return None


def _unfit_by_cache(config: Any) -> str | None:
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    try:
        layers = DynamicCache(config=config).layers
    except (KeyError, ValueError, AttributeError) as err:
        return f"transformers has no cache for it ({type(err).__name__}: {err})"
    other = {type(layer).__name__ for layer in layers if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer)}
    return f"its layers keep another state than keys and values ({', '.join(sorted(other))})" if other else None


def _unfit_by_trial(model: Any, ids: list[int]) -> str | None:
    """Decode two rows of different length with a shared beginning, and compare with a plain forward of each."""
    texts = [ids + ids[3:], ids + ids[:1]]
    rows = [ActiveSequence(Prompt((0, 0), ()), list(text), len(text), len(text) + _STEPS) for text in texts]
    seen: list[list[Tensor]] = [[], []]

    def forced(logits_BV: Tensor, live: Sequence[ActiveSequence]) -> list[Choice]:
        for row, logits_V in zip(live, logits_BV, strict=True):
            seen[rows.index(row)].append(logits_V)
        return [(ids[len(row.new_ids)], 0.0) for row in live]

    try:
        list(ContinuousDecoder(model, forced, (), most_rows=2, most_tokens=2**31).run(rows))
        differences = [_difference(model, row, logits) for row, logits in zip(rows, seen, strict=True)]
    except Exception as err:  # model code of any origin, asked for what it may never have met
        return f"decoding with a cache of fixed room fails ({type(err).__name__}: {err})"
    tolerance = _TOLERANCE if seen[0][0].dtype == torch.float32 else _TOLERANCE_IN_16_BITS
    if not max(differences) < tolerance:  # also when it is not a number
        return f"decoding with a cache of fixed room gives other logits (by {max(differences):.2g} of their spread)"
    return None


@torch.inference_mode()
def _difference(model: Any, row: ActiveSequence, logits: Sequence[Tensor]) -> float:
    """Return how far logits are from those of a plain forward, on average, as a share of their spread."""
    ids_BT = torch.tensor([row.ids[:-1]], device=input_device(model))
    expected_TV = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).logits[0, -_STEPS:].float()
    decoded_TV = torch.stack(list(logits)).float()
    return float((decoded_TV - expected_TV).abs().mean() / expected_TV.std())
