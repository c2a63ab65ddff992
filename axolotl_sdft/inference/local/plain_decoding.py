"""Decodes with transformers' own ``generate``, batch after batch: for models that keep more than keys and values.

Shapes: B rows, T tokens, V vocabulary.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StopStringCriteria

from axolotl_sdft.core.errors import is_out_of_memory
from axolotl_sdft.inference.forwarding import attention_of_any_shape, free_memory, input_device
from axolotl_sdft.inference.local.sequences import ActiveSequence, Choice

LOG = logging.getLogger(__name__)


class PlainDecoder:
    """Writes rows to their ends, those of a batch together.

    Args:
        model: Anything that ``generate`` works with.
        choose: Chooses each row's next token from the logits [B, V].
        ends: Tokens that end an answer.
        most_rows: Most rows of a batch.
        most_tokens: Most rows of a batch times the tokens that the longest of them may grow to.
        tokenizer: Finds the strings that the checkpoint's generation settings end an answer at; needed where they do.
    """

    def __init__(
        self,
        model: Any,
        choose: Callable[[Tensor, Sequence[ActiveSequence]], list[Choice]],
        ends: Collection[int],
        most_rows: int,
        most_tokens: int,
        *,
        tokenizer: Any = None,
    ) -> None:
        self._model, self._choose, self._ends, self._tokenizer = model, choose, sorted(ends), tokenizer
        strings = getattr(model.generation_config, "stop_strings", None)
        self._stops = StopStringCriteria(tokenizer, strings) if strings else None
        self._most_rows, self._most_tokens = most_rows, most_tokens

    def run(self, rows: Iterable[ActiveSequence]) -> Iterator[ActiveSequence]:
        """Yield each row when its batch is done.

        Where memory runs out, the rows go on from where they were in batches half as large. A row that does not fit
        alone fails.
        """
        source = iter(rows)
        waiting: list[ActiveSequence] = []
        while True:
            while len(waiting) < self._most_rows and (row := next(source, None)) is not None:
                waiting.append(row)
            if not waiting:
                return
            batch = waiting[: self._num_fitting(waiting)]
            if not self._is_written(batch):
                self._after_running_out(batch)
            yield from (row for row in waiting if row.is_done)
            waiting = [row for row in waiting if not row.is_done]

    def _num_fitting(self, rows: Sequence[ActiveSequence]) -> int:
        """Return how many rows can be written together: those after the first that may grow by as much as it."""
        longest = 0
        for place, row in enumerate(rows):
            longest = max(longest, row.most_ids)
            may_grow_alike = row.most_ids - len(row.ids) == rows[0].most_ids - len(rows[0].ids)
            if place and ((place + 1) * longest > self._most_tokens or place == self._most_rows or not may_grow_alike):
                return place
        return len(rows)

    @torch.inference_mode()
    def _is_written(self, rows: Sequence[ActiveSequence]) -> bool:
        """Write rows to their ends; False when memory ran out on the way."""
        width = max(len(row.ids) for row in rows)
        # Filled up with tokens of their own: a padding token may be one that the model lacks.
        ids_BT = torch.tensor([row.ids[:1] * (width - len(row.ids)) + row.ids for row in rows])
        mask_BT = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows])
        device = input_device(self._model)
        try:
            with attention_of_any_shape():
                self._model.generate(
                    input_ids=ids_BT.to(device),
                    attention_mask=mask_BT.to(device),
                    max_new_tokens=rows[0].most_ids - len(rows[0].ids),
                    max_length=None,
                    eos_token_id=self._ends,
                    pad_token_id=rows[0].ids[0],
                    logits_processor=LogitsProcessorList([_Choosing(self._choose, rows, self._ends, self._stops)]),
                    **({} if self._stops is None else {"tokenizer": self._tokenizer}),  # not every generate takes it
                    # What follows is left to the processor.
                    **{"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0},
                    **{"temperature": None, "top_p": None, "top_k": None},
                )
        except (RuntimeError, MemoryError) as err:
            if not is_out_of_memory(err):
                raise
            return False
        return True

    def _after_running_out(self, batch: Sequence[ActiveSequence]) -> None:
        free_memory()
        if len(batch) == 1:
            batch[0].fail(f"memory ran out for this row alone, at {len(batch[0].ids)} tokens")
            return
        self._most_rows = len(batch) // 2
        LOG.warning(
            "memory ran out with a batch of %d rows; going on with %d. A lower "
            "self_distillation.generation.max_batch_tokens avoids this",
            *(len(batch), self._most_rows),
        )


class _Choosing(LogitsProcessor):
    """Takes each row's next token in, and leaves ``generate`` no other choice."""

    def __init__(
        self,
        choose: Callable[[Tensor, Sequence[ActiveSequence]], list[Choice]],
        rows: Sequence[ActiveSequence],
        ends: Sequence[int],
        stops: StopStringCriteria | None,
    ) -> None:
        self._choose, self._rows, self._ends, self._stops = choose, rows, ends, stops

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        choices = self._ending(input_ids, self._choose(scores, self._rows))
        for row, (token, logprob) in zip(self._rows, choices, strict=True):
            row.append(token, logprob, self._ends)
        chosen_B1 = torch.tensor([[token] for token, _ in choices], device=scores.device)
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen_B1, 0.0)

    def _ending(self, input_ids: Tensor, choices: list[Choice]) -> list[Choice]:
        """Return the choices, with an end for a row that failed, and behind an answer that a stop string ends."""
        if not self._ends:
            return choices
        stopped = [False] * len(choices) if self._stops is None else self._stops(input_ids, None).tolist()
        return [
            (self._ends[0], 0.0) if row.error is not None or (is_stopped and row.new_ids) else choice
            for row, is_stopped, choice in zip(self._rows, stopped, choices, strict=True)
        ]
