import statistics
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.distillation.output.report import Chart, mean, median, overlaid_histograms

word_counts = st.lists(st.integers(0, 3000), min_size=1, max_size=60)
floats = st.lists(st.floats(0, 30).map(lambda value: round(value, 4)), min_size=1, max_size=60)


def chart_of(before, after, least_step=1.0):
    return overlaid_histograms(
        Counter(before), Counter(after), mean(Counter(before)), median(Counter(after)), least_step
    )


def counts(bars):
    return [int(bar.label.rsplit(": ", 1)[1]) for bar in bars]


@given(word_counts)
def test_mean_and_median_of_counts_are_those_of_the_list(values):
    assert mean(Counter(values)) == pytest.approx(statistics.fmean(values))
    assert median(Counter(values)) == statistics.median(values)


def test_two_histograms_share_bins_and_scale():
    chart = chart_of([1, 1, 1, 1, 3], [2, 3])

    assert [(bar.label, bar.height) for bar in chart.before] == [("1 to 2: 4", 142.0), ("3 to 4: 1", 35.5)]
    assert [bar.label for bar in chart.after] == ["2 to 3: 1", "3 to 4: 1"]
    assert chart.before[1].x == chart.after[1].x
    assert [tick.label for tick in chart.ticks] == ["1", "2", "3", "4"]
    assert (chart.middle_before.label, chart.middle_after.label) == ("1.4", "2.5")
    assert (chart.highest, chart.has_tail) == (4, False)


def test_one_endless_answer_goes_into_the_last_bin_and_does_not_squeeze_the_others():
    chart = chart_of([*range(10, 30)] * 10, [*range(10, 30)] * 10 + [9000])

    assert chart.has_tail
    assert chart.after[-1].label == "from 29: 11"
    assert [tick.label for tick in chart.ticks] == ["10", "14", "18", "22", "26", "30"]


def test_equal_values_fill_one_bin():
    chart = chart_of([7, 7], [7], least_step=1)
    assert [bar.label for bar in (*chart.before, *chart.after)] == ["7 to 8: 2", "7 to 8: 1"]


@given(word_counts, word_counts)
def test_every_answer_is_in_one_bar_of_whole_words(before, after):
    check(chart_of(before, after), before, after)


@given(floats, floats)
def test_every_measured_answer_is_in_one_bar(before, after):
    check(chart_of(before, after, least_step=0.01), before, after)


def check(chart: Chart, before, after):
    assert sum(counts(chart.before)) == len(before)
    assert sum(counts(chart.after)) == len(after)
    for bar in (*chart.before, *chart.after):
        assert chart.left <= bar.x
        assert bar.x + bar.width <= chart.right + 0.1  # coordinates are rounded
        assert chart.top - 0.1 <= bar.y
        assert bar.y + bar.height == pytest.approx(chart.bottom, abs=0.02)
    assert all(chart.left <= mark.x <= chart.right for mark in (*chart.ticks, chart.middle_before, chart.middle_after))
    assert len(chart.ticks) <= 8
