"""Chooses rows to look at: the same ones on every run and every rank."""


def evenly_spaced(length: int, count: int) -> list[int]:
    """Return up to ``count`` indices, spread over all of ``range(length)``; 3 of 10: 0, 3, 6."""
    count = min(length, count)
    return [place * length // count for place in range(count)]
