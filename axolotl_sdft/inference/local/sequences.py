"""The rows that the embedded model writes on: each a prompt that grows by one token at a time."""

from collections.abc import Collection
from dataclasses import dataclass
from random import Random

from axolotl_sdft.config import GenerationConfig
from axolotl_sdft.inference.interfaces import Prompt
from axolotl_sdft.inference.questions import attempt_temperature, sampling_seed


@dataclass(eq=False)
class Row:
    """A prompt and what has been written after it so far."""

    prompt: Prompt
    ids: list[int]
    """Tokens of the prompt, then of the answer."""

    num_prompt: int
    most_ids: int
    """Prompt and answer together are cut off at this many tokens."""

    temperature: float = 0.0
    random: Random | None = None
    """This row's own source of chance, which no other row draws from; needed where ``temperature`` is above 0."""

    total_logprob: float = 0.0
    """Of the answer's tokens, in nats, the end of the turn among them; only where ``temperature`` is above 0."""

    is_done: bool = False
    error: str | None = None
    is_final: bool = False
    """Whether the row would fail in the same way again."""

    @property
    def new_ids(self) -> list[int]:
        """The answer so far."""
        return self.ids[self.num_prompt :]

    @property
    def mean_logprob(self) -> float | None:
        """Mean log-probability of the answer's tokens; None where nothing was sampled."""
        num_new = len(self.ids) - self.num_prompt
        return self.total_logprob / num_new if self.temperature > 0 and num_new else None

    def append(self, token: int, logprob: float, ends: Collection[int]) -> None:
        """Take the next token in; a row that is done stays as it is."""
        if self.is_done:
            return
        self.ids.append(token)
        self.total_logprob += logprob
        self.is_done = token in ends or len(self.ids) >= self.most_ids

    def fail(self, reason: str, *, is_final: bool = False) -> None:
        """Give this row up; ``is_final`` says that it would fail in the same way again."""
        self.error, self.is_done, self.is_final = reason, True, is_final


def new_row(prompt: Prompt, ids: list[int], config: GenerationConfig, context_length: int | None) -> Row:
    """Return the row of a prompt, with nothing written yet; one that leaves no room for an answer has failed already.

    Args:
        prompt: Its key and attempt decide how the answer is sampled.
        ids: The tokens of the prompt.
        config: How answers are sampled.
        context_length: Most tokens that the model takes; None where it has no limit.
    """
    temperature = attempt_temperature(config.temperature, prompt.attempt)
    random = Random(sampling_seed(config.seed, prompt.messages, prompt.attempt)) if temperature > 0 else None
    wanted = len(ids) + config.max_new_tokens
    most_ids = wanted if context_length is None else min(wanted, context_length)
    row = Row(prompt, list(ids), len(ids), most_ids, temperature, random)
    if context_length is not None and len(ids) >= context_length:
        row.fail(f"the prompt has {len(ids)} tokens, of {context_length} that the model takes", is_final=True)
    return row
