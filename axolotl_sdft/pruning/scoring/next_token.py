"""How well a model predicts each next token, without ever holding all of its logits.

Shapes: B rows, T tokens of a row, N tokens that count, C places of a chunk, V vocabulary.
"""

import inspect
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.inference.forwarding import patched_forward
from axolotl_sdft.inference.likelihood import AnswerBatch, tokens_nll
from axolotl_sdft.pruning.scoring.running import counted_tokens, ids_and_mask, run
from axolotl_sdft.pruning.scoring.scores import Batch, TokenReduction

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
