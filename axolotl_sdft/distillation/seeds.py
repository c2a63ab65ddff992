"""How each answer is sampled: the same on every machine, after every restart, under any number of ranks."""

import hashlib

_LATER_TEMPERATURE = 0.7


def sampling_seed(seed: int, key: tuple[int, int], attempt: int = 0) -> int:
    """Return the seed that one answer is sampled with, from 0 up to but not including 2 ** 63.

    Args:
        seed: ``generation.seed``.
        key: Row and trained turn of the prompt.
        attempt: Number of the candidate or retry, counted from 0.
    """
    digest = hashlib.sha256(f"{seed} {key[0]} {key[1]} {attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def attempt_temperature(temperature: float, attempt: int) -> float:
    """Return the temperature of an attempt: ``generation.temperature``, but above 0 for every one after the first.

    Asked again without sampling, a model would give the very answer that was rejected.
    """
    return temperature if temperature > 0 or attempt == 0 else _LATER_TEMPERATURE
