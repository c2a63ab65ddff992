import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.evaluation.merging.slerp import Blend, Overlap, linear_factors, slerp_factors

PLAIN = st.floats(-10, 10).map(lambda x: round(x, 3))


def overlap(first, second):
    pairs = (first, second), (first, first), (second, second)
    return Overlap(*(math.fsum(a * b for a, b in zip(*pair, strict=True)) for pair in pairs))


def test_halfway_between_weights_at_right_angles_both_count_by_the_square_root_of_a_half():
    # sin(45 degrees) / sin(90 degrees)
    assert slerp_factors(0.5, overlap([1, 0], [0, 1])) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))


def test_a_third_of_the_way_over_60_degrees_is_worked_out_by_hand():
    # sin(40 degrees) / sin(60 degrees) = 0.742227, sin(20 degrees) / sin(60 degrees) = 0.394931
    factors = slerp_factors(1 / 3, overlap([2, 0], [0.5, math.sqrt(0.75)]))
    assert factors == pytest.approx((0.742227, 0.394931), abs=1e-6)


def test_the_ends_of_the_way_are_the_two_weights_exactly():
    apart = overlap([1, 2, 3], [-3, 1, 1])
    assert slerp_factors(0.0, apart) == (1.0, 0.0)
    assert slerp_factors(1.0, apart) == (0.0, 1.0)


@pytest.mark.parametrize("second", [[2.0, 0.01], [-2.0, 0.01], [0.0, 0.0]], ids=["parallel", "opposite", "zero"])
def test_parallel_opposite_and_zero_weights_are_averaged(second):
    assert slerp_factors(0.25, overlap([1.0, 0.0], second)) == (0.75, 0.25)


@pytest.mark.parametrize(("cosine", "is_linear"), [(0.99951, True), (0.99949, False)])
def test_weights_count_as_parallel_above_a_cosine_of_9995_in_10000(cosine, is_linear):
    factors = slerp_factors(0.5, Overlap(cosine, 1.0, 1.0))
    assert (factors == linear_factors(0.5)) is is_linear


@given(st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=6), st.floats(0, 1))
def test_between_weights_of_one_length_the_length_is_kept(pairs, ratio):
    """Of (x, y) and (-y, x), at right angles and of one length."""
    first = [x for pair in pairs for x in pair]
    second = [x for a, b in pairs for x in (-b, a)]
    factors = slerp_factors(ratio, overlap(first, second))
    length = math.hypot(*first)
    merged = math.hypot(*(factors[0] * a + factors[1] * b for a, b in zip(first, second, strict=True)))
    assert merged == pytest.approx(length, rel=1e-6, abs=1e-9)


@given(st.floats(-0.9994, 0.9994), st.floats(0, 1))
def test_going_from_the_other_end_gives_the_same_merge(cosine, ratio):
    forth, back = (slerp_factors(t, Overlap(cosine, 1.0, 1.0)) for t in (ratio, 1 - ratio))
    assert forth == pytest.approx(back[::-1], abs=1e-9)


def test_a_linear_blend_never_asks_for_the_angle():
    assert Blend("linear", 0.25).factors(lambda: pytest.fail("asked")) == (0.75, 0.25)
