from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.core.texts import evenly_spaced


def test_three_of_ten_are_spread_over_all():
    assert evenly_spaced(10, 3) == [0, 3, 6]


@given(length=st.integers(0, 500), count=st.integers(0, 600))
def test_indices_are_distinct_ascending_and_as_many_as_there_can_be(length, count):
    chosen = evenly_spaced(length, count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(length, count)
    assert all(0 <= index < length for index in chosen)
