"""The previous prediction, in one of the forms that the memory keeps it in.

=================  ==========================================  =======================================
form               kept for each label token                   read back
=================  ==========================================  =======================================
``hidden_states``  what went into the output head              exact, while the head stays as it is
``logits``         what came out of the head, or the logits    exact
``top_k``          k largest log-probabilities, and the rest   a bucket of the rest, not which tokens
=================  ==========================================  =======================================

Top-k keeps the log-probabilities at the temperature that they will be compared at, because the rest can't be softened
later, and the uncertainty from before the cut, so that the dynamic schedules stay exact.

Shapes: N tokens, M tokens of a block, C tokens of a chunk, H hidden, V vocabulary, B buckets, K tokens kept.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.training.losses.divergences import confidence_of, tail_log_prob, temperature


@dataclass(frozen=True)
class TeacherChunk:
    """What is known about a chunk of tokens from the iteration before, in full precision; memory of its own."""

    log_probs: Tensor
    """[C, B], at the distillation temperature."""

    token_ids: Tensor | None
    """[C, K], what the buckets but the last stand for; None when there is a bucket for each token."""

    temperature: Tensor
    """[C], as are the two below."""

    uncertainty: Tensor

    top: Tensor
    """The most likely token."""


class TeacherPrediction(ABC):
    """Any of the forms; ``kept`` is what it keeps, [N, ...]."""

    def __init__(self, kept: Tensor) -> None:
        self.num_tokens = len(kept)
        self.is_double = kept.dtype == torch.float64

    @abstractmethod
    def chunk(self, part: slice, config: DynSDPBConfig, device: torch.device, precise: torch.dtype) -> TeacherChunk:
        """Return the tokens of ``part``, on this device and in this dtype."""

    def logits(self, part: slice, device: torch.device, precise: torch.dtype) -> Tensor | None:
        """Return the logits of ``part``, [C, V], not to be written to; None where they are not known."""
        return None

    def gradient_memory(self, like_RX: Tensor) -> Tensor:
        """Return memory [N, X] for a gradient of this kind; a token may be written once it has been read here."""
        return like_RX.new_empty((self.num_tokens, like_RX.shape[1]))


def identity(raw: Tensor) -> Tensor:
    """Return it as it is."""
    return raw


_HEAD_TOKENS = 256


def block_tokens(chunk_tokens: int) -> int:
    """Return on how many tokens an output head is run at a time, a multiple of the chunk.

    A matrix product of fewer spends its time on fetching the head's weights.
    """
    return chunk_tokens * max(1, _HEAD_TOKENS // chunk_tokens)


class TeacherLogits(TeacherPrediction):
    """Logits, or what the model makes logits of.

    Args:
        raw_NV: One row for each token.
        logit_transform: Makes logits of it.
        is_read_once: Nobody else needs them, so what has been read may be written over.
    """

    def __init__(
        self, raw_NV: Tensor, logit_transform: Callable[[Tensor], Tensor] = identity, *, is_read_once: bool = False
    ) -> None:
        super().__init__(raw_NV)
        self._raw_NV, self._logit_transform, self._is_read_once = raw_NV, logit_transform, is_read_once

    def chunk(self, part: slice, config: DynSDPBConfig, device: torch.device, precise: torch.dtype) -> TeacherChunk:
        """Soften the logits."""
        return soften(self.logits(part, device, precise), config)

    def logits(self, part: slice, device: torch.device, precise: torch.dtype) -> Tensor:
        """Finish what was kept."""
        return self._logit_transform(self._raw_NV[part].to(device, precise, non_blocking=True))

    def gradient_memory(self, like_RX: Tensor) -> Tensor:
        """Return the logits themselves, where they may go and are of the same kind."""
        kinds = [(values.shape[1], values.dtype, values.device) for values in (self._raw_NV, like_RX)]
        return self._raw_NV if self._is_read_once and kinds[0] == kinds[1] else super().gradient_memory(like_RX)


class TeacherHiddenStates(TeacherPrediction):
    """What went into the output head.

    Args:
        hidden_NH: One row for each token.
        head: Runs the output head as the model did.
        logit_transform: Makes logits of its result.
    """

    def __init__(
        self,
        hidden_NH: Tensor,
        head: Callable[[Tensor], Tensor],
        logit_transform: Callable[[Tensor], Tensor] = identity,
    ) -> None:
        super().__init__(hidden_NH)
        self._hidden_NH, self._head, self._logit_transform = hidden_NH, head, logit_transform
        self._block, self._block_raw_MV = slice(0, 0), hidden_NH

    def chunk(self, part: slice, config: DynSDPBConfig, device: torch.device, precise: torch.dtype) -> TeacherChunk:
        """Run the head and soften its logits."""
        return soften(self.logits(part, device, precise), config)

    def logits(self, part: slice, device: torch.device, precise: torch.dtype) -> Tensor:
        """Run the head on a block of tokens, unless this chunk of it has been computed with the one before."""
        if not (self._block.start <= part.start and part.stop <= self._block.stop):
            stop = part.start + block_tokens(part.stop - part.start)
            self._block = slice(part.start, min(stop, self.num_tokens))
            with torch.no_grad():
                self._block_raw_MV = self._head(self._hidden_NH[self._block].to(device, non_blocking=True))
        place = slice(part.start - self._block.start, part.stop - self._block.start)
        return self._logit_transform(self._block_raw_MV[place].to(precise))


class TeacherTopK(TeacherPrediction):
    """The most likely tokens, and the rest in one bucket; made of what :func:`keep_top_k` returns."""

    def __init__(self, log_probs: Tensor, token_ids: Tensor, temperature: Tensor, uncertainty: Tensor) -> None:
        super().__init__(log_probs)
        self._floats, self._token_ids_NK = (log_probs, temperature, uncertainty), token_ids

    def chunk(self, part: slice, config: DynSDPBConfig, device: torch.device, precise: torch.dtype) -> TeacherChunk:
        """Return what was kept."""
        floats = (kept[part].to(device, precise, non_blocking=True, copy=True) for kept in self._floats)
        log_probs_CB, temperature_C, uncertainty_C = floats
        token_ids_CK = self._token_ids_NK[part].to(device, torch.long, non_blocking=True)
        return TeacherChunk(log_probs_CB, token_ids_CK, temperature_C, uncertainty_C, token_ids_CK[:, 0])


def soften(logits_CV: Tensor, config: DynSDPBConfig) -> TeacherChunk:
    """Return log-probabilities at each token's own temperature, and how sure they are at temperature 1."""
    log_probs_CV = logits_CV.log_softmax(-1)
    confidence = confidence_of(log_probs_CV)
    temperature_C = temperature(confidence.discrimination, config)
    # The softmax of log-probabilities is that of the logits, and here they need no memory of their own.
    softened_CV = log_probs_CV.div_(temperature_C[:, None]).log_softmax(-1)
    return TeacherChunk(softened_CV, None, temperature_C, confidence.uncertainty, confidence.top)


def keep_top_k(chunks: Iterable[Tensor], config: DynSDPBConfig) -> dict[str, Tensor]:
    """Return what :class:`TeacherTopK` is made of, by name.

    Args:
        chunks: Logits [C, V] in full precision; at least one chunk, which may be without tokens.
        config: How many tokens are kept, and the temperature.
    """
    kept = [_top_of(soften(logits_CV, config), config.top_k) for logits_CV in chunks]
    return {name: torch.cat([part[name] for part in kept]) for name in kept[0]}


def _top_of(chunk: TeacherChunk, k: int) -> dict[str, Tensor]:
    largest_CK, token_ids_CK = chunk.log_probs.topk(min(k, chunk.log_probs.shape[1]), dim=-1)
    log_probs_CB = torch.cat([largest_CK, tail_log_prob(chunk.log_probs, token_ids_CK)], dim=1)
    sizes = {"temperature": chunk.temperature, "uncertainty": chunk.uncertainty}
    return {"log_probs": log_probs_CB, "token_ids": token_ids_CK.int(), **sizes}
