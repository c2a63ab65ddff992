"""What a question to the seed model is, and how its answer is sampled.

Both follow from its content alone, so an answer is known again on every machine, after every restart, under any number
of ranks, in whatever row of whatever dataset the question stands.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from axolotl_sdft.inference.interfaces import Message

_LATER_TEMPERATURE = 0.7


def question_digest(messages: "Sequence[Message]") -> bytes:
    """Return 32 bytes that differ where two chats do."""
    return hashlib.sha256(json.dumps(list(messages), sort_keys=True).encode()).digest()


def sampling_seed(seed: int, messages: "Sequence[Message]", attempt: int = 0) -> int:
    """Return the random seed that one answer is sampled with, from 0 up to but not including 2 ** 63.

    Args:
        seed: ``generation.seed``.
        messages: The chat that is answered.
        attempt: Number of the candidate or retry, counted from 0.
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
            attempt: Number of the candidate or retry, counted from 0.
        """
        seed = self.seed if attempt_temperature(self.temperature, attempt) > 0 else None
        return hashlib.sha256(b"%b %d %b" % (digest, attempt, str(seed).encode())).digest()[:16]
