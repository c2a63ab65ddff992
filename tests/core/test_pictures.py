import math
import statistics
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib")

from matplotlib import rcParams

from axolotl_sdft.core.pictures import (
    Line,
    Point,
    bar_chart,
    expanded,
    histograms,
    line_chart,
    note_on_pictures,
    scatter_chart,
)
from tests.distillation.output.test_report import HOSTILE, Page

AXIS = "speed (tokens per second)"


def point(name, value, low=None, high=None, x=0.0, is_seed=False):
    return Point(name, f"{value:g} %", is_seed, value, low, high, x)


def charts(name="pruned", value=50.0):
    """One chart of each kind."""
    points = [point("seed", 100.0, x=3.0, is_seed=True), point(name, value, 40.0, 60.0, x=2.0)]
    yield bar_chart(points, name, AXIS)
    yield scatter_chart(points, name, (AXIS, AXIS))
    yield histograms({1: 2, 3: 1}, {2: 3}, (1.5, 2.0), name, AXIS)
    lines = [Line(name, [(1.0, value), (2.0, 1.0)]), Line("eval", [(1.0, 2.0), (2.0, 1.0)], is_first=False)]
    yield line_chart(lines, name, (AXIS, AXIS))


def test_a_chart_names_its_axes_and_its_values_in_text():
    page = Page(bar_chart([point("seed", 100.0, is_seed=True), point("pruned", 50.0)], "Speed", AXIS))
    for shown in ("seed", "100 %", "pruned", "50 %", AXIS):
        assert shown in page.texts
    page = Page(scatter_chart([point("a", 1.0, x=2.0), point("b", 2.0, x=3.0)], "Size", ("millions", "percent")))
    assert {"a", "b", "millions", "percent"} <= set(page.texts)
    page = Page(histograms({1: 4}, {2: 4}, (1.0, 2.0), "Length", "words"))
    assert {"words", "answers"} <= set(page.texts)


def test_lines_name_their_axes_and_leave_out_points_that_can_not_be_drawn():
    lines = [Line("loss", [(1.0, 3.0), (2.0, math.nan), (3.0, 1.5)]), Line("other", [(1.0, 2.0)], is_first=False)]
    chart = line_chart(lines, "Training", ("optimizer steps", "nats per token"))
    page = Page(chart)
    assert {"optimizer steps", "nats per token", "loss"} <= set(page.texts)
    assert "other" not in page.texts  # one point is no line
    assert 'aria-label="Training: loss from 3 to 1.5"' in chart
    assert line_chart([Line("loss", [(1.0, 3.0)])], "Training", (AXIS, AXIS)) is None


def test_a_name_that_begins_with_an_underscore_stands_in_the_legend():
    chart = scatter_chart([point("_a", 1.0, x=2.0), point("b", 2.0, x=3.0)], "Size", (AXIS, AXIS))
    assert (
        "_a" in chart.replace("\N{WORD JOINER}", "").partition("</svg>")[0].partition("aria-label")[2].partition(">")[2]
    )


def test_a_chart_is_told_to_those_who_can_not_see_it():
    chart = bar_chart([point("seed", 100.0), point("pruned", 50.0)], "Quality", AXIS)
    assert 'role="img" aria-label="Quality: seed 100 %; pruned 50 %"' in chart
    assert 'aria-label="Length: 1.5 before, 2 after"' in histograms({1: 1}, {2: 1}, (1.5, 2.0), "Length", "words")


def test_a_chart_has_the_colours_of_its_page_and_no_ground():
    for chart in charts():
        assert {"var(--soft)", "var(--before)", "var(--after)"} <= set(_variables(chart))
        assert "#" not in chart.replace("#m", "").replace("#p", "")  # references within the picture
        assert "white" not in chart


def _variables(chart):
    return [f"var(--{part.partition(')')[0]})" for part in chart.split("var(--")[1:]]


def test_a_chart_loads_nothing_and_repeats_no_name_of_a_group():
    for chart in charts():
        assert "http" not in chart
        assert "<style" not in chart
        assert "<g id" not in chart


def test_names_that_a_page_or_a_formula_would_take_for_something_else_are_text():
    for name in (HOSTILE, "$\\frac{1}{0}$", "$", "_x^2", "\u6c34"):
        assert [set(Page(chart).tags) for chart in charts(name)] == [set(Page(chart).tags) for chart in charts("x")]
    assert "$\\frac{1}{0}$" in Page(next(charts("$\\frac{1}{0}$"))).texts


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e200])
def test_a_value_that_can_not_be_drawn_is_left_out(value):
    assert bar_chart([point("broken", value)], "", "") is None
    assert "broken" not in bar_chart([point("broken", value), point("fine", 1.0)], "", "")
    assert scatter_chart([point("broken", value), point("fine", 1.0)], "", ("", "")) is None


@settings(max_examples=8, deadline=None)
@given(st.text(min_size=1, max_size=40), st.floats(0, 1e99))
def test_any_name_and_any_value_give_a_picture_that_is_well_formed(name, value):
    for chart in charts(name, value):
        Page(chart.encode("utf-8").decode("utf-8"))


@pytest.mark.parametrize("value", [0.0, 5e-324])
def test_values_of_nothing_but_0_are_drawn(value):
    assert "a" in Page(bar_chart([point("a", value)], "", "")).texts
    assert scatter_chart([point(name, value, x=value) for name in "ab"], "", ("", "")) is not None


def test_one_endless_answer_goes_into_the_last_bin_and_does_not_squeeze_the_others():
    usual = Counter([*range(10, 30)] * 10)
    chart = histograms(usual, usual + Counter([9000]), (19.5, 19.5), "Length", "words")
    assert "words; the last bar holds all above as well" in Page(chart).texts
    assert max(float(text) for text in Page(chart).texts if text.isdecimal()) <= 40
    assert "words" in Page(histograms(usual, usual, (19.5, 19.5), "Length", "words")).texts


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=60))
def test_values_come_back_from_their_counts_in_ascending_order(values):
    assert expanded(Counter(values)).tolist() == sorted(values)
    assert statistics.median(expanded(Counter(values))) == statistics.median(values)


def test_drawing_leaves_the_looks_of_other_pictures_alone():
    before = dict(rcParams)
    list(charts())
    assert dict(rcParams) == before


def test_the_same_figures_give_the_same_picture():
    assert list(charts()) == list(charts())


def test_without_matplotlib_there_is_a_note_in_place_of_pictures(monkeypatch):
    assert note_on_pictures() is None
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert note_on_pictures() == "The pictures of this page need matplotlib: pip install 'axolotl-sdft[plots]'"
    assert list(charts()) == [None] * 4
