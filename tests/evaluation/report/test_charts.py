import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.evaluation.report.page import WIDTH, Point, bars, scatter, ticks

finite = st.floats(-1e9, 1e9)


def test_bars_start_at_0_and_reach_as_far_as_their_values():
    chart = bars([Point("seed", True, 100.0), Point("pruned", False, 50.0, 40.0, 60.0)], " %")

    whole, half = chart.bars
    # The axis runs from 8 to 404, for 0 to 100.
    assert (whole.x, half.x, half.low, half.high) == (404.0, 206.0, 166.4, 245.6)
    assert (whole.label, half.label) == ("100 %", "50 % (40 to 60)")
    assert (whole.is_seed, half.is_seed) == (True, False)
    assert [tick.label for tick in chart.ticks] == ["0", "20", "40", "60", "80", "100"]


def test_whiskers_have_room():
    chart = bars([Point("a", False, 1.0, 0.5, 9.0)])
    assert chart.bars[0].high <= 404.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_left_out(value):
    assert bars([Point("broken", False, value)]) is None
    assert [bar.name for bar in bars([Point("broken", False, value), Point("fine", False, 1.0)]).bars] == ["fine"]
    assert scatter([Point("broken", False, value), Point("fine", False, 1.0)]) is None


@pytest.mark.parametrize("value", [0.0, 5e-324])
def test_values_of_nothing_but_0_are_drawn(value):
    assert bars([Point("a", False, value)]).bars[0].x == 8.0
    assert {spot.x for spot in scatter([Point(name, False, value, x=value) for name in "ab"]).points} == {224.0}


def test_a_scatter_plot_places_size_across_and_quality_up():
    chart = scatter([Point("seed", True, 100.0, x=30.0), Point("trained", False, 80.0, 80.0, 90.0, x=20.0)])

    seed, trained = chart.points
    assert (seed.x, seed.y) == (404.0, 16.0)
    assert (trained.x, trained.y, trained.low, trained.high) == (44.0, 204.0, 204.0, 110.0)
    assert (seed.anchor, trained.anchor) == ("end", "start")  # names stay inside the picture


def test_names_of_points_at_one_place_do_not_lie_on_each_other():
    chart = scatter([Point(name, False, 80.0, x=20.0) for name in "abc"])
    heights = sorted(spot.name_y for spot in chart.points)
    assert all(later - earlier >= 14 for earlier, later in pairwise(heights))


@given(finite, finite)
def test_ticks_are_few_rising_and_enclose_the_values(one, other):
    low, high = sorted((one, other))
    steps = ticks(low, high)
    slack = 1e-6 * max(1e-80, abs(low), abs(high))
    assert 2 <= len(steps) <= 8
    assert steps == sorted(set(steps))
    assert steps[0] <= low + slack
    assert steps[-1] >= high - slack


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=2, max_size=6))
def test_all_that_is_drawn_lies_inside_the_picture(pairs):
    points = [Point("name", False, value, value / 2, value * 2, x) for value, x in pairs]
    for drawn in (*bars(points).bars, *scatter(points).points):
        assert 0 <= drawn.x <= WIDTH
