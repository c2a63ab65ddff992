"""What generation is asked and what it gives back: questions, answers, and the backends that plugins implement.

Both follow from its content alone, so an answer is known again on every machine, after every restart, under any number
of ranks, in whatever row of whatever dataset the question stands.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

Message: TypeAlias = dict[str, str]
"""A chat message: ``role`` (``system``, ``user`` or ``assistant``) and ``content``."""

FinishReason: TypeAlias = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class Target:
    """One answer of a row that is to be rewritten."""

    context: tuple[Message, ...]
    """The conversation before the answer, as it will be trained; the last message is the user's."""

    reference: str
    """The original answer."""

    @property
    def instruction(self) -> str:
        """The last user message: what the answer answers."""
        return self.context[-1]["content"]


@dataclass(frozen=True)
class Answer:
    """What the seed model wrote."""

    text: str
    finish_reason: FinishReason
    """``stop`` when the model ended its answer itself, ``length`` when it was cut off, ``error`` when there is none."""

    num_tokens: int

    mean_logprob: float | None = None
    """Mean log-probability per token, in nats, under the seed model; None where the backend can't tell."""

    error: str | None = None
    """Why this request failed, while others may succeed. Then ``text`` is empty and no check is asked."""

    is_final: bool = False
    """Whether a request that failed would fail in the same way again, as with a prompt that is too long. One that might
    succeed is asked again when the stage is started again."""

    seconds: float = field(default=0.0, compare=False)
    """Its share of the time that generating took; the journal sets it."""


@dataclass(frozen=True)
class Prompt:
    """One request to a backend."""

    key: tuple[int, int]
    """Row and trained turn, each counted from 0; tells the prompts of a round apart."""

    messages: tuple[Message, ...]
    """The whole chat that the seed model's own chat template wraps. Where its last message is the assistant's, that one
    is the beginning of the answer: the model goes on behind it, and the text of the answer holds both."""

    attempt: int = 0
    """Number of the attempt, counted from 0. All prompts of a batch have the same.

    The sampling depends on it: see :func:`~axolotl_sdft.inference.interfaces.sampling_seed` and
    ``attempt_temperature``.
    """

    @property
    def answer_prefix(self) -> str:
        """How the answer begins: what the assistant has said already, most often nothing."""
        return answer_prefix(self.messages)


class Backend(Protocol):
    """Generates answers with the seed model.

    Each rank has one and asks its share. Where a true ``serves_all_ranks`` says that one has all of the machine, the
    main rank asks everything. A backend may also have a method ``load()``, which is called before the time of the
    answers is taken.
    """

    def check(self) -> None:
        """Raise :class:`~axolotl_sdft.core.errors.ConfigError` when the seed model can't answer chats; loads no
        weights.
        """
        ...

    def batches(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        """Split prompts into batches. The split depends on the prompts alone: it is made again after a restart."""
        ...

    def generate(self, batches: Iterable[list[Prompt]]) -> Iterator[tuple[list[Prompt], list[Answer]]]:
        """Yield each batch with its answers, in the order of its prompts, as soon as it is done.

        Batches are drawn one by one, no further ahead than needed to stay busy, and may be yielded in any order.
        Sampling is seeded by :func:`~axolotl_sdft.inference.interfaces.sampling_seed`: an answer can be made again.
        """
        ...

    def answer_nll(self, targets: Sequence[tuple[Target, str]]) -> list[float] | None:
        """Return the mean negative log-likelihood, in nats per token, of each text as the answer to a target's context.

        The end-of-turn token counts as part of the answer. NaN where the seed model can't be shown the context. None:
        this backend can't tell.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...


BackendFactory: TypeAlias = Callable[..., Backend]
"""Called with the folder of the seed model and the ``generation`` settings. Must be cheap: models load on first use."""


_LATER_TEMPERATURE = 0.7
_ENCODER = json.JSONEncoder(sort_keys=True)  # json.dumps would make one for each question


def question_digest(messages: "Sequence[Message]") -> bytes:
    """Return 32 bytes that differ where two chats do."""
    return hashlib.sha256(_ENCODER.encode(list(messages)).encode()).digest()


def answer_prefix(messages: "Sequence[Message]") -> str:
    """Return how the answer to a chat begins: the text of its last message where that is the assistant's, else none."""
    return messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else ""


def sampling_seed(seed: int, messages: "Sequence[Message]", attempt: int = 0) -> int:
    """Return the random seed that one answer is sampled with, from 0 up to but not including 2 ** 63.

    Args:
        seed: ``generation.seed``.
        messages: The chat that is answered.
        attempt: Number of the attempt, counted from 0.
    """
    digest = hashlib.sha256(f"{seed} {question_digest(messages).hex()} {attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def attempt_temperature(temperature: float, attempt: int) -> float:
    """Return the temperature of an attempt: ``generation.temperature``, but above 0 for every one after the first.

    Asked again without sampling, a model would give the very answer that was rejected.
    """
    return temperature if temperature > 0 or attempt == 0 else _LATER_TEMPERATURE


@dataclass(frozen=True)
class Sampling:
    """What makes different answers of the same chat."""

    seed: int
    temperature: float

    def key(self, digest: bytes, attempt: int) -> bytes:
        """Return the 16 bytes under which an answer is stored.

        The random seed counts only where it plays a part, so that another one does not ask greedy answers again.

        Args:
            digest: Of the chat, by :func:`question_digest`.
            attempt: Number of the attempt, counted from 0.
        """
        seed = self.seed if attempt_temperature(self.temperature, attempt) > 0 else None
        return hashlib.sha256(b"%b %d %b" % (digest, attempt, str(seed).encode())).digest()[:16]
