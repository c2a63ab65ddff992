"""Reads predictions off forward passes, keeps them for an iteration, and reads them back.

The leanest way that a model allows is found out at its first pass:

* The output head can be watched: gradients are added to what it gave, and its input or output is what is kept.
* It can't (it is sharded over ranks, compiled, or the logits can't be traced back to it): the logits that the model
  returned are used and kept.

Shapes: B rows, T positions, N label tokens, H hidden, V vocabulary.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from axolotl_sdft.config import DynSDPBConfig
from axolotl_sdft.dynsdpb.former import (
    FormerHiddenStates,
    FormerLogits,
    FormerPrediction,
    FormerTopK,
    identity,
    keep_top_k,
)
from axolotl_sdft.dynsdpb.head import (
    Finish,
    HeadCall,
    find_head,
    finish_that_gives,
    head_gives,
    is_frozen,
    recorded,
    sampled,
)
from axolotl_sdft.dynsdpb.loss import PresentPrediction
from axolotl_sdft.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pass:
    """What a forward pass predicted."""

    raw: Tensor
    """What came out of the output head where it was watched, else the logits; [B, T, V]."""

    finish: Finish
    """Makes logits of it."""

    hidden: Tensor | None
    """What went into the head, [B, T, H]; None where it was not watched."""

    def present(self, rows_N: Tensor, *, is_constant: bool) -> PresentPrediction:
        """Return the prediction at these rows of the flattened batch, for the loss."""
        raw = self.raw.detach() if is_constant else self.raw
        return PresentPrediction(raw, rows_N, self.finish, feeds_loss=self.hidden is not None)


class Predictions:
    """How one model's predictions are read, kept and read back.

    Args:
        model: Without wrappers for several ranks.
        config: What is to be kept.
        can_watch: The head is a whole module on this rank, and called as one.
        context: Entered where the head is run again, such as autocast.

    Raises:
        ConfigError: Hidden states are asked for, but the head that makes logits of them is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        config: DynSDPBConfig,
        *,
        can_watch: bool = True,
        context: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._config, self._model_config, self._context = config, getattr(model, "config", None), context
        head = find_head(model)
        if config.memory == "hidden_states" and head is not None and not is_frozen(head):
            raise ConfigError(
                "dynsdpb.memory is hidden_states, but the output head is trained, so one iteration later it would make "
                "other logits of them; freeze it (as LoRA does), or set memory: logits"
            )
        self._head = head if can_watch else None
        self._finish: Finish | None = None
        self._is_inspected = False
        wants_hidden = config.memory in ("auto", "hidden_states")
        can_hidden = self._head is not None and is_frozen(self._head)
        self.form = (
            "hidden_states" if wants_hidden and can_hidden else "top_k" if config.memory == "top_k" else "logits"
        )
        """What is kept: ``hidden_states``, ``logits`` or ``top_k``."""
        if config.memory == "hidden_states" and not can_hidden:
            self._warn("the output head can't be run outside of the model (sharded or compiled)")

    def watched(self) -> AbstractContextManager[list[HeadCall]]:
        """Record the output head while the block runs; for :meth:`read`."""
        return recorded(self._head)

    def read(self, calls: list[HeadCall], logits_BTV: Tensor, rows_N: Tensor) -> Pass:
        """Return what a pass predicted.

        Args:
            calls: What :meth:`watched` gave.
            logits_BTV: What the model returned.
            rows_N: Some rows of the flattened batch to tell by whether the two belong together.
        """
        if not self._is_inspected and len(rows_N):
            self._inspect(calls, logits_BTV, sampled(rows_N))
        if self._finish is None or len(calls) != 1:
            return Pass(logits_BTV, identity, None)
        return Pass(calls[0].raw, self._finish, calls[0].hidden)

    @torch.no_grad()
    def _inspect(self, calls: list[HeadCall], logits_BTV: Tensor, rows_S: Tensor) -> None:
        self._is_inspected = True
        if len(calls) == 1 and _could_make(logits_BTV, calls[0].raw):
            logits_SV, raw_SV = (values.flatten(0, 1)[rows_S] for values in (logits_BTV, calls[0].raw))
            self._finish = finish_that_gives(logits_SV, raw_SV, self._model_config)
        if self._finish is None:
            self._head = None
        if self.form == "hidden_states" and not self._hidden_states_suffice(calls, rows_S):
            self.form = "logits"
            self._warn("the model's logits could not be made again from what goes into its output head")

    def _hidden_states_suffice(self, calls: list[HeadCall], rows_S: Tensor) -> bool:
        if self._finish is None or self._head is None:
            return False
        hidden_BTH, raw_BTV = calls[0].hidden, calls[0].raw
        if hidden_BTH.shape[:2] != raw_BTV.shape[:2]:
            return False
        with self._context():
            return head_gives(self._head, hidden_BTH.flatten(0, 1)[rows_S], raw_BTV.flatten(0, 1)[rows_S])

    def _warn(self, reason: str) -> None:
        log.warning("dynsdpb: logits are kept instead of hidden states, because %s; they take more memory", reason)

    def keep(self, seen: Pass, rows_N: Tensor) -> dict[str, Tensor]:
        """Return what is to be remembered of these rows of the flattened batch, as constants."""
        if self.form == "hidden_states" and seen.hidden is not None:
            return {"hidden": seen.hidden.detach().flatten(0, 1)[rows_N]}
        raw_RV = seen.raw.detach().flatten(0, 1)
        if self.form == "top_k":
            return keep_top_k(self._chunks(raw_RV, rows_N, seen.finish), self._config)
        return {"logits" if seen.hidden is None else "raw": raw_RV[rows_N]}

    def _chunks(self, raw_RV: Tensor, rows_N: Tensor, finish: Finish) -> Iterator[Tensor]:
        precise = torch.float64 if raw_RV.dtype == torch.float64 else torch.float32
        for start in range(0, max(1, len(rows_N)), self._config.chunk_tokens):
            yield finish(raw_RV[rows_N[start : start + self._config.chunk_tokens]].to(precise))

    def recall(self, kept: dict[str, Tensor]) -> FormerPrediction | None:
        """Return what :meth:`keep` kept, to be read once, after the pass of its own iteration.

        None when it can't be read: it came from a checkpoint whose output head was watched, and this one can't be.
        """
        if "log_probs" in kept:
            return FormerTopK(**kept)
        if "logits" in kept:
            return FormerLogits(kept["logits"], is_disposable=True)
        if self._finish is None or self._head is None:
            return None
        if "raw" in kept:
            return FormerLogits(kept["raw"], self._finish, is_disposable=True)
        is_same_head = self.form == "hidden_states"
        return FormerHiddenStates(kept["hidden"], self._head, self._finish, self._context) if is_same_head else None


def _could_make(logits_BTV: Tensor, raw_BTV: Tensor) -> bool:
    """Whether gradients of the logits can pass what came out of the head."""
    return raw_BTV.shape == logits_BTV.shape and raw_BTV.requires_grad == logits_BTV.requires_grad
