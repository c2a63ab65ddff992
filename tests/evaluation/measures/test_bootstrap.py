import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.evaluation.figures import Estimate
from axolotl_sdft.evaluation.measures import bootstrap
from axolotl_sdft.evaluation.measures.bootstrap import Resampler, transformed

RESAMPLER = Resampler(1000, seed=5)
SIZES = st.integers(1, 40)


def slowly(resampler, num_rows, figure_of, stream=0):
    """The ends of the interval, from resamples drawn one by one; `figure_of` gets the numbers of the rows drawn."""
    random = np.random.default_rng((resampler.seed, stream))
    figures = sorted(figure_of(random.integers(num_rows, size=num_rows)) for _ in range(resampler.num_samples))

    def percentile(share):
        place = share * (len(figures) - 1)
        below = math.floor(place)
        above = min(below + 1, len(figures) - 1)
        return figures[below] + (place - below) * (figures[above] - figures[below])

    return percentile(0.025), percentile(0.975)


def random_rows(num_rows, seed=1):
    """Sums of so many rows and how many tokens each has: between 1 and 2 per token."""
    random = np.random.default_rng(seed)
    tokens = random.integers(1, 30, size=num_rows)
    return tokens * random.uniform(1, 2, size=num_rows), tokens


def test_a_ratio_is_that_of_the_sums_and_not_the_mean_of_ratios():
    figure = RESAMPLER.ratio([2.0, 9.0], [1, 3])

    assert figure.value == 11 / 4
    assert figure.rows == 2
    # Both rows twice: 2/1 and 9/3. Each of them is a quarter of the resamples.
    assert (figure.low, figure.high) == (2.0, 3.0)


@given(num_rows=SIZES, seed=st.integers(0, 5))
def test_an_interval_is_that_of_a_slow_loop(num_rows, seed):
    resampler = Resampler(60, seed)
    sums, tokens = random_rows(num_rows, seed)

    figure = resampler.ratio(sums, tokens)

    expected = slowly(resampler, num_rows, lambda drawn: sums[drawn].sum() / tokens[drawn].sum())
    assert (figure.low, figure.high) == pytest.approx(expected)


def test_a_quotient_draws_the_same_rows_for_both_models():
    (first, tokens), (second, _) = random_rows(30, 1), random_rows(30, 2)

    figure = RESAMPLER.quotient(first, tokens, second, tokens, np.exp)

    def compared(drawn):
        num = tokens[drawn].sum()
        return math.exp(first[drawn].sum() / num - second[drawn].sum() / num)

    assert figure.value == pytest.approx(compared(slice(None)))
    assert (figure.low, figure.high) == pytest.approx(slowly(RESAMPLER, 30, compared))


@given(num_rows=SIZES)
def test_a_model_compared_with_itself_is_as_good_in_every_resample(num_rows):
    sums, tokens = random_rows(num_rows)

    figure = RESAMPLER.quotient(sums, tokens, sums, tokens, np.exp)

    assert (figure.value, figure.low, figure.high) == (1.0, 1.0, 1.0)


def test_means_of_groups_count_alike_and_each_group_is_resampled_by_itself():
    resampler = Resampler(200)
    first, second = [[1, 0, 1, 1], [0.5, 0.25]], [[1, 1, 1, 1], [1.0, 0.5]]

    figure = resampler.quotient_of_means(first, second)

    assert figure.value == pytest.approx((3 / 4 + 0.375) / (1 + 0.75))
    assert figure.rows == 6
    randoms = [np.random.default_rng((0, stream)) for stream in range(2)]
    quotients = []
    for _ in range(200):
        drawn = [randoms[0].integers(4, size=4), randoms[1].integers(2, size=2)]
        sums = [
            sum(np.mean(np.array(group)[rows]) for group, rows in zip(side, drawn, strict=True))
            for side in (first, second)
        ]
        quotients.append(sums[0] / sums[1])
    assert (figure.low, figure.high) == pytest.approx(np.percentile(quotients, (2.5, 97.5)))


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    # Answers of random length whose negative log-likelihood per token is 1.5 on average.
    covered = 0
    for trial in range(300):
        sums, tokens = random_rows(60, seed=100 + trial)
        figure = Resampler(400, seed=trial).ratio(sums, tokens)
        covered += figure.low <= 1.5 <= figure.high
    assert 0.91 <= covered / 300 <= 0.98


def test_pairing_makes_a_comparison_sharper_than_two_figures_apart():
    sums, tokens = random_rows(80)
    better = sums * 0.95

    paired = RESAMPLER.quotient(better, tokens, sums, tokens)
    apart = RESAMPLER.ratio(better, tokens).high / RESAMPLER.ratio(sums, tokens).low

    assert paired.high == pytest.approx(0.95)
    assert apart > 1


def test_chunks_change_no_number(monkeypatch):
    sums, tokens = random_rows(23)
    whole = RESAMPLER.ratio(sums, tokens)

    monkeypatch.setattr(bootstrap, "_CHUNK_COUNTS", 100)

    assert RESAMPLER.ratio(sums, tokens).low == pytest.approx(whole.low)
    assert RESAMPLER.ratio(sums, tokens).high == pytest.approx(whole.high)


def test_without_resamples_there_is_no_interval():
    assert Resampler(0).ratio([1, 2], [1, 1]) == Estimate(1.5, None, None, 2)


def test_the_interval_of_a_single_row_has_no_width():
    assert RESAMPLER.ratio([3], [2]) == Estimate(1.5, 1.5, 1.5, 1)


def test_the_interval_is_left_out_where_the_seed_may_as_well_score_nothing():
    # A single right answer of five is missing in (4/5)^5 = 33 % of the resamples.
    figure = RESAMPLER.quotient([1, 1, 0, 0, 0], [1] * 5, [1, 0, 0, 0, 0], [1] * 5)

    assert figure == Estimate(2.0, None, None, 5)


def test_a_figure_moves_to_another_scale_with_its_interval():
    assert transformed(Estimate(0.0, None, 1.0, 4), math.exp) == Estimate(1.0, None, math.e, 4)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([], []), r"values of \[0, 0\] rows; all need the same, at least 1"),
        (([1, 2], [1]), r"values of \[2, 1\] rows"),
        (([1, 2], [0, 0]), "what 2 rows are divided by sums to 0"),
    ],
)
def test_rows_that_make_no_ratio_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        RESAMPLER.ratio(*columns)


def test_means_need_a_group():
    with pytest.raises(ValueError, match="there are no groups to compare"):
        RESAMPLER.quotient_of_means([], [])
