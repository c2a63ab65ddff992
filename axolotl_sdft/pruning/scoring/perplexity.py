"""How well a model predicts each next token, and which layers it misses least, without ever holding all of its logits.

Shapes: B rows, T tokens of a row, N tokens that count, C places of a chunk, V vocabulary.

With R layers left, trying each of them costs R (R - 1) layer runs if every trial runs the whole model. What lies below
the layer left out is the same in every trial, so a trial starts from there: R (R - 1) / 2 + R - 1 runs. One hidden
state is held at a time.
"""

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from axolotl_sdft.core.errors import CheckpointError, ConfigError, DatasetError
from axolotl_sdft.core.terminal import Progress, progress
from axolotl_sdft.inference.forwarding import patched_forward
from axolotl_sdft.inference.likelihood import AnswerBatch, tokens_nll
from axolotl_sdft.pruning.scoring.boundaries import decoder_layers
from axolotl_sdft.pruning.scoring.running import LayerSwitch, counted_tokens, evaluating, ids_and_mask, run, switched
from axolotl_sdft.pruning.scoring.scores import Batch, LayerScores, ScoringOptions, TokenReduction

LOG = logging.getLogger(__name__)

_NAME = "perplexity"
_LARGEST_EXPONENT = 700.0  # exp of more is not a finite float64
_CHUNK_LOGITS = 2**25  # numbers of a chunk in float32: 128 MiB


def predicted_tokens(mask_BT: Tensor, token_reduction: TokenReduction) -> Tensor:
    """Mark the tokens whose prediction counts, [B, T - 1]: those that count and follow a real token."""
    return counted_tokens(mask_BT, token_reduction)[:, 1:] & mask_BT[:, :-1]


def summed_nll(model: PreTrainedModel, batch: Batch, token_reduction: TokenReduction) -> float:
    """Return the negative log-likelihood of the tokens that count, in nats, summed over a micro-batch."""
    ids_BT, mask_BT = ids_and_mask(model, batch)
    rows_N, before_N = predicted_tokens(mask_BT, token_reduction).nonzero(as_tuple=True)
    if not len(rows_N):
        return 0.0
    counted = AnswerBatch(ids_BT, rows_N, before_N + 1)
    return float(tokens_nll(model, counted, lambda module, ids: run(module, ids, mask_BT)).double().sum())


def chunks_of(model: PreTrainedModel, num_rows: int, length: int) -> Iterator[slice]:
    """Yield ranges of places in rows of so many tokens, the logits of each of which fit into 128 MiB."""
    width = max(1, _CHUNK_LOGITS // (num_rows * _vocabulary(model)))
    for start in range(0, length, width):
        yield slice(start, min(start + width, length))


def _vocabulary(model: PreTrainedModel) -> int:
    head = model.get_output_embeddings()
    return int(getattr(head, "out_features", head.weight.shape[0]))  # quantized weights may be of any shape


def check_predicts_next_token(model: PreTrainedModel, batch: Batch) -> None:
    """Refuse a model that does not predict each token from those before it alone.

    The first token's prediction must be the same whatever follows it. Every layer runs once.

    Raises:
        CheckpointError: It has no language-model head, or it sees later tokens, as encoders do.
    """
    fault = f"{type(model).__name__} can't be scored by perplexity: "
    way_out = "; set layer_pruning.metric to angular_distance or block_influence"
    if getattr(model.config, "is_encoder_decoder", False) or model.get_output_embeddings() is None:
        raise CheckpointError(f"{fault}it has no head that predicts the next token{way_out}")
    first = batch["input_ids"][0, :1]
    followers = torch.tensor([4, 5, 6, 7]).to(first)
    pairs_BT = torch.stack([torch.cat([first, followers[:2]]), torch.cat([first, followers[2:]])])
    ids_BT, mask_BT = ids_and_mask(model, {"input_ids": pairs_BT})
    logits_BTV = run(model, ids_BT, mask_BT).logits
    one_V, other_V = logits_BTV[0, 0].double(), logits_BTV[1, 0].double()
    tolerance = 1e-4 if logits_BTV.dtype in (torch.float32, torch.float64) else 2e-2
    if (one_V - other_V).abs().max() > tolerance * one_V.abs().max():
        raise CheckpointError(f"{fault}it sees the tokens that it would have to predict, as encoders do{way_out}")


def logits_by_chunk(model: PreTrainedModel, ids_BT: Tensor, mask_BT: Tensor) -> Callable[[slice], Tensor]:
    """Run the body once; return what gives the logits [B, C, V] of a range of places."""
    has_body = model.base_model is not model and "logits_to_keep" in inspect.signature(model.forward).parameters
    if not has_body:
        all_BTV = run(model, ids_BT, mask_BT).logits
        return lambda chunk: all_BTV[:, chunk]
    output = run(model.base_model, ids_BT, mask_BT)

    def logits_of(chunk: slice) -> Tensor:
        places_C = torch.arange(chunk.start, chunk.stop, device=ids_BT.device)
        with patched_forward(model.base_model, lambda *_args, **_kwargs: output):
            return model(input_ids=ids_BT, attention_mask=mask_BT.long(), logits_to_keep=places_C).logits

    return logits_of


def greedy_removals(model: PreTrainedModel, batches: Sequence[Batch], options: ScoringOptions) -> LayerScores:
    """Return the layers in the order in which they go, and the perplexity of the calibration text after each.

    The cost of n layers is ``exp`` of the mean negative log-likelihood per token without them. Each step removes the
    layer without which it is least; the lower layer wins a tie. A token counts when it follows a real one; with
    ``token_reduction="last"``, only the last of each row does.

    Raises:
        ConfigError: ``num_layers`` is not given, or the protected layers leave fewer.
        CheckpointError: The model does not predict next tokens, or its logits are not numbers.
        DatasetError: No row has two tokens.
    """
    layers = decoder_layers(model)
    num_steps = _num_steps(options, len(layers))
    num_tokens = _num_predicted(model, batches, options)
    order, costs = _known(options)
    todo = len(batches) * sum(
        _num_runs(options.protect_first, len(layers) - step, options.protect_last)
        for step in range(len(order), num_steps)
    )
    with evaluating(model), switched(layers) as switch, progress(_NAME, todo, "layer runs", LOG) as shown:
        check_predicts_next_token(model, batches[0])
        while len(order) < num_steps:
            sums = _nll_without_each(model, switch, batches, options, order, shown)
            order, costs = _with_best(order, costs, sums, num_tokens)
            LOG.info("without layers %s: perplexity %.4g", ", ".join(map(str, sorted(order))), costs[-1])
    return LayerScores(_NAME, len(layers), (), False, num_tokens, tuple(order), tuple(costs))


def _num_steps(options: ScoringOptions, num_layers: int) -> int:
    if options.num_layers is None:
        raise ConfigError(
            "metric perplexity removes one layer after the other, but num_layers is not given; say how many are to go: "
            "score_layers(..., num_layers=6)"
        )
    candidates = max(0, num_layers - options.protect_first - options.protect_last)
    if options.num_layers > min(candidates, num_layers - 1):
        raise ConfigError(
            f"num_layers is {options.num_layers}, but the model has {num_layers} layers, and protect_first "
            f"({options.protect_first}) and protect_last ({options.protect_last}) leave {candidates} of them to choose "
            "from; lower one of the three, and keep at least one layer"
        )
    return options.num_layers


def _num_predicted(model: PreTrainedModel, batches: Sequence[Batch], options: ScoringOptions) -> int:
    masks = (ids_and_mask(model, batch)[1] for batch in batches)
    count = sum(int(predicted_tokens(mask_BT, options.token_reduction).sum()) for mask_BT in masks)
    if count == 0:
        raise DatasetError(
            "layer_pruning.calibration gave no token that follows another, so none can be predicted; check its path, "
            "split and type"
        )
    return count


def _known(options: ScoringOptions) -> tuple[list[int], list[float]]:
    if options.known is None:
        return [], []
    known, count = options.known, options.num_layers
    return list(known.removal_order[:count]), list(known.removal_costs[:count])


def _num_runs(protect_first: int, num_left: int, protect_last: int) -> int:
    """Return the layer runs of one step on one micro-batch, of a model with ``num_left`` layers left."""
    later = range(protect_first + 1, num_left - protect_last)  # each starts from the input of the candidate before it
    return num_left - 1 + sum(num_left - place for place in later)


def _nll_without_each(
    model: PreTrainedModel,
    switch: LayerSwitch,
    batches: Sequence[Batch],
    options: ScoringOptions,
    removed: Sequence[int],
    shown: Progress,
) -> dict[int, float]:
    """Return the summed negative log-likelihood without the removed layers and each of the others that may be."""
    sums = dict.fromkeys(_candidates(options, switch.num_layers, removed), 0.0)
    for batch in batches:
        resume = 0
        for layer in sums:
            before = switch.num_runs
            switch.set_run({*removed, layer}, hold=layer, resume=resume)
            sums[layer] += summed_nll(model, batch, options.token_reduction)
            resume = layer
            shown.advance(switch.num_runs - before)
    return sums


def _candidates(options: ScoringOptions, num_layers: int, removed: Sequence[int]) -> list[int]:
    """Return the layers that may be removed next: those that can be with the removed ones, if there are any."""
    allowed = range(options.protect_first, num_layers - options.protect_last)
    left = [layer for layer in allowed if layer not in removed]
    # Where layers are removed in pairs only, each of a pair may come first; whether all can be shows at the end.
    return [layer for layer in left if options.may_go([*removed, layer])] or left


def _with_best(
    order: list[int], costs: list[float], sums: dict[int, float], num_tokens: int
) -> tuple[list[int], list[float]]:
    finite = {layer: total / num_tokens for layer, total in sums.items() if math.isfinite(total)}
    if not finite:
        raise CheckpointError(
            "perplexity is not a number whichever layer is left out; the model's hidden states overflow or are not "
            "numbers. Check the weights, set layer_pruning.dtype to float32, or name the layers in "
            "layer_pruning.drop_layers"
        )
    best = min(finite, key=lambda layer: (finite[layer], layer))
    cost = math.exp(finite[best]) if finite[best] < _LARGEST_EXPONENT else math.inf
    return [*order, best], [*costs, cost]
