"""Confidence intervals by bootstrap over rows (Efron 1979). No torch here.

Rows are drawn again with replacement, a figure is made of each resample, and the middle 95 % of these figures is the
interval (percentile method). Two models that were measured on the same rows are compared on the same resamples, so that
rows that are hard for both widen no interval of their comparison.

Shapes: R rows, K values of each row, S resamples.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from axolotl_sdft.evaluation.figures import Estimate

_PERCENTILES = (2.5, 97.5)
_CHUNK_COUNTS = 2**20  # how often each row is in a resample: 8 MiB at a time

Floats = NDArray[np.float64]


def _same(values: Floats) -> Floats:
    return values


@dataclass(frozen=True)
class Resampler:
    """Makes figures with 95 % intervals. Equal numbers of rows are resampled alike on each call, so calls are paired.

    A single row is drawn again and again: its interval has no width and says nothing of other rows.
    """

    num_samples: int
    """Resamples behind each interval; 0 leaves the intervals out."""

    seed: int = 0

    def ratio(self, numerators: ArrayLike, denominators: ArrayLike) -> Estimate:
        """Return the sum of the numerators divided by that of the denominators: one of each for every row.

        With numbers of tokens as denominators it is a mean per token, with ones a mean per row.

        Raises:
            ValueError: There are no rows, or the denominators sum to 0.
        """
        values_RK = _columns(numerators, denominators)
        return self._figure(_divided(*values_RK.sum(0)), len(values_RK), lambda: _divided(*self._sums(values_RK).T))

    def quotient(
        self,
        numerators_a: ArrayLike,
        denominators_a: ArrayLike,
        numerators_b: ArrayLike,
        denominators_b: ArrayLike,
        transform: Callable[[Floats], Floats] = _same,
    ) -> Estimate:
        """Return ``transform(ratio of a) / transform(ratio of b)``, both measured on the same rows in the same order.

        The interval is left out where b is 0 in more than 2.5 % of the resamples, which leaves it unbounded.

        Raises:
            ValueError: There are no rows, or b is 0.
        """
        values_RK = _columns(numerators_a, denominators_a, numerators_b, denominators_b)

        def quotients(sums_SK: Floats) -> Floats:
            first, second = (transform(_divided(*sums_SK.T[columns])) for columns in (slice(0, 2), slice(2, 4)))
            return _divided(first, second)

        value = quotients(values_RK.sum(0, keepdims=True))[0]
        return self._figure(value, len(values_RK), lambda: quotients(self._sums(values_RK)))

    def quotient_of_means(self, groups_a: Sequence[ArrayLike], groups_b: Sequence[ArrayLike]) -> Estimate:
        """Return the mean over groups of their means in a, divided by the same in b.

        A group is a task, say, and its values the scores of its questions: the same ones in a and b. Each group is
        resampled by itself.

        Raises:
            ValueError: There is no group, one is empty, or b is 0.
        """
        groups = [_columns(first, second) for first, second in zip(groups_a, groups_b, strict=True)]
        if not groups:
            raise ValueError("there are no groups to compare")

        def quotients() -> Floats:
            means = [self._sums(values_RK, group) / len(values_RK) for group, values_RK in enumerate(groups)]
            return _divided(*np.sum(means, axis=0).T)

        means_K = np.sum([values_RK.mean(0) for values_RK in groups], axis=0)
        return self._figure(_divided(*means_K), sum(map(len, groups)), quotients)

    def _figure(self, value: float, num_rows: int, resampled: Callable[[], Floats]) -> Estimate:
        if np.isinf(value):
            raise ValueError(f"what {num_rows} rows are divided by sums to 0")
        if not self.num_samples:
            return Estimate(float(value), None, None, num_rows)
        with np.errstate(invalid="ignore"):  # between two infinite neighbours
            low, high = np.percentile(resampled(), _PERCENTILES)
        if not np.isfinite((low, high)).all():
            return Estimate(float(value), None, None, num_rows)
        return Estimate(float(value), float(low), float(high), num_rows)

    def _sums(self, values_RK: Floats, stream: int = 0) -> Floats:
        """Return the sums over each resample, [S, K]."""
        return np.concatenate([counts_SR @ values_RK for counts_SR in self._counts(len(values_RK), stream)])

    def _counts(self, num_rows: int, stream: int) -> Iterator[Floats]:
        """Yield how often each row is in each resample, chunk by chunk, [S, R]; the chunks change no number."""
        random = np.random.default_rng((self.seed, stream))
        chunk = max(1, _CHUNK_COUNTS // num_rows)
        for start in range(0, self.num_samples, chunk):
            size = min(chunk, self.num_samples - start)
            # Each resample gets a range of numbers of its own, so that one count serves all.
            drawn_SR = random.integers(num_rows, size=(size, num_rows)) + num_rows * np.arange(size)[:, None]
            yield np.bincount(drawn_SR.ravel(), minlength=drawn_SR.size).reshape(drawn_SR.shape).astype(np.float64)


def transformed(figure: Estimate, function: Callable[[float], float]) -> Estimate:
    """Return a figure on another scale. The function must rise, such as ``exp``: then the interval moves along."""
    low, high = (None if end is None else function(end) for end in (figure.low, figure.high))
    return Estimate(function(figure.value), low, high, figure.rows)


def _columns(*columns: ArrayLike) -> Floats:
    """Return columns of one value per row side by side, [R, K].

    Raises:
        ValueError: There are no rows, or the columns differ in length.
    """
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    if len({array.shape for array in arrays}) > 1 or not arrays[0].size:
        raise ValueError(f"these are values of {[array.size for array in arrays]} rows; all need the same, at least 1")
    return np.stack(arrays, axis=1)


def _divided(numerators: Any, denominators: Any) -> Any:
    """Return quotients; infinite where the denominator is 0, whatever the numerator."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominators == 0, np.inf, numerators / denominators)
